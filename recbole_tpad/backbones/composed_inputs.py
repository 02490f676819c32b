"""Items as the composed backbone reads them: prompts tokenised once, images or their features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

from recbole_tpad.backbones.base import Inputs
from recbole_tpad.backbones.image_table import image_table, readable_images
from recbole_tpad.backbones.prompts import Prompt, PromptBatch, collate
from recbole_tpad.data import Item
from recbole_tpad.progress import progress

if TYPE_CHECKING:
    from recbole_tpad.backbones.composed import ComposedBackbone


class ComposedBatch(NamedTuple):
    """Padded prompts, (B, queries, width) vision features, and (B,) bool: which of them count."""

    prompts: PromptBatch
    visual: torch.Tensor
    has_image: torch.Tensor


class ComposedInputs(Inputs):
    """Batches of items for a composed backbone.

    Args:
        backbone: the backbone.
        items: all items; rows below refer to their order.
        device: where batches go.
    """

    def __init__(
        self, backbone: ComposedBackbone, items: Sequence[Item], device: torch.device
    ) -> None:
        self.items = items
        self.device = device
        self._backbone = backbone
        self._state_prompts = [
            Prompt(ids, [], asks=False) for ids in backbone.prompts.states_prompts(items)
        ]
        self.unreadable = {}
        self.has_image = torch.tensor([item.image is not None for item in items])
        asked = [bool(backbone.prompts.answer_text(item)) for item in items]
        self.has_answer = torch.tensor(asked)
        self._pixels: torch.Tensor | None = None
        self._features: torch.Tensor | None = None

    @cached_property
    def _prompts(self) -> list[Prompt]:
        """Prompts with answers: for training and generation, encoding does not pay for them."""
        lead, answer = self._backbone.prompts.answer_lead, self._backbone.prompts.answer
        return [
            Prompt(states.ids + lead, answer(item))
            for states, item in zip(self._state_prompts, self.items, strict=True)
        ]

    def prepare(self, *, train_base: bool) -> None:
        """Pixels, and the standardisation they ask for, or features of the frozen encoder."""
        if not train_base:
            self.cache_features()
            return
        self.load_pixels()
        batches = self.pixel_batches()
        if batches:
            self._backbone.vision.standardise(batches)

    def read_images(self) -> None:
        """Keep the vision features."""
        self.cache_features()

    def freeze(self) -> None:
        """Keep the vision features from now on."""
        self.cache_features()

    def load_pixels(self, chunk: int = 64) -> None:
        """Read every image once and keep its pixels; for a backbone whose vision side trains."""
        self._pixels = None
        rows = torch.nonzero(self.has_image).flatten()
        parts = rows.split(chunk) if len(rows) else ()
        kept: torch.Tensor | None = None
        for part in progress(parts, desc="images"):
            good, pixels = self._read(part)
            if len(good):
                if kept is None:
                    kept = torch.zeros(len(self.items), *pixels.shape[1:])
                kept[part[good]] = pixels.cpu()
        self._pixels = kept  # last: from now on nothing is read from files

    def pixel_batches(self, limit: int = 512, chunk: int = 64) -> list[torch.Tensor]:
        """Pixels of up to `limit` images, spread evenly, in chunks (for standardising)."""
        rows = torch.nonzero(self.has_image).flatten()
        if self._pixels is None or len(rows) == 0:
            return []
        rows = rows[:: max(1, len(rows) // limit)]
        return [p.to(self.device) for p in self._pixels[rows].split(chunk)]

    def cache_features(self, chunk: int = 64) -> None:
        """Run the (now frozen) vision encoder once per image and keep its output in fp16.

        Images that the backbone's vision cache knows are not read again.
        """
        vision = self._backbone.vision
        kept = self._backbone.vision_cache
        self._features = image_table(self, kept, self._read, vision, vision.shape, chunk)
        self._pixels = None

    def _read(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels of the images that can be read, after which of `rows` these are (places)."""
        if self._pixels is not None:
            return torch.arange(len(rows)), self._pixels[rows].to(self.device)
        good, images = readable_images(self, rows)
        pixels = self._backbone.pixels(images) if images else torch.empty(0)
        return good, pixels.to(self.device)

    def _visual(self, rows: torch.Tensor) -> torch.Tensor:
        if self._features is not None:
            return self._features[rows].to(self.device).float()
        visual = torch.zeros(len(rows), *self._backbone.vision.shape, device=self.device)
        places = torch.nonzero(self.has_image[rows]).flatten()
        if len(places):
            good, pixels = self._read(rows[places])
            if len(good):
                visual[places[good].to(self.device)] = self._backbone.vision(pixels)
        return visual

    def batch(
        self,
        rows: torch.Tensor,
        *,
        answers: bool = False,
        left: bool = False,
        visual_rows: torch.Tensor | None = None,
    ) -> ComposedBatch:
        """Inputs of `ComposedBackbone.hidden` for some items.

        Args:
            rows: (B,) int64 item rows.
            answers: with gold answers (training) or only what the states need.
            left: pad on the left and ask for an answer (generation).
            visual_rows: take the images of these items instead (the shuffled-image control).
        """
        if left:
            prompts = [Prompt(self._prompts[r].ids, []) for r in rows.tolist()]
        else:
            chosen = self._prompts if answers else self._state_prompts
            prompts = [chosen[r] for r in rows.tolist()]
        seen = rows if visual_rows is None else visual_rows
        visual = self._visual(seen)  # first: it finds out which images can be read
        return ComposedBatch(
            collate(prompts, left=left).to(self.device),
            visual,
            self.has_image[seen].to(self.device),
        )

    def prompt_text(self, row: int) -> str:
        """The prompt with its answer lead."""
        return self._backbone.prompts.shown(self._prompts[row].ids)

    def answer_lengths(self) -> torch.Tensor:
        """(N,) tokens of the gold answers, the end-of-sequence token included."""
        return torch.tensor([len(p.answer) for p in self._prompts])

    def lengths(self) -> torch.Tensor:
        """(N,) prompt lengths of the states prompt, in tokens."""
        return torch.tensor([len(p.ids) for p in self._state_prompts])
