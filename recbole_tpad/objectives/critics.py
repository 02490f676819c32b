"""Critics: how well a w goes with a z. Both kinds score all pairs of a batch and a table."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

CRITICS = ("cosine", "mlp")


class CosineCritic(nn.Module):
    """cos(w, z)/τ with a learned τ: it can only be met by moving w (the default, assumption).

    Args:
        log_temperature: initial ln τ.
    """

    def __init__(self, log_temperature: float = -2.3) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(log_temperature))

    @property
    def temperature(self) -> torch.Tensor:
        """τ, kept within [.01, 1]."""
        return self.log_temperature.exp().clamp(0.01, 1.0)

    def forward(self, w: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Scores (B, M) of w (B, p) and table (M, p)."""
        return F.normalize(w, dim=-1) @ F.normalize(table, dim=-1).T / self.temperature


class MlpCritic(nn.Module):
    """A free function of both vectors, as in MINE (Belghazi et al., ICML 2018).

    Its first layer is linear in w and in z, so it is computed once a vector, not once a pair.
    A free critic can meet a bound without moving the tower behind w: both vectors are functions of
    the same item.

    Args:
        w_dim, z_dim: widths.
        hidden: width of the two hidden layers.
    """

    def __init__(self, w_dim: int, z_dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.w_layer = nn.Linear(w_dim, hidden)
        self.z_layer = nn.Linear(z_dim, hidden, bias=False)
        self.body = nn.Sequential(
            nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, w: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Scores (B, M) of w (B, p) and table (M, p), in O(B·M·hidden) memory."""
        pairs = self.w_layer(w)[:, None, :] + self.z_layer(table)[None, :, :]
        scores: torch.Tensor = self.body(pairs).squeeze(-1)
        return scores


def make_critic(kind: str, w_dim: int, z_dim: int) -> CosineCritic | MlpCritic:
    """Build a critic of one of the kinds in `CRITICS`."""
    return CosineCritic() if kind == "cosine" else MlpCritic(w_dim, z_dim)
