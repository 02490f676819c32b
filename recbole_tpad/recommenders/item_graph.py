"""Item co-occurrence: the counts, the most frequent partners, and items that never meet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

Ids = npt.NDArray[np.int64]
_PAIRS_PER_CHUNK = 4_000_000
_REJECTION_ROUNDS = 32


@dataclass(frozen=True, slots=True)
class Pattern:
    """A sparse N×N matrix in CSR form.

    Attributes:
        crow: row starts, shape (N + 1,).
        col: columns, ascending within a row, shape (nnz,).
        values: shape (nnz,).
    """

    crow: Ids
    col: Ids
    values: npt.NDArray[np.float64]

    def scipy(self) -> sparse.csr_matrix:
        """Return the same matrix for scipy."""
        n = len(self.crow) - 1
        return sparse.csr_matrix((self.values, self.col, self.crow), shape=(n, n))


def cooccurrence_counts(sessions: Iterable[Ids], n_items: int) -> sparse.csr_matrix:
    """Count item pairs within sessions: F of DIMO (SIGIR 2024), O(Σ length²).

    Every pair of positions of a session that holds two different items counts once in each
    direction, so F is symmetric with a zero diagonal.

    Args:
        sessions: item ids of each session, each session once.
        n_items: N, including the padding id 0.

    Returns:
        Counts, shape (N, N), columns sorted.
    """
    by_length: dict[int, list[Ids]] = defaultdict(list)
    for session in sessions:
        by_length[len(session)].append(session)
    total = sparse.csr_matrix((n_items, n_items), dtype=np.float64)
    for length, group in sorted(by_length.items()):
        step = max(1, _PAIRS_PER_CHUNK // max(length * length, 1))
        for start in range(0, len(group), step):
            block = np.stack(group[start : start + step])
            left = np.repeat(block, length, axis=1).ravel()
            right = np.tile(block, (1, length)).ravel()
            keep = left != right
            ones = np.ones(int(keep.sum()))
            total = total + sparse.csr_matrix(
                (ones, (left[keep], right[keep])), shape=(n_items, n_items)
            )
    total.sort_indices()
    return total


def following_counts(sessions: Iterable[Ids], n_items: int, max_order: int) -> sparse.csr_matrix:
    """Count what follows what: Σ over orders o = 1 … max_order of 1/o · (j is o places after i).

    Directed; an item followed by itself does not count.

    Args:
        sessions: item ids of each session in order, each session once.
        n_items: N, including the padding id 0.
        max_order: largest distance counted, at least 1.

    Returns:
        Shape (N, N), row i: what follows i.
    """
    listed = list(sessions)
    flat = np.concatenate(listed) if listed else np.zeros(0, dtype=np.int64)
    owner = np.repeat(np.arange(len(listed)), [len(s) for s in listed])
    total = sparse.csr_matrix((n_items, n_items), dtype=np.float64)
    for order in range(1, max_order + 1):
        left, right = flat[:-order], flat[order:]
        keep = (owner[:-order] == owner[order:]) & (left != right)
        weight = np.full(int(keep.sum()), 1 / order)
        total = total + sparse.csr_matrix(
            (weight, (left[keep], right[keep])), shape=(n_items, n_items)
        )
    return total


def propagation_step(counts: sparse.csr_matrix) -> Pattern:
    """Return I + A, A = F / (row sum + 1e-8): one step of DIMO's propagation X ← X + A X."""
    degree = np.asarray(counts.sum(axis=1)).ravel()
    scaled = sparse.diags_array(1.0 / (degree + 1e-8)) @ counts
    step = sparse.csr_matrix(scaled + sparse.eye_array(len(degree)))
    step.sort_indices()
    return Pattern(step.indptr.astype(np.int64), step.indices.astype(np.int64), step.data)


def top_partners(counts: sparse.csr_matrix, k: int) -> Pattern:
    """Return each item's `k` most frequent partners, weighted by count, rows summing to one.

    Equal counts are decided by the smaller item id. Items without partners have empty rows.
    """
    n = counts.shape[0]
    rows = np.repeat(np.arange(n), np.diff(counts.indptr))
    order = np.lexsort((counts.indices, -counts.data, rows))
    rank = np.arange(len(order)) - counts.indptr[rows]
    kept = order[rank < k]
    best = sparse.csr_matrix((counts.data[kept], (rows[kept], counts.indices[kept])), shape=(n, n))
    best.sort_indices()
    total = np.asarray(best.sum(axis=1)).ravel()
    weights = best.data / np.repeat(total, np.diff(best.indptr))
    return Pattern(best.indptr.astype(np.int64), best.indices.astype(np.int64), weights)


def partner_table(partners: Pattern, k: int) -> Ids:
    """Return the partners of `top_partners` as a table, shape (N, k), filled up with -1."""
    n = len(partners.crow) - 1
    rows = np.repeat(np.arange(n), np.diff(partners.crow))
    table = np.full((n, k), -1, dtype=np.int64)
    table[rows, np.arange(len(rows)) - partners.crow[rows]] = partners.col
    return table


def never_together(counts: sparse.csr_matrix, k: int, rng: np.random.Generator) -> Pattern:
    """Draw for every item `k` distinct items that never share a session with it.

    Uniform by rejection; an item with fewer than `k` such items gets all of them. The padding
    id 0 neither draws nor is drawn.

    Returns:
        The draws as a 0/1 matrix, shape (N, N).
    """
    n = counts.shape[0]
    degree = np.diff(counts.indptr)
    used = np.repeat(np.arange(n), degree) * n + counts.indices
    wanted = np.minimum(k, n - 2 - degree)
    wanted[0] = 0
    chosen = np.zeros(0, dtype=np.int64)
    missing = wanted.copy()
    for _ in range(_REJECTION_ROUNDS):
        rows = np.repeat(np.arange(n), missing)
        if not len(rows):
            break
        keys = np.unique(rows * n + rng.integers(1, n, size=len(rows)))
        keys = keys[keys // n != keys % n]
        chosen = np.union1d(chosen, keys[~_among(keys, used)])
        missing = wanted - np.bincount(chosen // n, minlength=n)
    for row in np.flatnonzero(missing > 0):
        # Dense rows: rejection would take too long, the complement is small.
        taken = counts.indices[counts.indptr[row] : counts.indptr[row + 1]]
        had = chosen[chosen // n == row] % n
        free = np.setdiff1d(np.arange(1, n), np.concatenate([taken, had, [row]]))
        chosen = np.union1d(chosen, row * n + rng.permutation(free)[: missing[row]])
    crow = np.concatenate([[0], np.cumsum(np.bincount(chosen // n, minlength=n))])
    return Pattern(crow.astype(np.int64), chosen % n, np.ones(len(chosen)))


def _among(keys: Ids, ascending: Ids) -> npt.NDArray[np.bool_]:
    """Say which of `keys` are in the other array, without sorting that again."""
    place = np.searchsorted(ascending, keys)
    found: npt.NDArray[np.bool_] = np.append(ascending, -1)[place] == keys
    return found
