"""What a finished run is judged by: fresh probes and the spread of states."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

_RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_RANDOM_FEATURES = 256


def effective_rank(states: torch.Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred states (N, d); 1 … d.

    Roy and Vetterli, 2007. Constant states have rank 0.
    """
    values = torch.linalg.svdvals(states.double() - states.double().mean(0))
    if values.sum() < 1e-9:
        return 0.0
    shares = values / values.sum()
    return math.exp(-float(torch.special.xlogy(shares, shares).sum()))


def variance(states: torch.Tensor) -> float:
    """Mean variance over the dimensions of states (N, d)."""
    return float(states.double().var(0, correction=0).mean())


def probe_r2(inputs: torch.Tensor, targets: torch.Tensor, seed: int = 0) -> float:
    """Share of the targets' variance that a freshly fitted probe explains on held-out rows.

    The probe is ridge regression on the inputs and on random rectified features of them, so that
    it sees non-linear dependence; a fifth of the rows choose the penalty, a fifth are held out.

    Args:
        inputs: (N, a).
        targets: (N, b).

    Returns:
        R² over all dimensions together; ≤ 1, below 0 where the probe is worse than the mean.
        NaN with fewer than 10 rows.
    """
    if len(inputs) < 10:
        return math.nan
    generator = torch.Generator().manual_seed(seed)
    x = inputs.double() - inputs.double().mean(0)
    x = x / x.std(0).clamp(min=1e-8) * (x.std(0) > 1e-8)
    mix = torch.randn(x.shape[1], _RANDOM_FEATURES, generator=generator, dtype=x.dtype)
    shift = torch.randn(_RANDOM_FEATURES, generator=generator, dtype=x.dtype)
    features = torch.cat([x, F.relu(x @ mix / math.sqrt(x.shape[1]) + shift)], dim=1)
    y = targets.double()
    order = torch.randperm(len(x), generator=generator)
    fit, choose, held = order.tensor_split([len(x) * 3 // 5, len(x) * 4 // 5])
    centre, mean = features[fit].mean(0), y[fit].mean(0)
    design, goal = features[fit] - centre, y[fit] - mean
    gram, cross = design.T @ design, design.T @ goal
    identity = torch.eye(len(gram), dtype=x.dtype)

    def r2(weights: torch.Tensor, rows: torch.Tensor) -> float:
        error = (y[rows] - mean - (features[rows] - centre) @ weights).square().sum()
        return float(1 - error / (y[rows] - mean).square().sum().clamp(min=1e-12))

    solved = [torch.linalg.solve(gram + r * len(fit) * identity, cross) for r in _RIDGES]
    best = max(solved, key=lambda weights: r2(weights, choose))
    return r2(best, held)


def category_accuracy(states: torch.Tensor, category: torch.Tensor, seed: int = 0) -> float:
    """Held-out accuracy of a fresh linear probe (ridge on one-hot targets).

    Args:
        states: (N, d).
        category: (N,) int64, −1 where unknown.

    Returns:
        Share of a held-out fifth that is right; NaN with fewer than 10 labelled rows.
    """
    labelled = category >= 0
    if int(labelled.sum()) < 10:
        return math.nan
    x, y = states[labelled].double(), category[labelled]
    x = x - x.mean(0)
    x = x / x.square().mean().sqrt().clamp(min=1e-8)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    fit, held = order.tensor_split([len(x) * 4 // 5])
    target = F.one_hot(y[fit]).double()
    ridge = 1e-2 * len(fit) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(x[fit].T @ x[fit] + ridge, x[fit].T @ (target - target.mean(0)))
    said = (x[held] @ weights + target.mean(0)).argmax(1)
    return float((said == y[held]).double().mean())


def neighbour_overlap(
    left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], k: int = 10
) -> dict[str, float]:
    """Mean share of an item's k nearest neighbours (cosine, centred) common to two encodings."""
    result = {}
    for name in left:
        nearest = []
        for states in (left[name], right[name]):
            unit = F.normalize(states - states.mean(0), dim=-1)
            similarity = (unit @ unit.T).fill_diagonal_(-2)
            nearest.append(similarity.topk(min(k, len(unit) - 1)).indices)
        shared = (nearest[0][:, :, None] == nearest[1][:, None, :]).any(-1)
        result[name] = shared.float().mean().item()
    return result
