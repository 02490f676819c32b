"""Another store's vectors, handed to the wrong items: the control for any claim about content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.files import sha256_json
from recbole_tpad.generators.base import Encoded, RunRecord
from recbole_tpad.store import ItemEmbeddings, open_store, store_path


@dataclass(frozen=True, slots=True)
class ShuffledSettings:
    """Which store is shuffled, by name, and the seed of the permutation."""

    store: str
    seed: int = 0


class ShuffledGenerator:
    """The rows of a store in random order: equal distribution, nothing about the item itself.

    What a recommender still gains with them it does not owe to content.
    """

    def __init__(self, settings: ShuffledSettings) -> None:
        self._settings = settings

    def _source(self, dataset: DatasetFolder) -> ItemEmbeddings:
        source = open_store(store_path(dataset.path, self._settings.store))
        if list(source.item_ids) != list(dataset.item_ids):
            raise InputError(
                f"The store '{self._settings.store}' holds other items than the data set "
                f"'{dataset.name}'. Embed again, then shuffle."
            )
        return source

    def fingerprint(self, dataset: DatasetFolder) -> dict[str, str]:
        """Depends on the store's content and the seed."""
        settings = sha256_json({"seed": self._settings.seed})
        return {"store": self._source(dataset).sha256, "settings": settings}

    def generate(self, dataset: DatasetFolder, work: Path, record: RunRecord) -> Encoded:
        """Permute the rows, the same way in every modality."""
        source = self._source(dataset)
        order = np.random.default_rng(self._settings.seed).permutation(len(dataset.item_ids))
        arrays = {
            name: np.asarray(source.array(name))[order] for name in source.manifest.modalities
        }
        learned = source.manifest.split_fingerprint is not None
        return Encoded(arrays, "other", learned, self.fingerprint(dataset))
