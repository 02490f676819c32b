"""Items as the encoder backbone reads them; what a frozen part computes is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from recbole_tpad.backbones.base import Inputs
from recbole_tpad.backbones.image_table import image_table, readable_images
from recbole_tpad.data import Item
from recbole_tpad.progress import progress

if TYPE_CHECKING:
    from recbole_tpad.backbones.encoder import EncoderBackbone

_PART = 16  # texts padded to one length


@dataclass(slots=True)
class EncoderBatch:
    """Some items of `inputs`; what is read of them depends on what is kept and what trains."""

    inputs: EncoderInputs
    rows: torch.Tensor
    visual_rows: torch.Tensor
    answers: bool

    def text(self) -> torch.Tensor:
        """(B, width) pooled text states of the active tower's layers."""
        return self.inputs.text(self.rows)

    def visual(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, width) image features, zero without an image, and (B,) bool: which have one."""
        return self.inputs.visual(self.visual_rows)


class EncoderInputs(Inputs):
    """Batches of items for an encoder backbone.

    Token states of the frozen lower layers are kept in fp16, one after the other without padding.
    A tower whose own layers do not train either is kept pooled; the tables are made again when
    the layers have changed.

    Args:
        backbone: the backbone.
        items: all items; rows refer to their order.
        device: where batches go.
    """

    def __init__(
        self, backbone: EncoderBackbone, items: Sequence[Item], device: torch.device
    ) -> None:
        self.items = items
        self.device = device
        self._backbone = backbone
        self.has_image = torch.tensor([item.image is not None for item in items])
        self.unreadable = {}
        self.has_answer = torch.tensor([bool(i.keywords or i.category) for i in items])
        texts = [backbone.template.text_of(item) for item in items]
        # A title that spells a special token is text and must not act as one.
        tokens = backbone.tokenizer(
            texts, truncation=True, max_length=backbone.max_text_tokens, split_special_tokens=True
        )["input_ids"]
        self._lengths = torch.tensor([len(t) for t in tokens])
        self._starts = torch.cumsum(self._lengths, 0) - self._lengths
        self._tokens = torch.tensor([i for t in tokens for i in t], dtype=torch.int32)
        self._lower: torch.Tensor | None = None
        self._frozen_at: tuple[int, ...] = ()
        self._pooled: dict[str, tuple[tuple[int, ...], torch.Tensor]] = {}
        self._features: torch.Tensor | None = None

    def lengths(self) -> torch.Tensor:
        """(N,) tokens of each item's text."""
        return self._lengths

    def prepare(self, *, train_base: bool) -> None:
        """Keep what the base computes, unless it trains."""
        if not train_base:
            self.freeze()

    @torch.no_grad()
    def freeze(self) -> None:
        """Run the frozen parts over every item once, unless that was done and they are the same."""
        versions = tuple(p._version for p in self._backbone.base_parameters().values())
        if self._lower is not None and self._frozen_at == versions:
            return
        self._frozen_at = versions
        width = self._backbone.widths["text"]
        self._lower = None
        lower = torch.empty(len(self._tokens), width, dtype=torch.float16)
        for rows in self._by_length("frozen text layers"):
            states, mask = self._token_states(rows)
            lower[self._places(rows)[mask.cpu().bool()]] = states[mask.bool()].half().cpu()
        self._lower = lower
        self._pooled.clear()
        self.read_images()

    def read_images(self) -> None:
        """Run the image encoder over every image that the backbone's vision cache lacks."""
        if self._backbone.image is not None:
            shape = (self._backbone.widths["visual"],)
            cache, encode = self._backbone.vision_cache, self._backbone.image_features
            self._features = image_table(self, cache, self._read, encode, shape)

    def batch(
        self,
        rows: torch.Tensor,
        *,
        answers: bool = False,
        visual_rows: torch.Tensor | None = None,
    ) -> EncoderBatch:
        """Some items, as `EncoderBackbone.encode` takes them."""
        return EncoderBatch(self, rows, rows if visual_rows is None else visual_rows, answers)

    # -- text ----------------------------------------------------------------------------------

    def text(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, width) pooled states of the active tower's layers."""
        tower = self._backbone.active
        layers = list(self._backbone.tower_layers(tower).parameters())
        if self._lower is None or any(p.requires_grad for p in layers):
            return self._by_parts(rows)
        versions = tuple(p._version for p in layers)  # raised by every in-place change
        if tower not in self._pooled or self._pooled[tower][0] != versions:
            self._pooled[tower] = versions, self._pool()
        return self._pooled[tower][1][rows].to(self.device)

    def _by_parts(self, rows: torch.Tensor) -> torch.Tensor:
        """Pooled states in parts of similar length: half of a batch would be padding otherwise."""
        order = torch.argsort(self._lengths[rows], stable=True)
        # Without gradients rows come in batches of one length already.
        parts = rows[order].split(_PART if torch.is_grad_enabled() else len(rows))
        states = torch.cat([self._backbone.pooled(*self._token_states(part)) for part in parts])
        return states[torch.argsort(order).to(self.device)]

    @torch.no_grad()
    def _pool(self) -> torch.Tensor:
        table = torch.empty(len(self.items), self._backbone.widths["text"])
        for rows in self._by_length("text layers"):
            table[rows] = self._backbone.pooled(*self._token_states(rows)).float().cpu()
        return table

    def _by_length(self, what: str, chunk: int = 64) -> tqdm[torch.Tensor]:
        order = torch.argsort(self._lengths, stable=True)
        return progress(order.split(chunk), desc=what)

    def _places(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, L) places of the rows' tokens in the flat tables, padded by each row's last one."""
        lengths = self._lengths[rows]
        columns = torch.arange(int(lengths.max()))
        return self._starts[rows][:, None] + columns.clamp(max=(lengths - 1)[:, None])

    def _token_states(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States (B, L, width) below the tower, kept or computed, and the mask (B, L)."""
        places, lengths = self._places(rows), self._lengths[rows]
        mask = (torch.arange(places.shape[1]) < lengths[:, None]).long().to(self.device)
        if self._lower is not None:
            dtype = next(self._backbone.parameters()).dtype
            return self._lower[places].to(self.device, dtype), mask
        ids = self._tokens[places].long().to(self.device)
        return self._backbone.lower(ids.where(mask.bool(), self._backbone.pad_id), mask), mask

    # -- images --------------------------------------------------------------------------------

    def visual(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, width) image features and (B,) bool: which rows have an image."""
        if self._features is not None:
            features = self._features[rows].float().to(self.device)
        else:
            features = self._read_features(rows)
        return features, self.has_image[rows].to(self.device)

    def _read_features(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, width) features of the rows' images, zero where there is none."""
        features = torch.zeros(len(rows), self._backbone.widths["visual"], device=self.device)
        places = torch.nonzero(self.has_image[rows]).flatten()
        good, pixels = self._read(rows[places])
        if len(good):
            found = self._backbone.image_features(pixels).float()
            features[places[good].to(self.device)] = found
        return features

    def _read(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of these rows' images can be read (places), and their pixels."""
        good, images = readable_images(self, rows)
        if not images:
            return good, torch.empty(0)
        processor = self._backbone.image_processor
        assert processor is not None  # made together with the image encoder
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        return good, torch.as_tensor(np.asarray(pixels)).to(self.device)
