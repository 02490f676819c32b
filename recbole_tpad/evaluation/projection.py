"""A two-dimensional map of a store's items, for the report's scatter plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from recbole_tpad.flat_map import flat_map
from recbole_tpad.store.item_embeddings import ItemEmbeddings

LIMIT = 2000
SEED = 0


class Labelled(Protocol):
    """What the map shows of an item."""

    @property
    def item_id(self) -> str:
        """The item's id."""

    @property
    def title(self) -> str:
        """Shown when the pointer rests on the item."""

    @property
    def category(self) -> str:
        """The item's colour."""


def item_map(
    store: ItemEmbeddings, items: Sequence[Labelled], *, limit: int = LIMIT, seed: int = SEED
) -> dict[str, Any] | None:
    """Project a store's rows to two dimensions with t-SNE (van der Maaten and Hinton, 2008).

    Rows are centred and scaled to length 1 first, so that distances are those of cosines.

    Args:
        store: the item embeddings.
        items: the catalogue; items the store lacks are left out.
        limit: most points shown; a random choice of the items beyond that.
        seed: of the choice and of t-SNE.

    Returns:
        The `map` entry of the results file, coordinates in [0, 1]; None for fewer than 4 items.
    """
    missing = set(store.missing([item.item_id for item in items]))
    known = [item for item in items if item.item_id not in missing]
    if len(known) < 4:
        return None
    if len(known) > limit:
        chosen = np.random.default_rng(seed).choice(len(known), size=limit, replace=False)
        known = [known[i] for i in sorted(chosen)]
    rows = store.rows([item.item_id for item in known]).astype(np.float64)
    rows -= rows.mean(axis=0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    places = flat_map(rows, seed=seed)
    return {
        "method": "t-SNE",
        "label": "category",
        "points": [
            {
                "item_id": item.item_id,
                "title": item.title,
                "x": round(float(x), 4),
                "y": round(float(y), 4),
                "label": item.category,
            }
            for item, (x, y) in zip(known, places, strict=True)
        ],
    }
