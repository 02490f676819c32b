from __future__ import annotations

import math

import torch

from recbole_tpad.objectives import pair_info_nce


def brute_force(
    states: torch.Tensor, pairs: list[tuple[int, int]], tau: float, known: set[tuple[int, int]]
) -> float:
    def cosine(i: int, j: int) -> float:
        return float(states[i] @ states[j] / (states[i].norm() * states[j].norm()))

    losses = []
    for a, b in pairs + [(b, a) for a, b in pairs]:
        total = 0.0
        for c in range(len(states)):
            if c == a or (c != b and ((a, c) in known or (c, a) in known)):
                continue
            total += math.exp(cosine(a, c) * math.exp(tau))
        losses.append(-math.log(math.exp(cosine(a, b) * math.exp(tau)) / total))
    return sum(losses) / len(losses)


def test_equals_brute_force() -> None:
    torch.manual_seed(0)
    states = torch.randn(7, 5, dtype=torch.float64)
    pairs = [(0, 1), (2, 3), (0, 4), (5, 6)]
    known = torch.zeros(7, 7, dtype=torch.bool)
    positives = {*pairs, (1, 5)}
    for a, b in positives:
        known[a, b] = known[b, a] = True
    loss = pair_info_nce(states, torch.tensor(pairs), torch.tensor(1.3, dtype=torch.float64), known)
    assert abs(loss.item() - brute_force(states, pairs, 1.3, positives)) < 1e-10


def test_a_masked_partner_gets_no_gradient_as_negative() -> None:
    states = torch.eye(4, requires_grad=True)
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[0, 1] = known[1, 0] = known[0, 2] = known[2, 0] = True
    known[1, 2] = known[2, 1] = True
    loss = pair_info_nce(states, torch.tensor([[0, 1]]), torch.tensor(1.0), known)
    (gradient,) = torch.autograd.grad(loss, states)
    assert gradient[2].abs().sum() == 0
    assert gradient[3].abs().sum() > 0
