"""Fresh probes on states whose content is known."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_tpad.stages.alignment_summary import held_out_q_gain
from recbole_tpad.stages.fresh_probes import category_accuracy, effective_rank, probe_r2, variance


def normal(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_effective_rank_counts_directions() -> None:
    assert effective_rank(normal(5000, 6)) == pytest.approx(6, abs=0.05)
    assert effective_rank(normal(5000, 2) @ normal(2, 9, 1)) <= 2
    line = normal(100, 1) @ torch.ones(1, 5) + 7
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.ones(10, 4)) == 0


def test_variance() -> None:
    assert variance(torch.tensor([[0.0, 5.0], [2.0, 5.0]])) == 0.5


def test_the_probe_finds_linear_and_other_dependence() -> None:
    x = normal(800, 4)
    assert probe_r2(x, x @ normal(4, 3, 2)) > 0.99
    assert probe_r2(x, x[:, :1].abs()) > 0.8
    noisy = x[:, :2] + normal(800, 2, 3)
    assert probe_r2(x, noisy) == pytest.approx(0.5, abs=0.1)


def test_the_probe_finds_nothing_where_nothing_is() -> None:
    assert probe_r2(normal(800, 20), normal(800, 5, 1)) < 0.05
    assert probe_r2(torch.ones(100, 3), normal(100, 2)) <= 0
    assert math.isnan(probe_r2(normal(9, 2), normal(9, 2)))


def test_category_accuracy() -> None:
    category = torch.arange(600) % 3
    centres = normal(3, 8, 4) * 4
    assert category_accuracy(normal(600, 8) + centres[category], category) > 0.95
    assert category_accuracy(normal(600, 8), category) == pytest.approx(1 / 3, abs=0.15)
    unknown = torch.full((600,), -1)
    assert math.isnan(category_accuracy(normal(600, 8), unknown))


def test_a_fresh_q_gains_what_the_information_is() -> None:
    z, noise = normal(4000, 3), normal(4000, 3, 1)
    rho = 0.8
    gain = held_out_q_gain(rho * z + math.sqrt(1 - rho**2) * noise, z)
    assert gain == pytest.approx(-1.5 * math.log(1 - rho**2), rel=0.15)
    assert held_out_q_gain(noise, z) < 0.05
