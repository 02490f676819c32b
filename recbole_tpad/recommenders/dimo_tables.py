"""DIMO's two item tables in few passes: what is done to every item in every training step.

At batch 50 a step is dominated by passes over the N×2d tables. So dropout, row masks and
propagation are one function that takes a few columns through all of it while they are in the
cache, and everything that reads the propagated table but the logits is another; both have their
own gradients.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from recbole_tpad.recommenders.propagation import (
    Propagation,
    SparseMatrix,
    Workspace,
    column_blocks,
    empty_table,
    row_pieces,
)
from recbole_tpad.recommenders.similar_items import SimilarItems

_EPS = 1e-8
_LN10 = 2.302585092994046
_LEVELS = 2**16
_MASK_PIECE = 2**22  # entries drawn at once; a multiple of four


def propagated_tables(
    own: Tensor,
    modality: Tensor | None,
    trained: Tensor,
    dropout: float,
    propagation: Propagation,
    layers: int,
) -> Tensor:
    """Return [E' ‖ M'] (E' alone without M): dropout, rows that must be zero, propagation.

    Args:
        own: E, (N, d).
        modality: M, (N, d), or None.
        trained: items with an ID row, (N,), bool; the others and the padding row 0 are zero in E.
        dropout: probability of dropping an entry, applied by steps of 2⁻¹⁶; 0 in evaluation.
        propagation: I + A; the padding row is its own.
        layers: how often it is applied; 0 leaves the tables as they are.

    Returns:
        Shape (N, d or 2d); the padding row is zero.
    """
    found: Tensor = _PropagatedTables.apply(  # type: ignore[no-untyped-call]
        own, modality, trained, dropout, propagation, layers
    )
    return found


@torch.no_grad()
def connected_tables(
    own: Tensor,
    modality: Tensor,
    trained: Tensor,
    propagation: Propagation,
    layers: int,
    similar: SimilarItems,
) -> Tensor:
    """Return [E' ‖ M'] of evaluation, where unseen items co-occur as similar items do.

    Row c of A is Σ_j w_cj A_j for an item c without training interactions: each step adds to its
    row what it adds to its similar items' rows on average. No other row changes.

    Args:
        own, modality, trained, propagation, layers: see `propagated_tables`.
        similar: of the unseen items.

    Returns:
        Shape (N, 2d); the padding row is zero.
    """
    n, d = own.shape
    out = empty_table((n, 2 * d), own)
    blocks = column_blocks(n, d, own)
    workspace = Workspace(n, blocks, own)
    for view, (table, zero) in enumerate(zip((own, modality), _zero_rows(trained), strict=True)):
        for part in blocks:
            block, spare = workspace.pair(part.stop - part.start)
            block.copy_(table[:, part]).index_fill_(0, zero, 0)
            for _ in range(layers):
                others = block[similar.items] - similar.means(block)
                after = propagation.steps(block, 1, spare)
                block, spare = after, block if after is spare else spare
                block[similar.items] = others + similar.means(block)
            out[:, view * d + part.start : view * d + part.stop] = block
    return out


def keep_mask(shape: tuple[int, int], dropout: float, device: torch.device) -> Tensor:
    """Draw which entries dropout keeps, as a bool tensor of `shape`.

    Sixteen random bits an entry, drawn 64 at a time: about five times faster on a CPU than a
    Bernoulli draw an entry.
    """
    kept = empty_table(shape, torch.empty(0, dtype=torch.bool, device=device))
    # Signed: −2¹⁵ is the lowest of the 2¹⁶ equally likely levels.
    lowest = round(dropout * _LEVELS) - _LEVELS // 2
    flat = kept.view(-1)
    # Pieces of whole words: the numbers drawn do not depend on how they are cut.
    step = flat.numel() if device.type != "cpu" else _MASK_PIECE
    for start in range(0, flat.numel(), max(step, 1)):
        part = flat[start : start + step]
        words = torch.empty((part.numel() + 3) // 4, dtype=torch.int64, device=device)
        words.random_(-(2**63), None)
        # Bytes of 0 and 1: torch compares into bool, and multiplies by it, several times slower.
        torch.ge(words.view(torch.int16)[: part.numel()], lowest, out=part.view(torch.int8))
    return kept


class _PropagatedTables(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        own: Tensor,
        modality: Tensor | None,
        trained: Tensor,
        dropout: float,
        propagation: Propagation,
        layers: int,
    ) -> Tensor:
        tables = [own] if modality is None else [own, modality]
        n, d = own.shape
        kept = None
        if dropout > 0:
            # Multiplying by bytes is several times faster in torch than by bool.
            kept = keep_mask((n, len(tables) * d), dropout, own.device).view(torch.int8)
        zero = _zero_rows(trained)[: len(tables)]
        out = empty_table((n, len(tables) * d), own)
        blocks = column_blocks(n, d, own)
        workspace = Workspace(n, blocks, own)
        for view, table in enumerate(tables):
            for part in blocks:
                columns = slice(view * d + part.start, view * d + part.stop)
                block, spare = workspace.pair(part.stop - part.start)
                if kept is None:
                    block.copy_(table.detach()[:, part])
                else:
                    torch.mul(table.detach()[:, part], kept[:, columns], out=block)
                block.index_fill_(0, zero[view], 0)
                block = propagation.steps(block, layers, spare)
                torch.mul(block, 1 / (1 - dropout), out=out[:, columns])
        ctx.propagation, ctx.layers, ctx.dropout = propagation, layers, dropout
        ctx.save_for_backward(kept, *zero)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        kept, *zero = ctx.saved_tensors
        propagation: Propagation = ctx.propagation
        n, d = grad.shape[0], grad.shape[1] // len(zero)
        # The transpose of the steps is the steps between two scalings (see Propagation).
        before = propagation.degree[:, None]
        after = before / (1 - ctx.dropout)
        blocks = column_blocks(n, d, grad)
        workspace = Workspace(n, blocks, grad)
        found: list[Tensor | None] = [None, None]
        for view, rows in enumerate(zero):
            if not ctx.needs_input_grad[view]:
                continue
            out = found[view] = empty_table((n, d), grad)
            for part in blocks:
                columns = slice(view * d + part.start, view * d + part.stop)
                block, spare = workspace.pair(part.stop - part.start)
                torch.div(grad[:, columns], before, out=block)
                block = propagation.steps(block, ctx.layers, spare)
                if kept is not None:
                    block *= kept[:, columns]
                torch.mul(block, after, out=out[:, part])
            out.index_fill_(0, rows, 0)
        return *found, None, None, None, None


def _zero_rows(trained: Tensor) -> tuple[Tensor, Tensor]:
    """Ids of the rows that are zero in E (not trained, padding) and in M (padding)."""
    absent = ~trained
    absent[0] = True
    return absent.nonzero().squeeze(1), absent.new_zeros(1, dtype=torch.int64)


class TableReads(NamedTuple):
    """What a step reads from the propagated tables.

    Attributes:
        table: the table itself, for the logits and for nothing else.
        rows: rows of the asked items, (number of items, columns).
        cooccurrence: L_co of every item, (N,); items without partners are to be left out.
    """

    table: Tensor
    rows: Tensor
    cooccurrence: Tensor


def read_tables(
    table: Tensor, items: Tensor, size: int, partners: SparseMatrix, strangers: SparseMatrix
) -> TableReads:
    """Gather rows and compute L_co on the first `size` columns.

    L_co (DIMO, SIGIR 2024) is −log10( e^c(i,p_i) / (e^c(i,p_i) + Σ_n e^c(i,n)) ): an item is nearer
    to the mean of its partners than to items it never meets; c is the cosine, 0 with a zero row.

    Args:
        table: propagated tables, (N, d or 2d).
        items: item ids, (number of items,).
        size: d.
        partners: each item's most frequent partners, weights summing to one.
        strangers: each item's sampled items that never co-occur with it.
    """
    found = _TableReads.apply(table, items, size, partners, strangers)  # type: ignore[no-untyped-call]
    return TableReads(*found)


class _TableReads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        items: Tensor,
        size: int,
        partners: SparseMatrix,
        strangers: SparseMatrix,
    ) -> tuple[Tensor, Tensor, Tensor]:
        own = table.detach()[:, :size]
        pieces = row_pieces(len(own), size, own)
        unit = empty_table((len(own), size), own)
        norm, near_norm, attraction = own.new_empty((3, len(own)))
        for rows in pieces:
            torch.linalg.vector_norm(own[rows], dim=1, out=norm[rows])
            torch.mul(own[rows], _inverse(norm[rows])[:, None], out=unit[rows])
        # Weights times norms: the mean of the partners' own rows from their directions.
        near = partners.times(unit, partners.values * partners.of_columns(norm))
        for rows in pieces:
            torch.linalg.vector_norm(near[rows], dim=1, out=near_norm[rows])
            torch.sum(unit[rows] * near[rows], dim=1, out=attraction[rows])
        inverse, near_inverse = _inverse(norm), _inverse(near_norm)
        attraction *= near_inverse
        exponents = strangers.dots(unit).exp_()
        weight = strangers.row_sums(exponents) * (-attraction).exp()
        ctx.partners, ctx.strangers, ctx.size = partners, strangers, size
        ctx.save_for_backward(
            items, inverse, unit, near, near_inverse, attraction, exponents, weight
        )
        return table.view_as(table), table.index_select(0, items), weight.log1p() / _LN10

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        into_table, into_rows, into_losses = grads
        items, inverse, unit, near, near_inverse, attraction, exponents, weight = ctx.saved_tensors
        partners: SparseMatrix = ctx.partners
        strangers: SparseMatrix = ctx.strangers
        # The logits alone read the table, so their gradient is nobody else's; not a copy of it.
        found = into_table if into_table.is_contiguous() else into_table.contiguous()
        found.index_add_(0, items, into_rows)
        # loss = log10(1 + w), w = e^−a Σ e^c: dw/da = −w, dw/dc = e^−a e^c.
        base = into_losses / (_LN10 * (1 + weight))
        by_attraction = -base * weight
        by_cosine = strangers.of_rows(base * (-attraction).exp()) * exponents
        by_unit = strangers.both_ways_times(unit, by_cosine)
        # a = u·p/|p|: da/dp = (u − a p/|p|)/|p|.
        share = (by_attraction * near_inverse)[:, None]
        along = (attraction * near_inverse)[:, None]
        into_near = empty_table(tuple(near.shape), near)
        own = found[:, : ctx.size]
        for rows in row_pieces(len(near), ctx.size, near):
            piece = torch.addcmul(unit[rows], near[rows], along[rows], value=-1)
            torch.mul(piece, share[rows], out=into_near[rows])
            pull = by_unit[rows].addcmul_(near[rows], share[rows])
            # u = x/|x|: what goes along u is lost, the rest is divided by |x|.
            pull.addcmul_(unit[rows], (pull * unit[rows]).sum(1, keepdim=True), value=-1)
            own[rows].addcmul_(pull, inverse[rows, None])
        partners.transposed_times(into_near, partners.values, add_to=own)
        return found, None, None, None, None


def _inverse(norm: Tensor) -> Tensor:
    """One over each norm, (N,); 0 for one below 1e-8, whose row has cosine 0 with all."""
    return torch.where(norm > _EPS, 1 / norm.clamp(min=_EPS), 0.0)
