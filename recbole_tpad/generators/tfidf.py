"""TF-IDF and truncated SVD of the item text: the CPU default to compare with."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from recbole_tpad.data import DatasetFolder, Item
from recbole_tpad.errors import InputError
from recbole_tpad.files import sha256_json
from recbole_tpad.generators.base import Encoded, RunRecord, items_sha256


@dataclass(frozen=True, slots=True)
class TfidfSettings:
    """Attributes:
    dimension: of the SVD; fewer if the catalogue has fewer items or words.
    min_items: words in fewer items are dropped (1 on small catalogues).
    use_description: read the description besides title, brand and category.
    seed: of the randomised SVD.
    """

    dimension: int = 128
    min_items: int = 2
    use_description: bool = True
    seed: int = 0


class TfidfGenerator:
    """L2-normalised TF-IDF over title, brand, category and description, reduced by SVD.

    Item text is not session data, so words and their weights come from the whole catalogue.
    """

    def __init__(self, settings: TfidfSettings) -> None:
        self._settings = settings

    def _text(self, item: Item) -> str:
        parts = [item.title, item.brand, item.category]
        if self._settings.use_description:
            parts.append(item.description)
        return " ".join(parts)

    def fingerprint(self, dataset: DatasetFolder) -> dict[str, str]:
        """Depends on the settings and the items' text."""
        return {
            "settings": sha256_json(asdict(self._settings)),
            "items": items_sha256(dataset.items, images=False, keywords=False),
        }

    def generate(self, dataset: DatasetFolder, work: Path, record: RunRecord) -> Encoded:
        """Fit and encode.

        Raises:
            InputError: the catalogue has no usable words.
        """
        started = time.perf_counter()
        vectorizer = TfidfVectorizer(
            sublinear_tf=True, min_df=self._settings.min_items, stop_words="english"
        )
        try:
            weights = vectorizer.fit_transform([self._text(i) for i in dataset.items])
        except ValueError as error:
            raise InputError(
                f"Data set '{dataset.name}' has no words that occur in at least "
                f"{self._settings.min_items} items; TF-IDF has nothing to work on."
            ) from error
        dimension = min(self._settings.dimension, min(weights.shape) - 1)
        if dimension < 1:
            raise InputError(
                f"Data set '{dataset.name}' has {weights.shape[0]} items and {weights.shape[1]} "
                "usable words; TF-IDF needs at least two of each."
            )
        svd = TruncatedSVD(dimension, random_state=self._settings.seed)
        vectors: np.ndarray = svd.fit_transform(weights)
        seconds = time.perf_counter() - started
        summary = {"explained_variance": float(svd.explained_variance_ratio_.sum())}
        record.stages.append(
            {"name": "tfidf", "seconds": seconds, "history": [], "summary": summary}
        )
        return Encoded({"text": vectors}, "other", False, self.fingerprint(dataset))
