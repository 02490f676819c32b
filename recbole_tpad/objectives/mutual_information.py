"""Bounds on mutual information used by the transitional-pattern alignment, in nats.

vCLUB: Cheng et al., ICML 2020, "CLUB". The lower bounds are in `lower_bounds`.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from recbole_tpad.objectives.lower_bounds import info_nce, soft_divergence


class DiagonalGaussian(nn.Module):
    """q_θ(w|z): a Gaussian whose mean and log-variance are functions of z.

    Args:
        z_dim: width of z.
        w_dim: width of w.
        hidden: width of the one hidden layer.
    """

    def __init__(self, z_dim: int, w_dim: int, hidden: int = 128) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(z_dim, hidden), nn.ReLU())
        self.mean = nn.Linear(hidden, w_dim)
        self.log_variance = nn.Linear(hidden, w_dim)

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map z (B, z_dim) to mean and log-variance, each (B, w_dim); variance in e^±6."""
        state = self.body(z)
        return self.mean(state), 6 * torch.tanh(self.log_variance(state) / 6)

    def log_likelihood(self, w: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Mean log q(w_i|z_i) over the batch, scalar, in nats."""
        mean, log_variance = self(z)
        terms = (w - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)
        likelihood: torch.Tensor = -0.5 * terms.sum(-1).mean()
        return likelihood


def vclub(mean: torch.Tensor, log_variance: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """vCLUB upper bound: mean_i[log q(w_i|z_i) − mean_j log q(w_j|z_i)], in closed form.

    For a diagonal q the mean over j needs only the batch's first two moments of w, so the cost is
    O(B·d) instead of O(B²·d); equal to `vclub_pairwise`. A badly fitted q can make it negative.

    Args:
        mean, log_variance: (B, d) of q(·|z_i).
        w: (B, d) samples.

    Returns:
        Scalar, in nats.
    """
    precision = (-log_variance).exp()
    own = (w - mean).square()
    first, second = w.mean(0), w.square().mean(0)
    others = second - 2 * mean * first + mean.square()
    return 0.5 * ((others - own) * precision).sum(-1).mean()


def vclub_pairwise(mean: torch.Tensor, log_variance: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The definition of `vclub` as a sum over all pairs, O(B²·d): the reference for tests."""
    precision = (-log_variance).exp()
    own = -0.5 * ((w - mean).square() * precision).sum(-1)
    difference = w[None, :, :] - mean[:, None, :]
    others = -0.5 * (difference.square() * precision[:, None, :]).sum(-1).mean(1)
    return (own - others).mean()


def info_nce_bound(
    w: torch.Tensor, table: torch.Tensor, index: torch.Tensor, temperature: torch.Tensor
) -> torch.Tensor:
    """`info_nce` with critic cosine/τ.

    Args:
        w: (B, p) from the tower being trained.
        table: (M, p) z of all candidate items; the marginal is their empirical distribution.
        index: (B,) int64, row of each item's own z in `table`.
        temperature: scalar τ.

    Returns:
        Scalar bound in nats: ln M − cross-entropy.
    """
    return info_nce(_cosine(w, table, temperature), index)


def soft_target_divergence(
    w: torch.Tensor,
    table: torch.Tensor,
    index: torch.Tensor,
    temperature: torch.Tensor,
    target_similarity: torch.Tensor,
) -> torch.Tensor:
    """`soft_divergence` of a student with critic cosine/τ.

    Args:
        w, table, index, temperature: as in `info_nce_bound`.
        target_similarity: (B, M) teacher logits.
    """
    return soft_divergence(_cosine(w, table, temperature), index, target_similarity)


def _cosine(w: torch.Tensor, table: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    return F.normalize(w, dim=-1) @ F.normalize(table, dim=-1).T / temperature
