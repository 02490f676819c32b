"""Cold items (no training interaction): how many of them belong into a list, and the two errors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ColdErrors(NamedTuple):
    """Counts that the two error rates are made of; they add over batches.

    Attributes:
        warm_rows: rows with a warm target. flooded: those with a cold item in the top k.
        cold_rows: rows with a cold target. buried: those whose target is not in the top k, though
            it is among the best k of the cold items.
        cold_slots, slots: cold items in the top k, and places there, over all rows.
    """

    warm_rows: int
    flooded: int
    cold_rows: int
    buried: int
    cold_slots: int
    slots: int

    def __add__(self, other: object) -> ColdErrors:
        if not isinstance(other, ColdErrors):
            return NotImplemented
        return ColdErrors(*(a + b for a, b in zip(self, other, strict=True)))


def entry_shifts(scores: Tensor, cold: Tensor, k: int) -> Tensor:
    """Return what must be added to cold scores for 1, 2, … k of them to be in a row's top k.

    The m-th best cold item is in the top k as soon as it beats the (k − m + 1)-th best warm one,
    so row b holds exactly as many cold items at shift s as it has entries below s.

    Args:
        scores: (B, n_items); −inf for what is no candidate.
        cold: which items are cold, (n_items,), bool.
        k: length of the list.

    Returns:
        Ascending, (B, k); +inf where there are not that many cold items.
    """
    infinity = float("inf")
    warm_scores = scores.masked_fill(cold, -infinity)
    cold_scores = scores.masked_fill(~cold, -infinity)
    size = min(k, scores.shape[1])
    best_warm = warm_scores.topk(size, dim=1).values.flip(1)  # the k-th best first
    best_cold = cold_scores.topk(size, dim=1).values
    shifts = best_warm - best_cold
    shifts[best_cold == -infinity] = infinity
    if size < k:
        pad = shifts.new_full((len(shifts), k - size), infinity)
        shifts = torch.cat([shifts, pad], dim=1)
    return shifts


def calibrated_shift(shifts: Tensor, share: float) -> float:
    """Return the shift at which cold items hold a share of all places in the lists.

    Args:
        shifts: of `entry_shifts`, (rows, k).
        share: wanted share of places, in [0, 1].

    Returns:
        The middle of the interval of shifts that give the nearest possible share; 0 where there
        is no cold item.
    """
    entries = shifts.flatten().double()
    finite = entries[entries.isfinite()].sort().values
    if not len(finite):
        return 0.0
    wanted = min(round(share * len(entries)), len(finite))
    if wanted == 0:
        return float(finite[0])
    if wanted == len(finite):
        return float(finite[-1]) + 1.0
    return float((finite[wanted - 1] + finite[wanted]) / 2)


def cold_errors(scores: Tensor, targets: Tensor, cold: Tensor, k: int) -> ColdErrors:
    """Count flooded and buried rows.

    Args:
        scores: (B, n_items); −inf for what is no candidate.
        targets: item ids, (B,).
        cold: which items are cold, (n_items,), bool.
        k: length of the list.
    """
    top = scores.topk(min(k, scores.shape[1]), dim=1)
    shown = cold[top.indices] & (top.values > float("-inf"))
    of_cold = cold[targets]
    own = scores.gather(1, targets.unsqueeze(1))
    better = scores > own
    rank = better.sum(dim=1)
    among_cold = (better & cold).sum(dim=1)
    buried = of_cold & (rank >= k) & (among_cold < k)
    return ColdErrors(
        warm_rows=int((~of_cold).sum()),
        flooded=int((shown.any(dim=1) & ~of_cold).sum()),
        cold_rows=int(of_cold.sum()),
        buried=int(buried.sum()),
        cold_slots=int(shown.sum()),
        slots=int((top.values > float("-inf")).sum()),
    )
