"""Random vectors: the control that must never win."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_tpad.data import DatasetFolder
from recbole_tpad.files import sha256_json
from recbole_tpad.generators.base import Encoded, RunRecord


@dataclass(frozen=True, slots=True)
class RandomSettings:
    """Size and seed of the random vectors."""

    dimension: int = 128
    seed: int = 0


class RandomGenerator:
    """Independent standard normal vectors, one per item."""

    def __init__(self, settings: RandomSettings) -> None:
        self._settings = settings

    def fingerprint(self, dataset: DatasetFolder) -> dict[str, str]:
        """Depends on the settings and the item ids."""
        settings = {"dimension": self._settings.dimension, "seed": self._settings.seed}
        return {"settings": sha256_json(settings), "item_ids": sha256_json(dataset.item_ids)}

    def generate(self, dataset: DatasetFolder, work: Path, record: RunRecord) -> Encoded:
        """Draw the vectors."""
        rng = np.random.default_rng(self._settings.seed)
        vectors = rng.standard_normal((len(dataset.item_ids), self._settings.dimension))
        return Encoded({"random": vectors}, "other", False, self.fingerprint(dataset))
