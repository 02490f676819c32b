"""Rows of a table as places on a page: t-SNE, the same for the same rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_COLUMNS = 50


def flat_map(rows: npt.NDArray[np.floating], *, seed: int = 0) -> npt.NDArray[np.float64]:
    """Project rows to two dimensions with t-SNE (van der Maaten and Hinton, 2008).

    Rows are reduced by PCA to 50 dimensions first, as is usual. What is done to them before
    (centring, scaling to length 1) is the caller's choice.

    Args:
        rows: (n, d), at least 4.
        seed: of t-SNE.

    Returns:
        Places, (n, 2), in [0, 1].
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    values = np.asarray(rows, dtype=np.float64)
    if min(values.shape) > _COLUMNS:
        values = PCA(n_components=_COLUMNS, random_state=seed).fit_transform(values)
    # Equal rows (a collapsed generator) have no neighbours to preserve.
    if np.ptp(values, axis=0).max() < 1e-9:
        return np.full((len(values), 2), 0.5)
    perplexity = min(30.0, (len(values) - 1) / 3)
    tsne = TSNE(n_components=2, perplexity=perplexity, init="random", random_state=seed)
    # One thread: sums in one order, so equal rows give equal maps, and no waiting for threads that
    # a busy machine does not run.
    with threadpool_limits(1):
        places = tsne.fit_transform(values)
    span = np.maximum(np.ptp(places, axis=0), 1e-12)
    found: npt.NDArray[np.float64] = (places - places.min(axis=0)) / span
    return found
