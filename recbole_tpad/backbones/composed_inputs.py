"""Items as the composed backbone reads them: prompts tokenised once, images or their features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from tqdm import tqdm

from recbole_tpad.backbones.base import Inputs
from recbole_tpad.backbones.prompts import Prompt, PromptBatch, collate
from recbole_tpad.data import Item

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
        self._prompts = [backbone.prompts.prompt(item) for item in items]
        self._state_prompts = [
            Prompt(backbone.prompts.states_prompt(item), [], asks=False) for item in items
        ]
        self.has_image = torch.tensor([item.image is not None for item in items])
        self.has_answer = torch.tensor([bool(p.answer) for p in self._prompts])
        self._pixels: torch.Tensor | None = None
        self._features: torch.Tensor | None = None

    def prepare(self, *, train_base: bool) -> None:
        """Pixels, and the standardisation they ask for, or features of the frozen encoder."""
        if not train_base:
            self.cache_features()
            return
        self.load_pixels()
        batches = self.pixel_batches()
        if batches:
            self._backbone.vision.standardise(batches)

    def freeze(self) -> None:
        """Keep the vision features from now on."""
        self.cache_features()

    def load_pixels(self, chunk: int = 64) -> None:
        """Read every image once and keep its pixels; for a backbone whose vision side trains.

        A random vision encoder is standardised on these images.
        """
        rows = torch.nonzero(self.has_image).flatten().tolist()
        if not rows:
            return
        batches = []
        for start in tqdm(range(0, len(rows), chunk), desc="images", delay=3, leave=False):
            paths = [self.items[r].image for r in rows[start : start + chunk]]
            batches.append(self._backbone.pixels([p for p in paths if p is not None]))
        self._pixels = torch.zeros(len(self.items), *batches[0].shape[1:])
        self._pixels[rows] = torch.cat(batches)

    def pixel_batches(self, limit: int = 512, chunk: int = 64) -> list[torch.Tensor]:
        """Pixels of up to `limit` images, spread evenly, in chunks (for standardising)."""
        rows = torch.nonzero(self.has_image).flatten()
        if self._pixels is None or len(rows) == 0:
            return []
        rows = rows[:: max(1, len(rows) // limit)]
        return [p.to(self.device) for p in self._pixels[rows].split(chunk)]

    @torch.no_grad()
    def cache_features(self, chunk: int = 64) -> None:
        """Run the (now frozen) vision encoder once per image and keep its output in fp16."""
        queries, width = self._backbone.vision.shape
        self._features = torch.zeros(len(self.items), queries, width, dtype=torch.float16)
        rows = torch.nonzero(self.has_image).flatten()
        parts = rows.split(chunk) if len(rows) else ()
        for part in tqdm(parts, desc="vision features", delay=3, leave=False):
            self._features[part] = self._backbone.vision(self._read(part)).half().cpu()
        self._pixels = None

    def _read(self, rows: torch.Tensor) -> torch.Tensor:
        if self._pixels is not None:
            return self._pixels[rows].to(self.device)
        paths = [self.items[r].image for r in rows.tolist()]
        return self._backbone.pixels([p for p in paths if p is not None]).to(self.device)

    def _visual(self, rows: torch.Tensor) -> torch.Tensor:
        if self._features is not None:
            return self._features[rows].float().to(self.device)
        queries, width = self._backbone.vision.shape
        visual = torch.zeros(len(rows), queries, width, device=self.device)
        present = self.has_image[rows]
        if present.any():
            visual[present.to(self.device)] = self._backbone.vision(self._read(rows[present]))
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
        return ComposedBatch(
            collate(prompts, left=left).to(self.device),
            self._visual(seen),
            self.has_image[seen].to(self.device),
        )

    def lengths(self) -> torch.Tensor:
        """(N,) prompt lengths of the states prompt, in tokens."""
        return torch.tensor([len(p.ids) for p in self._state_prompts])
