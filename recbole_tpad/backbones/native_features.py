"""Items' images for a native backbone: an image's features are computed once and kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from recbole_tpad.backbones.images import UnreadableImage, read_image
from recbole_tpad.backbones.vision_cache import VisionCache
from recbole_tpad.data import Item
from recbole_tpad.data.image_hashes import image_sha256
from recbole_tpad.progress import progress

if TYPE_CHECKING:
    from recbole_tpad.backbones.native import NativeBackbone


class NativeImages:
    """Features of items' images; kept in the backbone's vision cache, or in memory.

    Args:
        backbone: encodes them.
        items: rows below refer to their order.
        device: where the vision side computes.

    Attributes:
        has_image: (N,) bool; an image that cannot be read counts as absent once it was tried.
        unreadable: item id → why.
    """

    def __init__(
        self, backbone: NativeBackbone, items: Sequence[Item], device: torch.device
    ) -> None:
        self.has_image = torch.tensor([item.image is not None for item in items])
        self.unreadable: dict[str, str] = {}
        self._items = items
        self._device = device
        self._backbone = backbone
        self._cache = VisionCache() if backbone.vision_cache is None else backbone.vision_cache
        self._images: dict[int, str] = {}

    def compute_all(self, chunk: int = 64) -> None:
        """Compute every image's features."""
        rows = range(0, len(self._items), chunk)
        for start in progress(rows, desc="vision features"):
            self.compute(range(start, min(start + chunk, len(self._items))))

    def compute(self, rows: Iterable[int]) -> None:
        """Make sure that the features of these rows' images are kept, or the images rejected."""
        new: dict[str, dict[str, torch.Tensor]] = {}
        for row in rows:
            if not self.has_image[row] or row in self._images:
                continue
            path = cast(Path, self._items[row].image)
            try:
                image = image_sha256(path)
                if image not in self._cache and image not in new:
                    new[image] = self._backbone.image_features(read_image(path), self._device)
                self._images[row] = image
            except (UnreadableImage, OSError) as error:
                self.has_image[row] = False
                self.unreadable[self._items[row].item_id] = str(error)
        if new:
            self._cache.add(new)

    def features(self, row: int) -> dict[str, torch.Tensor] | None:
        """Features of a row's image, of `NativeBackbone.image_features`; None without one."""
        self.compute([row])
        return self._cache.get(self._images[row]) if self.has_image[row] else None
