"""Second opinions on any model's scores: co-occurrence, similar items, and one over the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from recbole_tpad.errors import InputError

_BLOCK_BYTES = 64 * 2**20  # cosines in memory at a time


class ContextKernel:
    """Scores items by the sparse matrices that lead from the context to them.

    p(j | context) ∝ Σ_p δ^(steps of position p from the end) (A₁ A₂ …)[i_p, j]. With A = F, the
    counts of pairs within training sessions, it is co-occurrence; with A = K of
    `similarity_kernel`, items like those of the context; with F and K, every co-occurrence spread
    over the items similar to it. The whole is an assumption.

    Args:
        factors: (n_items, n_items) each; padding's row and column are empty.
    """

    def __init__(self, *factors: sparse.csr_matrix) -> None:
        # Factors: the product of two would have some neighbours times as many entries.
        self._factors: list[Any] = [factor.astype(np.float32) for factor in factors]

    def log_scores(self, item_seq: Tensor, decay: float = 1.0) -> Tensor:
        """Return log(1 + n · p(j | context)), (B, n_items): 0 where nothing is known.

        Args:
            item_seq: item ids, 0 for padding behind them, (B, L).
            decay: δ in (0, 1]; 1 counts all of the context alike.
        """
        known = item_seq != 0
        steps = known.sum(dim=1, keepdim=True) - 1 - torch.arange(known.shape[1]).to(item_seq)
        weights = torch.where(known, decay ** steps.clamp(min=0).double(), 0.0)
        rows, columns = torch.nonzero(known, as_tuple=True)
        places = (rows.cpu().numpy(), item_seq[rows, columns].cpu().numpy())
        values = weights[rows, columns].float().cpu().numpy()
        n_items = self._factors[0].shape[0]
        mass: Any = sparse.csr_matrix((values, places), shape=(len(item_seq), n_items))
        for factor in self._factors:
            mass = mass @ factor
        return log_shares(mass.toarray()).to(item_seq.device)


def log_shares(mass: npt.NDArray[np.float32]) -> Tensor:
    """Return log(1 + n · each entry's share of its row), (B, n), in the memory of `mass`."""
    total = mass.sum(axis=1, keepdims=True)
    # In place: rows × items is what evaluation has a budget for. A row of zeros stays.
    np.divide(mass, total, out=mass, where=total > 0)
    mass *= mass.shape[1]
    return torch.from_numpy(np.log1p(mass, out=mass))


def similarity_kernel(
    rows: npt.NDArray[np.float32],
    trained: npt.NDArray[np.bool_],
    temperature: float,
    neighbours: int,
) -> sparse.csr_matrix:
    """Return K[m, j] ∝ exp((cos(x_m, x_j) − 1)/τ) over the nearest items of m.

    Rows sum to one, so that no count is lost and items with many neighbours gain nothing by that.

    Args:
        rows: frozen features, (n_items, F); centred here on the items that occur in training.
        trained: which items occur in training, (n_items,).
        temperature: τ > 0.
        neighbours: items that a row is spread over, itself included.

    Returns:
        (n_items, n_items); the padding row and column are empty.
    """
    unit = torch.from_numpy(_unit_rows(rows, trained))
    n, k = len(rows), min(neighbours, len(rows) - 1)
    near = np.empty((n - 1, k), dtype=np.int64)
    weights = np.empty((n - 1, k), dtype=np.float32)
    for block in _blocks(n - 1, n):
        cosine = unit[1:][block] @ unit.T
        cosine[:, 0] = -torch.inf
        best, near[block] = (found.numpy() for found in cosine.topk(k, dim=1, sorted=False))
        weight = np.exp((best - 1.0) / temperature)
        weights[block] = weight / weight.sum(axis=1, keepdims=True)
    crow = np.concatenate([[0, 0], np.arange(1, n) * k])
    return sparse.csr_matrix((weights.ravel(), near.ravel(), crow), shape=(n, n))


def nearest_trained(
    rows: npt.NDArray[np.float32],
    items: npt.NDArray[np.int64],
    trained: npt.NDArray[np.bool_],
    temperature: float,
    neighbours: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return for each item the most similar others that occur in training, and their shares.

    Args:
        rows: frozen features, (n_items, F); centred here on the items that occur in training.
        items: whose neighbours, (M,).
        trained: which items occur in training, (n_items,); at least one.
        temperature: τ > 0.
        neighbours: most that an item gets.

    Returns:
        Item ids, (M, k), and shares ∝ exp(cos / τ) that sum to one, (M, k).
    """
    unit, columns = torch.from_numpy(_unit_rows(rows, trained)), np.flatnonzero(trained)
    known = unit[columns].T.contiguous()
    place = np.cumsum(trained) - 1
    k = max(1, min(neighbours, len(columns) - 1))
    near = np.empty((len(items), k), dtype=np.int64)
    shares = np.empty((len(items), k), dtype=np.float32)
    for block in _blocks(len(items), len(columns)):
        chosen = items[block]
        cosine = unit[chosen] @ known
        own = np.flatnonzero(trained[chosen])
        if len(columns) > 1:
            cosine[own, place[chosen[own]]] = -torch.inf
        best, found = (part.numpy() for part in cosine.topk(k, dim=1, sorted=False))
        weight = np.exp((best - best.max(axis=1, keepdims=True)) / temperature)
        near[block] = columns[found]
        shares[block] = weight / weight.sum(axis=1, keepdims=True)
    return near, shares


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Cut rows of cosines with so many columns into blocks of bounded memory."""
    size = max(1, _BLOCK_BYTES // (4 * columns))
    return (slice(start, start + size) for start in range(0, rows, size))


def kernel_settings(config: Any) -> tuple[float, int]:
    """Return ``kernel_temperature`` and ``kernel_neighbours``.

    Raises:
        InputError: out of range.
    """
    temperature, neighbours = float(config["kernel_temperature"]), int(config["kernel_neighbours"])
    if temperature <= 0 or neighbours < 1:
        raise InputError(
            f"kernel_temperature={temperature} must be positive and kernel_neighbours="
            f"{neighbours} at least 1."
        )
    return temperature, neighbours


def _unit_rows(
    rows: npt.NDArray[np.float32], trained: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    centred = rows - (rows[trained] if trained.any() else rows[1:]).mean(axis=0)
    found: npt.NDArray[np.float32] = centred / np.maximum(
        np.linalg.norm(centred, axis=1, keepdims=True), 1e-8
    )
    return found
