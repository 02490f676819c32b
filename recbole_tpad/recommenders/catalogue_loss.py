"""Cross-entropy over a whole catalogue, straight from session vectors and item rows.

Beside the two factors only e^logits is kept for the backward pass, and of a large catalogue not
even that: the items are taken in pieces, and what exceeds a budget is computed again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_tpad.recommenders.propagation import empty_table

_PIECE = 2**24  # bytes of logits computed at once
_BUDGET = 2**29  # bytes of e^logits kept for the backward pass


def catalogue_cross_entropy(
    sessions: Tensor,
    table: Tensor,
    offsets: Tensor,
    targets: Tensor,
    *,
    piece_bytes: int = _PIECE,
    budget_bytes: int = _BUDGET,
) -> Tensor:
    """Return the mean of −log softmax(sessions · tableᵀ + offsets)[target], a scalar.

    Args:
        sessions: (B, columns).
        table: (N, columns).
        offsets: added to every session's logits, −inf for what is no candidate, (N,); no gradient.
        targets: (B,).
        piece_bytes: logits computed at once.
        budget_bytes: e^logits kept for the backward pass; beyond, they are computed twice.
    """
    # Exponents of half-precision logits would be too coarse: not under autocast.
    with torch.autocast(table.device.type, enabled=False):
        found: Tensor = _CatalogueCrossEntropy.apply(  # type: ignore[no-untyped-call]
            sessions.to(table.dtype), table, offsets, targets, piece_bytes, budget_bytes
        )
    return found


class _CatalogueCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sessions: Tensor,
        table: Tensor,
        offsets: Tensor,
        targets: Tensor,
        piece_bytes: int,
        budget_bytes: int,
    ) -> Tensor:
        row_bytes = len(sessions) * sessions.element_size()
        ctx.step = max(1, piece_bytes // row_bytes)
        keep = row_bytes * len(table) <= budget_bytes
        maxima, sums, kept = [], [], []
        for items in _pieces(len(table), ctx.step):
            logits = torch.addmm(offsets[items], sessions, table[items].t())
            # A piece in which nothing is a candidate has no finite maximum.
            maximum = logits.amax(dim=1).clamp_(min=torch.finfo(logits.dtype).min)
            exponents = logits.sub_(maximum[:, None]).exp_()
            maxima.append(maximum)
            sums.append(exponents.sum(dim=1))
            if keep:
                kept.append(exponents)
        highest = torch.stack(maxima)
        total = highest + torch.stack(sums).log()
        whole = total.logsumexp(dim=0)
        own = (sessions * table.index_select(0, targets)).sum(1) + offsets[targets]
        ctx.save_for_backward(sessions, table, offsets, targets, highest, whole, *kept)
        return (whole - own).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        sessions, table, offsets, targets, highest, whole, *kept = ctx.saved_tensors
        share = grad / len(sessions)
        into_sessions = -share * table.index_select(0, targets)
        into_table = empty_table(tuple(table.shape), table)
        for k, items in enumerate(_pieces(len(table), ctx.step)):
            if kept:
                exponents = kept[k]
            else:
                logits = torch.addmm(offsets[items], sessions, table[items].t())
                exponents = logits.sub_(highest[k, :, None]).exp_()
            # e^logits stays as it is: the factor goes to the B rows of the sessions.
            factor = (share * (highest[k] - whole).exp())[:, None]
            into_sessions += factor * (exponents @ table[items])
            torch.mm(exponents.t(), factor * sessions, out=into_table[items])
        into_table.index_add_(0, targets, -share * sessions)
        return into_sessions, into_table, None, None, None, None


def _pieces(n: int, step: int) -> list[slice]:
    return [slice(start, min(n, start + step)) for start in range(0, n, step)]
