"""From last-layer states to what stages use: summary states, answer loss."""

from __future__ import annotations

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


def answer_loss(head: nn.Module, batch: PromptBatch, hidden: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over answer tokens only; the head runs on those positions only."""
    rows, columns = torch.nonzero(batch.labels != IGNORED_LABEL, as_tuple=True)
    logits = head(hidden[rows, columns - 1])
    return nn.functional.cross_entropy(logits.float(), batch.labels[rows, columns])


def encoded(batch: PromptBatch, hidden: torch.Tensor, readout: str, head: nn.Module) -> Encoded:
    """Both, the loss to be computed when asked for."""
    tokens = int((batch.labels != IGNORED_LABEL).sum())
    return Encoded(
        summary_states(batch, hidden, readout),
        tokens,
        (lambda: answer_loss(head, batch, hidden)) if tokens else None,
    )


def positions(mask: torch.Tensor) -> torch.Tensor:
    """(B, L) place of every real token in its own prompt."""
    return (mask.cumsum(1) - 1).clamp(min=0)
