"""Sparse products over item tables, for matrices that stay fixed while a model trains.

``torch.sparse`` rebuilds a transpose in every backward pass, and its CPU kernel is slower than
summing embedding bags with per-sample weights: on 10k items, 312k nonzeros and 200 columns (one
thread) 8 ms against 27 ms. So products are embedding-bag sums, with three habits on a CPU:

- few columns at a time, through all steps, so that what is gathered stays in the cache;
- results of large products in pieces, because fresh memory costs several times what writing does;
- large tables in memory that numpy asks the system to keep in large pages.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from recbole_tpad.recommenders.item_graph import Pattern, propagation_step

Csr = tuple[Tensor, Tensor, Tensor]

_COLUMNS = 32  # two cache lines of float32 a gathered row
_SMALL_TABLE = 2**20  # bytes that stay in the cache without cutting columns
_LARGE_BLOCK = 2**26  # bytes of a block that no cache holds
_PIECE = 2**22  # bytes of a product's result computed at once
_CACHED = 2**19  # bytes of each table in a chain of element-wise operations
_LARGE = 2**25  # bytes from which malloc gives freed memory back, so that it is always fresh


def empty_table(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return an uninitialised tensor of `shape`; a large one on a CPU in large memory pages."""
    if like.device.type != "cpu" or like.element_size() * int(np.prod(shape)) < _LARGE:
        return like.new_empty(shape)
    # numpy advises large pages where the system has them; torch does not by default.
    kind = torch.empty(0, dtype=like.dtype).numpy().dtype
    return torch.from_numpy(np.empty(shape, dtype=kind))


def row_pieces(n: int, width: int, like: Tensor, size: int | None = None) -> list[slice]:
    """Cut `n` rows of `width` numbers into pieces of `size` bytes (None: what stays in the cache).

    On a GPU there is one piece.
    """
    size = _CACHED if size is None else size
    step = n if like.device.type != "cpu" else max(1, size // (width * like.element_size()))
    return [slice(start, min(n, start + step)) for start in range(0, n, max(step, 1))]


def column_blocks(n: int, size: int, like: Tensor) -> list[slice]:
    """Cut the `size` columns of a table of `n` rows into blocks to be worked on one by one.

    There is one block where the whole table fits into the cache anyway, or not even a block does.
    """
    row = like.element_size() * n
    whole = row * size <= _SMALL_TABLE or row * _COLUMNS > _LARGE_BLOCK
    if like.device.type != "cpu" or whole:
        return [slice(0, size)]
    count = max(1, round(size / _COLUMNS))
    # All but the last as wide as whole cache lines.
    edges = [k * _COLUMNS for k in range(count)] + [size]
    return [slice(a, b) for a, b in pairwise(edges)]


def weighted_sums(rows: Tensor, matrices: Sequence[Csr], *, add_to: Tensor | None = None) -> Tensor:
    """Return the sum of CSR matrices, times `rows`, without a gradient.

    Args:
        rows: (N, columns).
        matrices: row starts (M + 1,), columns (nnz,) and values (nnz,) of each.
        add_to: add the product to this table, (M, columns), instead of making one.

    Returns:
        Shape (M, columns).
    """
    rows = rows.detach()  # else torch also prepares a backward pass
    m, size = matrices[0][0].numel() - 1, rows.shape[1]
    out = empty_table((m, size), rows) if add_to is None else add_to
    blocks = column_blocks(len(rows), size, rows)
    workspace = None if len(blocks) == 1 else Workspace(len(rows), blocks, rows, tables=1)
    for part in blocks:
        if workspace is None:
            block = rows.contiguous()
        else:
            block = workspace.table(0, part.stop - part.start).copy_(rows[:, part])
        for k, matrix in enumerate(matrices):
            _sum_into(out[:, part], block, matrix, add=k > 0 or add_to is not None)
    return out


def _bags(rows: Tensor, crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
    if col.numel() == 0:
        return rows.new_zeros((crow.numel() - 1, rows.shape[1]))
    return functional.embedding_bag(
        col, rows, crow, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def _sum_into(out: Tensor, rows: Tensor, matrix: Csr, add: bool = False) -> None:
    crow, col, values = matrix
    for piece in row_pieces(len(out), out.shape[1], out, _PIECE):
        starts = crow[piece.start : piece.stop + 1]
        if piece.stop - piece.start < len(out):
            first, last = int(starts[0]), int(starts[-1])
            found = _bags(rows, starts - first, col[first:last], values[first:last])
        else:
            found = _bags(rows, crow, col, values)
        if add:
            out[piece] += found
        else:
            out[piece] = found


class Propagation(nn.Module):
    """X → (I + A)ˡ X for A = F / (row sum + 1e-8) and F symmetric, and its transpose.

    DIMO's propagation (SIGIR 2024) is l steps X ← X + A X. F = Fᵀ, so Aᵀ = D A D⁻¹ with
    D = diag(row sum + 1e-8): the transpose is the same matrix between two scalings of the rows.

    Args:
        counts: F, (N, N), symmetric.
    """

    crow: Tensor
    col: Tensor
    values: Tensor
    degree: Tensor

    def __init__(self, counts: sparse.csr_matrix) -> None:
        super().__init__()
        pattern = propagation_step(counts)
        kind = torch.get_default_dtype()
        degree = torch.from_numpy(np.asarray(counts.sum(axis=1)).ravel() + 1e-8)
        # A row of A without entries needs no scaling.
        alone = torch.from_numpy(np.diff(counts.indptr) == 0)
        for name, tensor in (
            ("crow", torch.from_numpy(pattern.crow.astype(np.int32))),
            ("col", torch.from_numpy(pattern.col.astype(np.int32))),
            ("values", torch.from_numpy(pattern.values).to(kind)),
            ("degree", degree.masked_fill(alone, 1.0).to(kind)),
        ):
            self.register_buffer(name, tensor, persistent=False)
        self.n = len(pattern.crow) - 1

    def steps(self, block: Tensor, layers: int, spare: Tensor) -> Tensor:
        """Return (I + A)ˡᵃʸᵉʳˢ · block, which may be in `block` or in `spare`; no gradient.

        Args:
            block: contiguous, (N, columns); overwritten.
            layers: l.
            spare: contiguous, like `block`; overwritten.
        """
        block = block.detach()
        whole = len(row_pieces(self.n, block.shape[1], block, _PIECE)) == 1
        for _ in range(layers):
            if whole:
                block = _bags(block, self.crow, self.col, self.values)
            else:
                _sum_into(spare, block, (self.crow, self.col, self.values))
                block, spare = spare, block
        return block


class Workspace:
    """Contiguous tables of N rows, used again for every block of columns."""

    def __init__(self, n: int, blocks: list[slice], like: Tensor, tables: int = 2) -> None:
        self._n = n
        widest = max(b.stop - b.start for b in blocks)
        self._tables = [empty_table((n * widest,), like) for _ in range(tables)]

    def table(self, k: int, width: int) -> Tensor:
        """Return the k-th table with `width` columns."""
        return self._tables[k][: self._n * width].view(self._n, width)

    def pair(self, width: int) -> tuple[Tensor, Tensor]:
        """Return the first two tables with `width` columns."""
        return self.table(0, width), self.table(1, width)


class SparseMatrix(nn.Module):
    """A constant N×N matrix and its transpose, as non-persistent buffers; no gradients."""

    crow: Tensor
    col: Tensor
    values: Tensor
    row: Tensor
    crow_t: Tensor
    col_t: Tensor
    transpose_order: Tensor

    def __init__(self, pattern: Pattern) -> None:
        super().__init__()
        n = len(pattern.crow) - 1
        positions = np.arange(1, len(pattern.col) + 1)
        transposed = sparse.csr_matrix((positions, pattern.col, pattern.crow), shape=(n, n)).T
        transposed = transposed.tocsr()
        transposed.sort_indices()
        self.n = n
        for name, array in (
            ("crow", pattern.crow),
            ("col", pattern.col),
            ("crow_t", transposed.indptr),
            ("col_t", transposed.indices),
            ("row", np.repeat(np.arange(n, dtype=np.int32), np.diff(pattern.crow))),
            ("transpose_order", transposed.data - 1),
        ):
            tensor = torch.from_numpy(np.asarray(array, dtype=np.int32))
            self.register_buffer(name, tensor, persistent=False)
        values = torch.from_numpy(pattern.values).to(torch.get_default_dtype())
        self.register_buffer("values", values, persistent=False)

    def times(self, rows: Tensor, entries: Tensor) -> Tensor:
        """Return W · rows, W this matrix's pattern with other entries, (N, columns).

        Args:
            rows: (N, columns).
            entries: values of W in the order of the stored entries, (nnz,).
        """
        return weighted_sums(rows, [(self.crow, self.col, entries)])

    def transposed_times(self, rows: Tensor, entries: Tensor, *, add_to: Tensor) -> Tensor:
        """Add Wᵀ · rows to a table, (N, columns), and return it; W as for `times`."""
        return weighted_sums(rows, [self._transposed(entries)], add_to=add_to)

    def both_ways_times(self, rows: Tensor, entries: Tensor) -> Tensor:
        """Return (W + Wᵀ) · rows, (N, columns); W as for `times`."""
        return weighted_sums(rows, [(self.crow, self.col, entries), self._transposed(entries)])

    def _transposed(self, entries: Tensor) -> Csr:
        return self.crow_t, self.col_t, entries.index_select(0, self.transpose_order)

    def dots(self, rows: Tensor) -> Tensor:
        """Return rows[i]·rows[j] for every stored (i, j), shape (nnz,)."""
        if self.col.numel() == 0:
            return rows.new_zeros(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            pattern = torch.sparse_csr_tensor(
                self.crow,
                self.col,
                self.values.to(rows.dtype),
                size=(self.n, self.n),
                check_invariants=False,
            )
        found: Tensor = torch.sparse.sampled_addmm(pattern, rows, rows.t(), beta=0.0).values()
        return found

    def of_rows(self, numbers: Tensor) -> Tensor:
        """Return each stored entry's row's number, (nnz,), from one number a row, (N,)."""
        return numbers.index_select(0, self.row)

    def of_columns(self, numbers: Tensor) -> Tensor:
        """Return each stored entry's column's number, (nnz,), from one number a row, (N,)."""
        return numbers.index_select(0, self.col)

    def row_sums(self, entries: Tensor) -> Tensor:
        """Sum per-entry numbers, shape (nnz,), over each row, shape (N,)."""
        return entries.new_zeros(self.n).index_add_(0, self.row, entries)

    @property
    def nonempty(self) -> Tensor:
        """Which rows store anything, shape (N,), bool."""
        return self.crow[1:] > self.crow[:-1]
