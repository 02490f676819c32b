"""Co-occurrence, plain or smoothed over similar items: a second opinion on any model's scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from recbole_tpad.recommenders.item_graph import cooccurrence_counts

Ids = npt.NDArray[np.int64]
_BLOCK = 2048


class EmbeddingKernel:
    """Spreads every co-occurrence of the training sessions over the items similar to it.

    p(j | context) ∝ Σ_i∈context Σ_m F[i, m] K[m, j], where F counts pairs within training
    sessions and K[m, j] = exp((cos(x_m, x_j) − 1)/τ) over the nearest items of m, rows summing to
    one, so that no count is lost and items with many neighbours gain nothing by that. x are the
    frozen rows, centred on the items that occur in training. The whole is an assumption.

    Args:
        sessions: item ids of each training session.
        rows: frozen features, (n_items, F).
        trained: which items occur in training, (n_items,).
        temperature: τ > 0.
        neighbours: items a count is spread over, itself included.
    """

    def __init__(
        self,
        sessions: Sequence[Ids],
        rows: npt.NDArray[np.float32],
        trained: npt.NDArray[np.bool_],
        temperature: float,
        neighbours: int,
    ) -> None:
        # Two factors: their product would have some neighbours times as many entries.
        kernel = similarity_kernel(rows, trained, temperature, neighbours)
        self._kernel: Any = kernel.astype(np.float32)
        self._counts: Any = cooccurrence_counts(sessions, len(rows)).astype(np.float32)

    def log_scores(self, item_seq: Tensor) -> Tensor:
        """Return log(1 + n · p(j | context)), (B, n_items): 0 where nothing is known.

        Args:
            item_seq: item ids, 0 for padding, (B, L).
        """
        partners = _members(item_seq, self._counts.shape[0]) @ self._counts
        return _log_shares(partners @ self._kernel, item_seq)


class CooccurrenceKernel:
    """`EmbeddingKernel` with K = I: counts alone, for models without item embeddings too.

    Args:
        sessions: item ids of each training session.
        n_items: N, including the padding id 0.
    """

    def __init__(self, sessions: Sequence[Ids], n_items: int) -> None:
        self._counts: Any = cooccurrence_counts(sessions, n_items).astype(np.float32)

    def log_scores(self, item_seq: Tensor) -> Tensor:
        """Return log(1 + n · p(j | context)), (B, n_items): 0 where nothing is known.

        Args:
            item_seq: item ids, 0 for padding, (B, L).
        """
        return _log_shares(_members(item_seq, self._counts.shape[0]) @ self._counts, item_seq)


def _members(item_seq: Tensor, n_items: int) -> Any:
    """Return how often each item stands in each context, sparse, (B, n_items)."""
    rows, columns = torch.nonzero(item_seq != 0, as_tuple=True)
    context = item_seq[rows, columns].cpu().numpy()
    ones = np.ones(len(context), dtype=np.float32)
    return sparse.csr_matrix(
        (ones, (rows.cpu().numpy(), context)), shape=(item_seq.shape[0], n_items)
    )


def _log_shares(masses: Any, item_seq: Tensor) -> Tensor:
    mass = masses.toarray()
    total = mass.sum(axis=1, keepdims=True)
    # In place: rows × items is what evaluation has a budget for. A row of zeros stays.
    np.divide(mass, total, out=mass, where=total > 0)
    mass *= mass.shape[1]
    return torch.from_numpy(np.log1p(mass, out=mass)).to(item_seq.device)


def similarity_kernel(
    rows: npt.NDArray[np.float32],
    trained: npt.NDArray[np.bool_],
    temperature: float,
    neighbours: int,
) -> sparse.csr_matrix:
    """Return K of `EmbeddingKernel`, (n_items, n_items); the padding row and column are empty."""
    centred = rows - (rows[trained] if trained.any() else rows[1:]).mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-8)
    n, k = len(rows), min(neighbours, len(rows) - 1)
    indices, values = [], []
    for start in range(1, n, _BLOCK):
        cosine = unit[start : start + _BLOCK] @ unit.T
        cosine[:, 0] = -np.inf
        near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        weight = np.exp((np.take_along_axis(cosine, near, axis=1) - 1.0) / temperature)
        indices.append(near)
        values.append(weight / weight.sum(axis=1, keepdims=True))
    crow = np.concatenate([[0, 0], np.arange(1, n) * k])
    return sparse.csr_matrix(
        (np.concatenate(values).ravel(), np.concatenate(indices).ravel(), crow), shape=(n, n)
    )
