"""Whitened PCA of item features, fitted on the items that occur in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import linalg

if TYPE_CHECKING:
    from recbole_tpad.recommenders.item_features import ItemFeatures

Doubles = npt.NDArray[np.float64]

_MIN_VARIANCE = 1e-6  # of the first component's; below it fp16 rounding is all that is left
_DENSE = 2048  # widest covariance that is decomposed exactly
_OVERSAMPLING, _ITERATIONS = 16, 6


@dataclass(frozen=True, slots=True)
class WhitenedPca:
    """y = (x − mean) · directionsᵀ has zero mean and identity covariance over the fitted items.

    Attributes:
        mean: (F,).
        directions: (k, F), by falling variance; each has its sign fixed by its largest entry.
    """

    mean: Doubles
    directions: Doubles

    def __call__(self, rows: npt.NDArray[np.floating]) -> Doubles:
        """Return the components of `rows`, shape (N, k)."""
        found: Doubles = (rows.astype(np.float64) - self.mean) @ self.directions.T
        return found


def fit_whitened_pca(
    rows: npt.NDArray[np.floating], size: int, widths: tuple[int, ...] = ()
) -> WhitenedPca:
    """Fit on the given rows and nothing else.

    Modalities are first brought to the same total variance, so that none is left out because its
    numbers are small (assumption). Components whose variance is below a millionth of the
    largest are dropped: dividing by it would blow up rounding errors.

    Args:
        rows: features of the items to fit on, (N, F).
        size: most components wanted.
        widths: columns of each modality, in order; empty: one block.

    Returns:
        k ≤ min(size, F, N − 1) components; none where all rows are equal.
    """
    x = rows.astype(np.float64)
    mean = x.mean(axis=0)
    x = x - mean
    weights = np.ones(x.shape[1])
    start = 0
    for width in widths or (x.shape[1],):
        block = slice(start, start + width)
        variance = float((x[:, block] ** 2).sum()) / max(len(x), 1)
        weights[block] = variance**-0.5 if variance > 0 else 0.0
        start += width
    basis = _leading_directions(x * weights, min(size, len(x) - 1, x.shape[1]))
    # A second, small decomposition makes the covariance the identity exactly.
    projected = (x * weights) @ basis
    variances, rotation = linalg.eigh(projected.T @ projected / max(len(x), 1))
    variances, rotation = variances[::-1], rotation[:, ::-1]
    kept = variances > max(_MIN_VARIANCE * variances[0], 1e-300) if len(variances) else []
    turned = (basis @ rotation)[:, kept] / np.sqrt(variances[kept])
    directions = (turned * weights[:, None]).T
    signs = np.sign(np.take_along_axis(directions, _largest(directions), axis=1))
    return WhitenedPca(mean, directions * np.where(signs == 0, 1.0, signs))


def whitened_rows(features: ItemFeatures, size: int) -> npt.NDArray[np.float32]:
    """Return the whitened PCA of every item's features, (n_items, k ≤ size); row 0 is zero.

    Fitted on items that occur in training. Features too large to be held are read block by block.
    """
    pca = fit_whitened_pca(features.seen_rows(), size, features.widths)
    parts = [pca(features.block(place)).astype(np.float32) for place in features.places()]
    found: npt.NDArray[np.float32] = np.concatenate(parts)
    found[0] = 0
    return found


def _largest(directions: Doubles) -> npt.NDArray[np.int64]:
    if not directions.size:
        return np.zeros((len(directions), 1), dtype=np.int64)
    return np.asarray(np.abs(directions).argmax(axis=1, keepdims=True))


def _leading_directions(x: Doubles, k: int) -> Doubles:
    """Return an orthonormal basis of the k leading principal directions, (F, k)."""
    width = x.shape[1]
    if k < 1:
        return np.zeros((width, 0))
    if width <= _DENSE:
        last = (width - k, width - 1)
        return np.asarray(linalg.eigh(x.T @ x, subset_by_index=last)[1])
    # Subspace iteration: wide features need few of their directions (Halko et al. 2011).
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(width, min(k + _OVERSAMPLING, width)))
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(x.T @ (x @ basis))[0]
    small = x @ basis
    rotation = linalg.eigh(small.T @ small)[1]
    return np.asarray(basis @ rotation[:, -k:])
