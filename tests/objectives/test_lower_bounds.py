"""MINE and InfoNCE against the closed-form information of Gaussian pairs."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_tpad.objectives import (
    CosineCritic,
    Mine,
    MlpCritic,
    donsker_varadhan,
    info_nce,
    soft_divergence,
)


def gaussian_batch(
    count: int, d: int, rho: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    z, noise = (torch.randn(count, d, generator=generator) for _ in range(2))
    return rho * z + math.sqrt(1 - rho**2) * noise, z


def information(d: int, rho: float) -> float:
    return -d / 2 * math.log(1 - rho**2)


def true_scores(w: torch.Tensor, z: torch.Tensor, rho: float) -> torch.Tensor:
    """ln p(w|z)/p(w) of every pair: the critic at which DV equals the information."""
    difference = (w[:, None] - rho * z[None]).square() / (1 - rho**2)
    log_ratio = -0.5 * (difference + math.log(1 - rho**2) - w[:, None].square())
    return log_ratio.sum(-1)


def test_dv_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.5], [0.0, 3.0, 1.0]])
    index = torch.tensor([0, 1])
    marginal = [2.0, 0.5, 0.0, 1.0]
    expected = (1 + 3) / 2 - math.log(sum(math.exp(s) for s in marginal) / 4)
    assert donsker_varadhan(scores, index).item() == pytest.approx(expected)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
def test_dv_with_the_true_critic_is_the_information(rho: float) -> None:
    w, z = gaussian_batch(3000, 4, rho, torch.Generator().manual_seed(0))
    value = donsker_varadhan(true_scores(w, z, rho), torch.arange(3000)).item()
    assert value == pytest.approx(information(4, rho), abs=0.05)


@pytest.mark.parametrize("rho", [0.3, 0.9])
def test_info_nce_with_the_true_critic(rho: float) -> None:
    w, z = gaussian_batch(2000, 4, rho, torch.Generator().manual_seed(1))
    scores = true_scores(w, z, rho)
    for count in (4, 32, 2000):
        value = info_nce(scores[:count, :count], torch.arange(count)).item()
        assert value <= math.log(count) + 1e-5
    # With candidates far more than e^MI the bound is tight.
    assert value == pytest.approx(information(4, rho), abs=0.15)


def train_mine(rho: float, steps: int, d: int = 4, batch: int = 256) -> float:
    """Train a critic with MINE on fresh batches; return the DV value on fresh pairs."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(3)
    critic, bound = MlpCritic(d, d, hidden=48), Mine()
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        w, z = gaussian_batch(batch, d, rho, generator)
        loss = -bound(critic(w, z), torch.arange(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        values = []
        for _ in range(20):
            w, z = gaussian_batch(batch, d, rho, generator)
            values.append(donsker_varadhan(critic(w, z), torch.arange(batch)))
    return torch.stack(values).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize(("rho", "steps"), [(0.3, 400), (0.6, 200), (0.9, 500)])
def test_mine_reaches_the_information_of_gaussian_pairs(rho: float, steps: int) -> None:
    reached = train_mine(rho, steps) / information(4, rho)
    assert 0.85 <= reached <= 1.05


def scores_and_weight(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    weight = torch.randn(5, requires_grad=True)
    return torch.randn(12, 12, 5) @ weight, weight, torch.arange(12)


def test_the_first_gradient_equals_plain_dv() -> None:
    scores, weight, index = scores_and_weight(0)
    bound = Mine()
    value, plain = bound(scores, index), donsker_varadhan(scores, index)
    assert value.item() == pytest.approx(plain.item(), abs=1e-6)
    (a,) = torch.autograd.grad(value, weight, retain_graph=True)
    (b,) = torch.autograd.grad(plain, weight)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_later_gradients_divide_by_the_running_mean() -> None:
    bound = Mine(decay=0.9)
    first, _, index = scores_and_weight(0)
    bound(first, index)
    scores, weight, _ = scores_and_weight(1)
    off = ~torch.eye(12, dtype=torch.bool)
    value = bound(scores, index)
    assert value.item() == pytest.approx(donsker_varadhan(scores, index).item(), abs=1e-5)
    with torch.no_grad():
        running = 0.9 * first[off].exp().mean() + 0.1 * scores[off].exp().mean()
    expected = scores.diagonal().mean() - scores[off].exp().mean() / running
    (a,) = torch.autograd.grad(value, weight, retain_graph=True)
    (b,) = torch.autograd.grad(expected, weight)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_mine_survives_scores_beyond_the_range_of_exp() -> None:
    bound, index = Mine(), torch.arange(3)
    for size in (1.0, 400.0, -400.0, 400.0):
        scores = (size * torch.eye(3).flip(0)).requires_grad_()
        value = bound(scores, index)
        (gradient,) = torch.autograd.grad(value, scores)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


def test_the_mlp_critic_equals_a_network_on_joined_vectors() -> None:
    torch.manual_seed(0)
    critic = MlpCritic(3, 2, hidden=8)
    w, table = torch.randn(4, 3), torch.randn(6, 2)
    joined = torch.cat([critic.w_layer.weight, critic.z_layer.weight], dim=1)
    scores = critic(w, table)
    assert scores.shape == (4, 6)
    for i in range(4):
        for j in range(6):
            state = joined @ torch.cat([w[i], table[j]]) + critic.w_layer.bias
            assert scores[i, j].item() == pytest.approx(critic.body(state).item(), abs=1e-5)


def test_the_cosine_critic_ignores_lengths() -> None:
    torch.manual_seed(0)
    critic = CosineCritic(-1.0)
    w, table = torch.randn(4, 3), torch.randn(6, 3)
    torch.testing.assert_close(critic(w * 5, table * 0.2), critic(w, table))
    assert critic(w, w).diagonal().tolist() == pytest.approx([math.e] * 4, rel=1e-5)


def test_soft_divergence_is_the_kl_of_the_two_distributions() -> None:
    torch.manual_seed(0)
    scores, target = torch.randn(2, 4, 7, dtype=torch.float64)
    index = torch.tensor([2, 0, 6, 3])
    total = 0.0
    for row, own in enumerate(index.tolist()):
        others = [c for c in range(7) if c != own]
        p = target[row, others].softmax(0)
        q = scores[row, others].softmax(0)
        total += float((p * (p / q).log()).sum())
    assert soft_divergence(scores, index, target).item() == pytest.approx(total / 4)
