"""What stage 2b did to the states: judged on what is exported and by fresh probes."""

from __future__ import annotations

import torch

from recbole_tpad.objectives import DiagonalGaussian
from recbole_tpad.stages.alignment import q_over_marginal, standardise
from recbole_tpad.stages.alignment_heads import AlignmentHeads
from recbole_tpad.stages.fresh_probes import (
    category_accuracy,
    effective_rank,
    neighbour_overlap,
    probe_r2,
    variance,
)

States = dict[str, torch.Tensor]
_MOST_ROWS = 5000  # the probes read a sample of a larger catalogue


def alignment_summary(
    before: States,
    after: States,
    teacher: States,
    heads: dict[str, AlignmentHeads],
    category: torch.Tensor,
) -> dict[str, float]:
    """Measure a finished alignment.

    Args:
        before, after, teacher: modality → (N, width) states of K(0), K(1) and T, on the CPU.
        heads: of `train_alignment`.
        category: (N,) int64, −1 where unknown.

    Returns:
        Per modality: neighbours shared with T before and after; variance and effective rank of w^H
        and w^L; how well a fresh probe predicts T's states from w^L (R², held out); how much
        likelier a fresh q makes held-out w^L than its marginal (nats). Over modalities: held-out
        category accuracy of a fresh probe on K(0), K(1) and w^L.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(category), generator=generator)[:_MOST_ROWS].sort().values
    before, after, teacher = ({n: t[rows] for n, t in s.items()} for s in (before, after, teacher))
    category = category[rows]
    found = {
        f"{when}_neighbours_shared_with_T_{name}": overlap
        for when, states in (("K0", before), ("K1", after))
        for name, overlap in neighbour_overlap(states, teacher).items()
    }
    lows = {}
    for name, states in after.items():
        head = heads[name]
        device = next(head.low.parameters()).device
        with torch.no_grad():
            high = head.high(states.to(device)).cpu()
            low = lows[name] = head.low(states.to(device)).cpu()
        found |= {
            f"variance_high_{name}": variance(high),
            f"variance_low_{name}": variance(low),
            f"rank_high_{name}": effective_rank(high),
            f"rank_low_{name}": effective_rank(low),
            f"low_predicts_T_{name}": probe_r2(low, teacher[name]),
            f"q_gain_held_out_{name}": held_out_q_gain(low, teacher[name]),
        }
    for label, chosen in (("K0", before), ("K1", after), ("w_low", lows)):
        joined = torch.cat(list(chosen.values()), dim=1)
        found[f"{label}_category_accuracy"] = category_accuracy(joined, category)
    return found


def held_out_q_gain(low: torch.Tensor, z: torch.Tensor, steps: int = 150) -> float:
    """Nats by which a freshly fitted q(w^L|z) beats w^L's own Gaussian on held-out items.

    Args:
        low: (N, p).
        z: (N, width).
        steps: of Adam, on all fitted items at once.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        z, low = standardise(z), standardise(low)
        order = torch.randperm(len(low))
        fit, held = order.tensor_split([len(low) * 4 // 5])
        q = DiagonalGaussian(z.shape[1], low.shape[1])
        optimizer = torch.optim.Adam(q.parameters(), lr=3e-3)
        for _ in range(steps):
            loss = -q.log_likelihood(low[fit], z[fit])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            return float(q_over_marginal(q, low[held], z[held]))
