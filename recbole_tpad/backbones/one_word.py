"""An item, or a few, as one vector of a native model: the state after "in one word:"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from recbole_tpad.backbones.native import NativeBackbone, NativeBatch
from recbole_tpad.backbones.native_features import NativeImages
from recbole_tpad.backbones.native_images import pooled_features
from recbole_tpad.backbones.prompts import Prompt, collate
from recbole_tpad.data import Item
from recbole_tpad.data.item_text import check_item_text, item_text
from recbole_tpad.errors import InputError


@dataclass(frozen=True, slots=True)
class OneWordTemplate:
    """Named parts of the prompt, each tokenised by itself; control tokens may be spelled out.

    Attributes:
        start: before the image.
        after_image: between the image and the text; left out where there is no image.
        item_text: with {title}, {brand}, {category}, {description}.
        end: the question; the state of its last token is the item's vector.
    """

    start: str = ""
    after_image: str = "\n"
    item_text: str = "{title}, {brand}"
    end: str = "\nSummary of the item above in one word:"

    def __post_init__(self) -> None:
        if not self.end.strip():
            raise InputError("prompt: 'end' is empty, so that no token could carry the item.")
        check_item_text(self.item_text)


class OneWordInputs:
    """Items as "in one word" prompts of a native backbone.

    Args:
        backbone: of kind native.
        items: all items.
        template: the prompt's parts.
        max_text_tokens: budget of an item's own text.
        device: where batches go.
    """

    def __init__(
        self,
        backbone: NativeBackbone,
        items: Sequence[Item],
        template: OneWordTemplate,
        max_text_tokens: int,
        device: torch.device,
    ) -> None:
        self.images = NativeImages(backbone, items, device)
        self._backbone = backbone
        self._device = device
        tokenizer = backbone.tokenizer

        def ids(text: str, *, from_catalogue: bool = False) -> list[int]:
            found: list[int] = tokenizer(
                text, add_special_tokens=False, split_special_tokens=from_catalogue
            )["input_ids"]
            return found

        begin = tokenizer.bos_token_id
        self._start = ([] if begin is None else [begin]) + ids(template.start)
        self._after_image = ids(template.after_image)
        self._end = ids(template.end)
        self._texts = [
            ids(item_text(item, template.item_text), from_catalogue=True)[:max_text_tokens]
            for item in items
        ]

    def _prompt(self, row: int, image: dict[str, torch.Tensor] | None) -> Prompt:
        shown: list[int] = []
        if image is not None:
            shown = self._backbone.image_tokens(len(pooled_features(image))) + self._after_image
        return Prompt([*self._start, *shown, *self._texts[row], *self._end], [], asks=False)

    def lengths(self) -> torch.Tensor:
        """(N,) prompt lengths in tokens, images included."""
        rows = range(len(self._texts))
        return torch.tensor([len(self._prompt(r, self.images.features(r)).ids) for r in rows])

    @torch.no_grad()
    def states(self, rows: Sequence[int]) -> torch.Tensor:
        """(B, H) float32 last-layer states of the prompts' last tokens."""
        self.images.compute(rows)
        images = [self.images.features(row) for row in rows]
        prompts = [self._prompt(r, i) for r, i in zip(rows, images, strict=True)]
        batch = NativeBatch(
            collate(prompts).to(self._device),
            [{n: t.to(self._device) for n, t in i.items()} for i in images if i is not None],
        )
        hidden = self._backbone.hidden(batch)
        last = batch.prompts.mask.sum(1) - 1
        return hidden[torch.arange(len(rows), device=hidden.device), last].float()
