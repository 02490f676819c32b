"""A two-dimensional map of a store's items, for the report's scatter plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

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

    Rows are standardised and reduced by PCA to 50 dimensions first, as is usual; cosine-like
    distances come from scaling each row to length 1.

    Args:
        store: the item embeddings.
        items: the catalogue; items the store lacks are left out.
        limit: most points shown; a random choice of the items beyond that.
        seed: of the choice and of t-SNE.

    Returns:
        The `map` entry of the results file, coordinates in [0, 1]; None for fewer than 4 items.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

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
    if min(rows.shape) > 50:
        rows = PCA(n_components=50, random_state=seed).fit_transform(rows)
    # A store of equal rows (a collapsed generator) has no neighbours to preserve.
    if np.ptp(rows, axis=0).max() < 1e-9:
        places = np.full((len(known), 2), 0.5)
    else:
        perplexity = min(30.0, (len(known) - 1) / 3)
        tsne = TSNE(n_components=2, perplexity=perplexity, init="random", random_state=seed)
        # One thread: sums in one order, so equal stores give equal maps, and no waiting for
        # threads that a busy machine does not run.
        with threadpool_limits(1):
            places = tsne.fit_transform(rows)
        span = np.maximum(np.ptp(places, axis=0), 1e-12)
        places = (places - places.min(axis=0)) / span
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
