"""From last-layer states to what stages use: summary states, answer loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from recbole_tpad.backbones.base import Encoded
from recbole_tpad.backbones.prompts import (
    IGNORED_LABEL,
    IMAGE_SUMMARY,
    TEXT_SUMMARY,
    PromptBatch,
)


def summary_states(
    batch: PromptBatch, hidden: torch.Tensor, readout: str
) -> dict[str, torch.Tensor]:
    """Modality → (B, H) states at (or 'before') the summary tokens of states (B, L, H)."""
    rows = torch.arange(len(hidden), device=hidden.device)
    shift = 1 if readout == "before" else 0
    return {
        "visual": hidden[rows, batch.summary_positions(IMAGE_SUMMARY) - shift],
        "text": hidden[rows, batch.summary_positions(TEXT_SUMMARY) - shift],
    }


def answer_loss(
    head: nn.Module, batch: PromptBatch, hidden: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """Mean cross-entropy over answer tokens only; the head runs on those positions only.

    Args:
        head: states → logits over the vocabulary.
        batch: prompts with labels.
        hidden: (B, L, H) last-layer states.
        scale: of the gradients on the other side of the logits.
    """
    rows, columns = torch.nonzero(batch.labels != IGNORED_LABEL, as_tuple=True)
    logits = scale_gradient(head(hidden[rows, columns - 1]).float(), scale)
    return nn.functional.cross_entropy(logits, batch.labels[rows, columns])


def encoded(
    batch: PromptBatch, hidden: torch.Tensor, readout: str, head: nn.Module, scale: float
) -> Encoded:
    """Float32 summary states, and the loss to be computed when asked for."""
    tokens = int((batch.labels != IGNORED_LABEL).sum())
    states = summary_states(batch, hidden, readout)
    return Encoded(
        {name: scale_gradient(h.float(), scale) for name, h in states.items()},
        tokens,
        (lambda: answer_loss(head, batch, hidden, scale)) if tokens else None,
    )


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient * ctx.factor, None


def scale_gradient(values: torch.Tensor, factor: float) -> torch.Tensor:
    """The identity, whose gradient is multiplied by `factor`."""
    if factor == 1:
        return values
    found: torch.Tensor = _ScaleGradient.apply(values, factor)  # type: ignore[no-untyped-call]
    return found


def positions(mask: torch.Tensor) -> torch.Tensor:
    """(B, L) place of every real token in its own prompt."""
    return (mask.cumsum(1) - 1).clamp(min=0)
