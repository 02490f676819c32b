"""L_MIL: what T knows has to be found in w^H."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional as F

from recbole_tpad.objectives import info_nce, soft_divergence
from recbole_tpad.stages.alignment_heads import AlignmentHeads


class LowerBoundSettings(Protocol):
    """The settings of stage 2b that L_MIL reads."""

    @property
    def mi_lower(self) -> str: ...
    @property
    def relational_weight(self) -> float: ...
    @property
    def cosine_weight(self) -> float: ...
    @property
    def teacher_scale(self) -> float: ...


class LowerBoundTerm:
    """L_MIL of one modality, and the InfoNCE value that is reported beside it."""

    def __init__(self, teacher: torch.Tensor, settings: LowerBoundSettings) -> None:
        self.teacher = teacher
        self.settings = settings
        self.similarity = F.normalize(teacher, dim=-1)

    def __call__(
        self, head: AlignmentHeads, h: torch.Tensor, rows: torch.Tensor, table_rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return (to minimise, bound in nats, divergence of 'soft').

        Args:
            head: the modality's heads.
            h: (B, width) K's states.
            rows: (B,) their items.
            table_rows: (M,) items of the marginal, the first B of them `rows`; empty: all.
        """
        settings = self.settings
        every = len(table_rows) == 0
        table = head.teacher(self.teacher if every else self.teacher[table_rows])
        index = rows if every else torch.arange(len(rows), device=rows.device)
        high = head.high(h)
        if len(table) < 2:  # a single item tells nothing from anything
            nothing = h.sum() * 0
            return nothing, nothing, nothing if settings.mi_lower == "soft" else None
        if settings.mi_lower == "mine":
            bound = head.mine(head.scores(high, table), index)
            return -bound, bound, None
        if settings.mi_lower == "infonce":
            bound = info_nce(head.scores(high, table), index)
            return -bound, bound, None
        scores = head.cosine_scores(high, table)
        bound = info_nce(scores, index)
        others = self.similarity if every else self.similarity[table_rows]
        target = self.similarity[rows] @ others.T * settings.teacher_scale
        divergence = soft_divergence(scores, index, target)
        total = divergence
        if settings.relational_weight:
            total = total + settings.relational_weight * self._relational(high, rows)
        if settings.cosine_weight:
            own = F.cosine_similarity(high, head.teacher(self.teacher[rows]), dim=-1)
            total = total + settings.cosine_weight * (1 - own.mean())
        return total, bound, divergence

    def _relational(self, high: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """KL between the similarities within the batch, T's and K's, on one scale."""
        if len(rows) < 3:  # one other item: both distributions are certain
            return high.sum() * 0
        own, theirs = F.normalize(high, dim=-1), self.similarity[rows]
        index, scale = torch.arange(len(rows), device=rows.device), self.settings.teacher_scale
        return soft_divergence(own @ own.T * scale, index, theirs @ theirs.T * scale)
