"""Differences between rows of a suite, with intervals: paired bootstrap over sessions and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Group = tuple[str, str | None]
# What a row is compared with: see `comparisons`.
KINDS = ("best baseline", "without embeddings", "reference")
DRAWS = 2000
LEVEL = 0.95
_DRAWS_AT_ONCE = 250


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric's mean difference a − b.

    Attributes:
        low, high: 95% interval of the bootstrap.
        p: two-sided bootstrap p-value of no difference, at least 2/(draws + 1).
    """

    difference: float
    low: float
    high: float
    p: float


def gains(ranks: npt.NDArray[np.int64], metric: str) -> Floats:
    """Return each test row's contribution to ``HR@k`` or ``NDCG@k``.

    Args:
        ranks: rank of each row's one target, 1 is best, any shape.
        metric: name with its cut-off.

    Returns:
        Values in [0, 1], of the same shape.
    """
    kind, _, cut = metric.partition("@")
    inside = ranks <= int(cut)
    if kind == "HR":
        return inside.astype(np.float64)
    return np.where(inside, 1 / np.log2(ranks + 1.0), 0.0)


def paired_bootstrap(a: Floats, b: Floats, *, draws: int = DRAWS, seed: int = 0) -> Difference:
    """Compare two rows on the same test sessions.

    A draw takes test sessions with replacement, the same for both sides, and seeds with
    replacement, for each side on its own. Few seeds drawn from themselves vary too little, by
    (S − 1)/S in variance, so a draw's seed mean is moved away from the mean of all seeds by
    √(S/(S − 1)) (Rao and Wu, 1988), and further by the ratio of Student's to the normal quantile
    for S − 1 degrees of freedom (assumption). With one seed only the sessions are drawn: what
    another seed would give is then not in the interval.

    Args:
        a, b: gains, (seeds, sessions), equal numbers of sessions in the same order.
        draws: bootstrap draws.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    sessions = a.shape[1]
    found = []
    for start in range(0, draws, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, draws - start)
        weights = rng.multinomial(sessions, np.full(sessions, 1 / sessions), size=count) / sessions
        found.append(_seed_means(a @ weights.T, rng) - _seed_means(b @ weights.T, rng))
    differences = np.concatenate(found)
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    p = min(1.0, 2 * (1 + min(below, above)) / (draws + 1))
    return Difference(float(a.mean() - b.mean()), float(low), float(high), p)


def _seed_means(values: Floats, rng: np.random.Generator) -> Floats:
    """Return one seed mean a draw; `values` is (seeds, draws)."""
    seeds, draws = values.shape
    centre: Floats = values.mean(axis=0)
    if seeds == 1:
        return centre
    drawn = rng.integers(seeds, size=(seeds, draws))
    moved: Floats = np.take_along_axis(values, drawn, axis=0).mean(axis=0) - centre
    moved *= math.sqrt(seeds / (seeds - 1)) * _student_over_normal(seeds - 1)
    return centre + moved


def _student_over_normal(degrees: int) -> float:
    from scipy import stats

    top = (1 + LEVEL) / 2
    return float(stats.t.ppf(top, degrees) / stats.norm.ppf(top))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's step-down rule (Holm, 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def comparisons(
    ranks: Mapping[Group, Sequence[npt.NDArray[np.int64]]],
    valid: Mapping[Group, float],
    plain_of: Mapping[Group, Group],
    reference_of: Mapping[Group, Group] | None = None,
    *,
    metrics: Sequence[str] = ("NDCG@10", "HR@10"),
) -> list[dict[str, Any]]:
    """Compare groups with the best baseline, with their model without embeddings, and with others.

    The best baseline is the group without item embeddings that is best on validation, so the test
    part decides nothing. Holm's correction counts all comparisons of one metric and kind.

    Args:
        ranks: (model, item embeddings) → one array of ranks a seed, the same test rows everywhere.
        valid: the group's mean validation score.
        plain_of: the group without embeddings that a group with them is compared with.
        reference_of: the group with the reference embeddings that a group is compared with.
        metrics: what to compare.

    Returns:
        Entries for ``results.json``: kind (one of `KINDS`), metric,
        model, item_embeddings, against, difference, low, high, p, p_holm, seeds of both sides and
        sessions.
    """
    plain = [group for group in ranks if group[1] is None]
    pairs: dict[str, list[tuple[Group, Group]]] = {kind: [] for kind in KINDS}
    if plain:
        best = max(plain, key=lambda group: valid[group])
        pairs["best baseline"] = [(group, best) for group in ranks if group != best]
    pairs["without embeddings"] = [(g, plain_of[g]) for g in ranks if g in plain_of]
    others = reference_of or {}
    pairs["reference"] = [(group, others[group]) for group in ranks if group in others]
    found: list[dict[str, Any]] = []
    for metric in metrics:
        values = {group: gains(np.stack(list(rows)), metric) for group, rows in ranks.items()}
        for kind, chosen in pairs.items():
            results = [paired_bootstrap(values[group], values[other]) for group, other in chosen]
            adjusted = holm([result.p for result in results])
            for (group, other), result, p_holm in zip(chosen, results, adjusted, strict=True):
                found.append(
                    {
                        "kind": kind,
                        "metric": metric,
                        "model": group[0],
                        "item_embeddings": group[1],
                        "against": {"model": other[0], "item_embeddings": other[1]},
                        **asdict(result),
                        "p_holm": p_holm,
                        "seeds": [len(ranks[group]), len(ranks[other])],
                        "sessions": int(values[group].shape[1]),
                    }
                )
    return found
