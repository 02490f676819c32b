from __future__ import annotations

import math

import pytest
import torch

from recbole_tpad.objectives import (
    DiagonalGaussian,
    info_nce_bound,
    soft_target_divergence,
    vclub,
    vclub_pairwise,
)


def gaussian_pairs(n: int, d: int, rho: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return z, rho * z + math.sqrt(1 - rho**2) * noise


def test_closed_form_equals_the_pairwise_sum_and_its_gradient() -> None:
    torch.manual_seed(0)
    mean, log_variance, w = (
        torch.randn(17, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)
    )
    closed, pairwise = vclub(mean, log_variance, w), vclub_pairwise(mean, log_variance, w)
    torch.testing.assert_close(closed, pairwise, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad(closed, (mean, log_variance, w)),
        torch.autograd.grad(pairwise, (mean, log_variance, w)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("d", "rho"), [(4, 0.5), (2, 0.8), (8, 0.2)])
def test_vclub_with_the_true_conditional(d: int, rho: float) -> None:
    z, w = gaussian_pairs(200_000, d, rho)
    log_variance = torch.full_like(z, math.log(1 - rho**2))
    value = vclub(rho * z, log_variance, w).item()
    assert value == pytest.approx(d * rho**2 / (1 - rho**2), rel=0.03)
    assert value > -d / 2 * math.log(1 - rho**2)  # an upper bound on the mutual information


def test_a_wrong_q_can_make_it_negative() -> None:
    z, w = gaussian_pairs(20_000, 2, 0.8)
    log_variance = torch.zeros_like(z)
    assert vclub(-z, log_variance, w).item() == pytest.approx(-2 * 0.8, rel=0.05)


def test_a_fitted_q_approaches_the_true_conditional() -> None:
    z, w = (t.float() for t in gaussian_pairs(4096, 4, 0.5))
    torch.manual_seed(0)
    q = DiagonalGaussian(4, 4)
    optimizer = torch.optim.Adam(q.parameters(), lr=3e-3)
    for _ in range(400):
        loss = -q.log_likelihood(w, z)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z_new, w_new = (t.float() for t in gaussian_pairs(50_000, 4, 0.5, seed=1))
    assert vclub(*q(z_new), w_new).item() == pytest.approx(4 / 3, rel=0.15)


def test_a_constant_w_has_no_information() -> None:
    mean, log_variance = torch.randn(2, 32, 6)
    assert vclub(mean, log_variance, torch.ones(32, 6)).item() == pytest.approx(0, abs=1e-5)


def test_info_nce_never_exceeds_the_log_of_its_candidates() -> None:
    table = torch.eye(16)
    bound = info_nce_bound(table, table, torch.arange(16), torch.tensor(0.01))
    assert math.log(16) - 1e-4 < bound.item() <= math.log(16) + 1e-6
    unrelated = info_nce_bound(torch.ones(16, 16), table, torch.arange(16), torch.tensor(0.01))
    assert unrelated.item() == pytest.approx(0, abs=1e-5)


def test_soft_divergence_is_zero_only_at_the_teachers_neighbourhood() -> None:
    torch.manual_seed(0)
    table = torch.nn.functional.normalize(torch.randn(20, 4), dim=-1)
    index, temperature = torch.arange(20), torch.tensor(0.1)
    teacher = table @ table.T / temperature
    same = soft_target_divergence(table, table, index, temperature, teacher)
    assert same.item() == pytest.approx(0, abs=1e-5)
    shuffled = soft_target_divergence(table.flip(0), table, index, temperature, teacher)
    assert shuffled.item() > 1
