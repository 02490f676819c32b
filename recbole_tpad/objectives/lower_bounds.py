"""Lower bounds on I(w; z) from a matrix of critic scores, in nats.

InfoNCE: van den Oord et al., 2018. MINE: Belghazi et al., ICML 2018 (the Donsker-Varadhan form).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


def info_nce(scores: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """InfoNCE bound: ln M − cross-entropy; at most ln M.

    Args:
        scores: (B, M) of each w with every z of the marginal.
        index: (B,) int64, column of each w's own z.
    """
    return math.log(scores.shape[1]) - F.cross_entropy(scores, index)


def donsker_varadhan(scores: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Plain DV bound: mean score of own pairs − ln mean exp score of the pairs of the marginals.

    Args:
        scores: (B, M), M ≥ 2.
        index: (B,) int64, column of each w's own z; these columns are not among the marginals.
    """
    own, log_mean = _own_and_log_mean(scores, index)
    return own - log_mean


def _own_and_log_mean(
    scores: torch.Tensor, index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    own = scores.gather(1, index[:, None])
    # An item's own z is one draw of the marginal among M; left out, as in the batch's off-diagonal.
    others = scores.scatter(1, index[:, None], float("-inf"))
    pairs = scores.shape[0] * (scores.shape[1] - 1)
    return own.mean(), torch.logsumexp(others.flatten(), 0) - math.log(pairs)


class Mine(nn.Module):
    """DV bound whose gradient divides by a running mean, which takes out the batch's bias.

    The gradient of ln mean exp is ∇mean exp / mean exp; the batch's own mean in the denominator
    makes it biased, so a mean over the steps so far takes its place (Belghazi et al., §3.2). The
    first step's gradient equals plain DV's.

    Args:
        decay: of the exponential moving average; it is kept in logarithms.
    """

    log_mean: torch.Tensor
    started: torch.Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("log_mean", torch.zeros(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, scores: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The plain DV value with the corrected gradient; moves the running mean.

        Args:
            scores, index: as in `donsker_varadhan`.
        """
        own, log_mean = _own_and_log_mean(scores, index)
        with torch.no_grad():
            moved = torch.logaddexp(
                self.log_mean + math.log(self.decay), log_mean + math.log1p(-self.decay)
            )
            self.log_mean.copy_(torch.where(self.started, moved, log_mean))
            self.started.fill_(True)
        # Same value as log_mean, gradient exp(log_mean − running mean)·∇log_mean.
        weight = (log_mean.detach() - self.log_mean).clamp(max=10.0).exp()
        corrected = log_mean.detach() + weight * (log_mean - log_mean.detach())
        return own - corrected


def soft_divergence(
    scores: torch.Tensor, index: torch.Tensor, target_similarity: torch.Tensor
) -> torch.Tensor:
    """KL from a teacher's similarity distribution over the table to the student's (assumption).

    A one-hot bound saturates when items are trivially identifiable; soft targets ask for the
    teacher's whole neighbourhood. An item itself is left out on both sides.

    Args:
        scores: (B, M) student logits.
        index: (B,) int64, column of each row's own item.
        target_similarity: (B, M) teacher logits.

    Returns:
        Scalar KL in nats, ≥ 0.
    """
    own = F.one_hot(index, scores.shape[1]).bool()
    log_student = F.log_softmax(scores.masked_fill(own, -1e9), dim=-1)
    log_teacher = F.log_softmax(target_similarity.masked_fill(own, -1e9), dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
