"""Cross-entropy over a catalogue in pieces, against torch's own on the whole of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from recbole_tpad.recommenders.catalogue_loss import catalogue_cross_entropy

B, N, D = 6, 23, 5
WAYS = {
    "whole": {},
    "in pieces": {"piece_bytes": 4 * B * 8},
    "in pieces, computed twice": {"piece_bytes": 4 * B * 8, "budget_bytes": 0},
}


def case(scale: float = 1.0) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    sessions = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    table = (scale * torch.randn(N, D, dtype=torch.float64)).requires_grad_()
    offsets = torch.zeros(N, dtype=torch.float64)
    offsets[[0, 4, 5, 6, 7, 22]] = float("-inf")  # one piece of four is empty
    return sessions, table, offsets, torch.tensor([1, 2, 2, 8, 21, 9])


@pytest.mark.parametrize("keys", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_value_and_gradient_equal_torchs(keys: dict[str, Any], scale: float) -> None:
    sessions, table, offsets, targets = case(scale)
    expected = functional.cross_entropy(sessions @ table.t() + offsets, targets)
    found = catalogue_cross_entropy(sessions, table, offsets, targets, **keys)
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(3 * found, (sessions, table), retain_graph=True)
    theirs = torch.autograd.grad(3 * expected, (sessions, table))
    torch.testing.assert_close(ours, theirs)
    # A second pass over the same graph: nothing that is kept has been changed.
    torch.testing.assert_close(torch.autograd.grad(3 * found, (sessions, table)), theirs)


@pytest.mark.parametrize("keys", WAYS.values(), ids=WAYS.keys())
def test_gradients_by_finite_differences(keys: dict[str, Any]) -> None:
    sessions, table, offsets, targets = case()

    def call(sessions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return catalogue_cross_entropy(sessions, table, offsets, targets, **keys)

    assert torch.autograd.gradcheck(call, (sessions, table))


def test_half_precision_sessions_are_scored_in_the_tables_precision() -> None:
    sessions, table, offsets, targets = (
        t.detach().float() if t.is_floating_point() else t for t in case(30.0)
    )
    expected = functional.cross_entropy(sessions.bfloat16().float() @ table.t() + offsets, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = catalogue_cross_entropy(sessions.bfloat16(), table, offsets, targets)
    torch.testing.assert_close(found, expected)


def test_a_nan_is_not_hidden() -> None:
    sessions, table, offsets, targets = (t.detach() for t in case())
    table[3, 1] = float("nan")
    assert bool(catalogue_cross_entropy(sessions, table, offsets, targets).isnan())
