"""Full ranking by counting: one rank a row, from which every metric of one target follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recbole_tpad.errors import InputError
from recbole_tpad.results import WARM_FROM

Ints = npt.NDArray[np.int64]
# Scores of a batch and of the one before, comparison masks, and the masks as torch sums them, in
# bytes a score (measured at a million items: 17).
_BYTES_PER_SCORE = 18


class EvaluationError(InputError):
    """A model's scores cannot be ranked; a metric computed from them would be meaningless."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Ranks of an evaluation part, in the order of its rows.

    Attributes:
        ranks: 1 is best, (rows,).
        targets: RecBole item ids of the targets, (rows,).
        sessions: RecBole session ids, (rows,).
    """

    ranks: Ints
    targets: Ints
    sessions: Ints


def rows_per_batch(n_items: int, budget_mb: float, limit: int) -> int:
    """Return how many rows of scores fit into a memory budget, between 1 and `limit`."""
    return int(max(1, min(limit, budget_mb * 2**20 // (n_items * _BYTES_PER_SCORE))))


def target_ranks(
    scores: Tensor, targets: Tensor, history: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rank each row's target among all items by counting the items before it.

    Items with equal scores stand in the order of their ids (those of sorted tokens), so the same
    scores always give the same rank. The padding id 0 is never a candidate.

    Args:
        scores: (B, n_items); changed in place.
        targets: item ids, (B,).
        history: item ids that are no candidates in their row, (B, L), 0 for none. A target is
            always a candidate.

    Returns:
        Ranks starting at 1, (B,), and whether all candidates of a row have the same score, (B,).

    Raises:
        EvaluationError: a score is NaN.
    """
    own = _without_excluded(scores, targets, history)
    column = targets.unsqueeze(1)
    before = (scores > own).sum(dim=1)
    ids = torch.arange(scores.shape[1], device=scores.device)
    tied = scores == own
    before += (tied & (ids < column)).sum(dim=1)
    candidates = (scores > float("-inf")).sum(dim=1)
    constant = (tied.sum(dim=1) == candidates) & (candidates > 1)
    return before + 1, constant


def sorted_ranks(
    scores: Tensor, targets: Tensor, history: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rank as `target_ranks` does, by sorting all items; slower, for comparison."""
    _without_excluded(scores, targets, history)
    order = torch.sort(scores, dim=1, descending=True, stable=True)
    ranks = (order.indices == targets.unsqueeze(1)).int().argmax(dim=1) + 1
    candidates = (scores > float("-inf")).sum(dim=1)
    last = order.values.gather(1, (candidates - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    return ranks, (order.values[:, 0] == last) & (candidates > 1)


def _without_excluded(scores: Tensor, targets: Tensor, history: Tensor | None) -> Tensor:
    """Set what is no candidate to -inf, in place; return the targets' own scores, (B, 1)."""
    if bool(torch.isnan(scores).any()):
        bad = int(torch.isnan(scores).any(dim=1).sum())
        raise EvaluationError(
            f"The model scored NaN in {bad} of {scores.shape[0]} rows: training diverged. Lower "
            "learning_rate, or check the item embeddings."
        )
    column = targets.unsqueeze(1)
    own = scores.gather(1, column)
    scores[:, 0] = float("-inf")
    if history is not None:
        scores.scatter_(1, history, float("-inf"))
        scores.scatter_(1, column, own)
    return own


def refuse_constant(constant: npt.NDArray[np.bool_], model: str) -> None:
    """Raise where a model scores all items alike in every row.

    Raises:
        EvaluationError: so it is; ties would look like a plausible metric.
    """
    if constant.size and constant.all():
        raise EvaluationError(
            f"{model} gives all items the same score in every one of {constant.size} rows, so "
            "there is nothing to rank. Has it been trained, and does it use its input?"
        )


def metrics_at(ranks: Ints, topk: Sequence[int]) -> dict[str, float]:
    """Return HR@k and NDCG@k of rows with one target each; empty rows give an empty mapping."""
    if not len(ranks):
        return {}
    gain = 1.0 / np.log2(ranks + 1.0)
    hits = {f"HR@{k}": float((ranks <= k).mean()) for k in topk}
    return {**hits, **{f"NDCG@{k}": float((gain * (ranks <= k)).mean()) for k in topk}}


def recbole_metrics(ranks: Ints, names: Sequence[str], topk: Sequence[int]) -> dict[str, float]:
    """Return metrics under RecBole's lower-case keys, for one target a row.

    Raises:
        InputError: a metric that does not follow from the rank.
    """
    by_name = {
        "hit": lambda k: ranks <= k,
        "recall": lambda k: ranks <= k,
        "precision": lambda k: (ranks <= k) / k,
        "mrr": lambda k: (ranks <= k) / ranks,
        "ndcg": lambda k: (ranks <= k) / np.log2(ranks + 1.0),
    }
    found = {}
    for name in names:
        if name.lower() not in by_name:
            raise InputError(f"Metric '{name}' is not supported here. Known: {', '.join(by_name)}.")
        for k in topk:
            found[f"{name.lower()}@{k}"] = float(np.mean(by_name[name.lower()](k)))
    return found


def slices_by_frequency(
    ranks: Ints, frequency: Ints, topk: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Return metrics by how often the target occurs in training.

    Args:
        ranks: (rows,).
        frequency: training interactions of each row's target, (rows,).
        topk: cut-offs.

    Returns:
        ``warm`` (at least 5), ``rare`` (1 to 4) and ``unseen`` (0), each with ``rows`` and, where
        it has rows, the metrics.
    """
    parts: Mapping[str, npt.NDArray[np.bool_]] = {
        "warm": frequency >= WARM_FROM,
        "rare": (frequency >= 1) & (frequency < WARM_FROM),
        "unseen": frequency == 0,
    }
    return {
        name: {"rows": int(mask.sum()), **metrics_at(ranks[mask], topk)}
        for name, mask in parts.items()
    }
