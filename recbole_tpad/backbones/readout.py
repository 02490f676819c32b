"""From last-layer states to what stages use: summary states, answer loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    visual, text = summary_columns(batch, readout).unbind(1)
    return {"visual": hidden[rows, visual], "text": hidden[rows, text]}


def summary_columns(batch: PromptBatch, readout: str) -> torch.Tensor:
    """(B, 2) columns at which the visual and the text state are read."""
    shift = 1 if readout == "before" else 0
    places = [batch.summary_positions(m) - shift for m in (IMAGE_SUMMARY, TEXT_SUMMARY)]
    return torch.stack(places, dim=1)


class ReadPositions:
    """Spares a decoder's last layer the work on positions that nobody reads.

    What follows attention in a layer (module `mlp`) treats every position alone, so in the last
    one it is needed only where states are read; elsewhere it is left out. Decoders that are built
    otherwise run as they are.

    Args:
        decoder: of a causal language model.
    """

    def __init__(self, decoder: nn.Module) -> None:
        layers = getattr(decoder, "layers", None)
        last = layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) else None
        self._mlp = getattr(last, "mlp", None)

    @contextmanager
    def only(self, columns: torch.Tensor) -> Iterator[None]:
        """Within the context only these columns (B, n) of last-layer states are right."""
        mlp = self._mlp
        if not isinstance(mlp, nn.Module):
            yield
            return
        whole = mlp.forward

        def some(states: torch.Tensor, *more: Any, **named: Any) -> Any:
            if more or named or states.shape[0] != len(columns):
                return whole(states, *more, **named)
            rows = torch.arange(len(columns), device=states.device)[:, None]
            found = whole(states[rows, columns])
            if not isinstance(found, torch.Tensor):
                return whole(states)
            # Zeros are what an absent mlp adds.
            return states.new_zeros(()).expand_as(states).index_put((rows, columns), found)

        mlp.forward = some
        try:
            yield
        finally:
            del mlp.forward


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
