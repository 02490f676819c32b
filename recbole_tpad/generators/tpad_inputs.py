"""The catalogue as TPAD's stages read it."""

from __future__ import annotations

import torch

from recbole_tpad.backbones.base import Backbone, Inputs
from recbole_tpad.backbones.vision_cache import VisionCache
from recbole_tpad.data import Item


class ItemInputs:
    """The catalogue as the backbone reads it: made when a stage asks, let go before encoding."""

    def __init__(self, backbone: Backbone, items: list[Item], device: torch.device) -> None:
        self._backbone, self._items, self._device = backbone, items, device
        self._made: Inputs | None = None
        self._frozen = False
        self.unreadable: dict[str, str] = {}

    def get(self) -> Inputs:
        """For stage 1, whose base may still change."""
        if self._made is None:
            self._made = self._backbone.inputs(self._items, self._device)
            self.unreadable = self._made.unreadable
        return self._made

    def frozen(self) -> Inputs:
        """For later stages: what only the base computes is kept."""
        inputs = self.get()
        if not self._frozen:
            self._keep_features()
            inputs.freeze()
            self._frozen = True
        return inputs

    def drop_for_encoding(self) -> None:
        """Free the memory, but for the vision features, which encoding reads again."""
        self._keep_features()
        self._made, self._frozen = None, False

    def _keep_features(self) -> None:
        if self._backbone.vision_cache is None:  # in memory: from here on the base is fixed
            self._backbone.vision_cache = VisionCache()
