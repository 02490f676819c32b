"""A native model as a listwise re-ranker: the logits of the candidates' letters (RankGPT's form).

One prompt a request: the session's items, the candidates under letters, a question. A candidate's
score is the logit of its letter as the next token; nothing is generated.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from recbole_tpad.backbones.native import NativeBackbone, NativeBatch
from recbole_tpad.backbones.native_features import NativeImages
from recbole_tpad.backbones.native_images import pooled_features
from recbole_tpad.backbones.prompts import Prompt, collate
from recbole_tpad.data import Item
from recbole_tpad.data.item_text import check_item_text, item_text
from recbole_tpad.errors import InputError

LETTERS = string.ascii_uppercase + string.ascii_lowercase


@dataclass(frozen=True, slots=True)
class ListwiseTemplate:
    """Named parts of the prompt, each tokenised by itself; control tokens may be spelled out.

    Attributes:
        start: before the session's items, each of which follows as "<number>. <item>".
        item: with {title}, {brand}, {category}, {description}.
        candidates: between session and candidates, each "<letter>. <item>".
        end: the question; the next token's logits are read after it.
    """

    start: str = "A customer looked at these items, in this order:\n"
    item: str = "{title}, {brand}"
    candidates: str = "Which of these does the customer look at next?\n"
    end: str = "Answer with one letter. The answer is "

    def __post_init__(self) -> None:
        check_item_text(self.item)
        if not self.end:
            raise InputError("rerank.prompt: 'end' is empty; there is no place to read an answer.")


def letter_tokens(tokenizer: PreTrainedTokenizerBase, count: int) -> list[int]:
    """Token ids of the first `count` letters.

    Raises:
        InputError: more candidates than letters, or a letter that is not a token of its own.
    """
    if count > len(LETTERS):
        raise InputError(
            f"A listwise prompt has {len(LETTERS)} letters for candidates, not {count}. "
            "Lower top_k."
        )
    found = []
    for letter in LETTERS[:count]:
        ids = tokenizer(letter, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id or ids[0] in found:
            raise InputError(
                f"The backbone's tokenizer has no token of its own for the letter '{letter}', so "
                "its candidate would have no logit. Take another backbone or a smaller top_k."
            )
        found.append(ids[0])
    return found


class ListwiseReader:
    """Scores candidates for a session; items are rows of the catalogue.

    Args:
        backbone: of kind native; its knowledge tower as it is loaded, which changes nothing.
        items: all items.
        template: the prompt's parts.
        max_text_tokens: budget of one item's text.
        images: 'none', 'candidates' or 'all' items of the prompt are shown with their images.
        device: where it computes.
    """

    def __init__(
        self,
        backbone: NativeBackbone,
        items: Sequence[Item],
        template: ListwiseTemplate,
        *,
        max_text_tokens: int,
        images: str,
        device: torch.device,
    ) -> None:
        self.images = NativeImages(backbone, items, device)
        self._backbone = backbone
        self._device = device
        self._shown = images
        self._letters = letter_tokens_of_all(backbone.tokenizer)
        begin = backbone.tokenizer.bos_token_id
        self._start = ([] if begin is None else [begin]) + self._ids(template.start)
        self._candidates = self._ids(template.candidates)
        self._end = self._ids(template.end)
        self._break = self._ids("\n")
        self._texts = [
            self._ids(item_text(item, template.item), from_catalogue=True)[:max_text_tokens]
            for item in items
        ]

    def _ids(self, text: str, *, from_catalogue: bool = False) -> list[int]:
        # A title that spells a control token is text and must not act as one.
        ids: list[int] = self._backbone.tokenizer(
            text, add_special_tokens=False, split_special_tokens=from_catalogue
        )["input_ids"]
        return ids

    def _line(
        self, label: str, row: int, show: bool, images: list[dict[str, torch.Tensor]]
    ) -> list[int]:
        """Ids of one item; its image's features, if it is shown, are added to `images`."""
        ids = self._ids(f"{label}. ")
        image = self.images.features(row) if show else None
        if image is not None:
            images.append({n: t.to(self._device) for n, t in image.items()})
            ids += self._backbone.image_tokens(len(pooled_features(image)))
        return [*ids, *self._texts[row], *self._break]

    def prompt(
        self, history: Sequence[int], candidates: Sequence[int]
    ) -> tuple[list[int], list[dict[str, torch.Tensor]]]:
        """Token ids of a request, and the features of the images shown in it, in order."""
        images: list[dict[str, torch.Tensor]] = []
        ids = list(self._start)
        for number, row in enumerate(history, start=1):
            ids += self._line(str(number), row, self._shown == "all", images)
        ids += self._candidates
        for letter, row in zip(LETTERS, candidates, strict=False):
            ids += self._line(letter, row, self._shown != "none", images)
        return ids + self._end, images

    @torch.no_grad()
    def __call__(self, history: Sequence[int], candidates: Sequence[int]) -> torch.Tensor:
        """Logits of the candidates' letters, (K,) float32 on the CPU, in the order given."""
        ids, images = self.prompt(history, candidates)
        batch = NativeBatch(collate([Prompt(ids, [], asks=False)]).to(self._device), images)
        last = self._backbone.hidden(batch)[:, -1]
        logits = self._backbone.model.get_output_embeddings()(last)[0].float().cpu()
        found: torch.Tensor = logits[self._letters[: len(candidates)]]
        return found


def letter_tokens_of_all(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of as many letters as have one, in order."""
    for count in range(len(LETTERS), 0, -1):
        try:
            return letter_tokens(tokenizer, count)
        except InputError:
            continue
    return letter_tokens(tokenizer, 1)
