"""What stage 2b trains besides the tower: projectors, critic, the job of w^L. None is exported."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from recbole_tpad.backbones.answer_heads import LabelTable
from recbole_tpad.objectives import Mine, MlpCritic


class AlignmentHeads(nn.Module):
    """The projectors of one modality, its critic, and the heads that give w^L a job.

    Args:
        width: of K's and T's states.
        projection: width p of w^L, and with linear projectors of w^H and z.
        labels: what w^L has to predict.
        identity: no D_H and D_T: w^H is K's state and z is T's (assumption, for residual towers).
        critic: 'cosine' or 'mlp'.
    """

    def __init__(
        self,
        width: int,
        projection: int,
        labels: LabelTable,
        *,
        identity: bool = False,
        critic: str = "cosine",
    ) -> None:
        super().__init__()
        self.high = nn.Identity() if identity else nn.Linear(width, projection)  # D_H
        self.low = nn.Sequential(  # D_L
            nn.Linear(width, projection), nn.GELU(), nn.Linear(projection, projection)
        )
        self.teacher = nn.Identity() if identity else nn.Linear(width, projection)  # D_T
        self.category = nn.Linear(projection, max(1, labels.categories))
        self.keyword = nn.Linear(projection, max(1, labels.keywords))
        self.log_temperature = nn.Parameter(torch.tensor(-2.3))
        self.z_width = width if identity else projection
        self.critic = MlpCritic(self.z_width, self.z_width) if critic == "mlp" else None
        self.mine = Mine()

    @property
    def temperature(self) -> torch.Tensor:
        """τ of the cosine critic, kept within [.01, 1]."""
        return self.log_temperature.exp().clamp(0.01, 1.0)

    def cosine_scores(self, high: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """(B, M) cosine/τ of w^H (B, p) with z (M, p)."""
        return F.normalize(high, dim=-1) @ F.normalize(table, dim=-1).T / self.temperature

    def scores(self, high: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """(B, M) critic scores of w^H (B, p) with z (M, p)."""
        if self.critic is None:
            return self.cosine_scores(high, table)
        scores: torch.Tensor = self.critic(high, table)
        return scores

    def label_loss(
        self, w_low: torch.Tensor, rows: torch.Tensor, labels: LabelTable
    ) -> torch.Tensor:
        """Cross-entropy of category plus mean binary cross-entropy of keywords, from w^L."""
        loss = w_low.new_zeros(())
        category = labels.category[rows].to(w_low.device)
        if labels.categories > 1 and (category >= 0).any():
            loss = loss + F.cross_entropy(self.category(w_low), category, ignore_index=-1)
        if labels.keywords:
            target = labels.keyword[rows].to(w_low.device)
            loss = loss + F.binary_cross_entropy_with_logits(self.keyword(w_low), target)
        return loss
