"""From last-layer states to what stages use: summary states, answer loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from recbole_tpad.backbones.base import Encoded
from recbole_tpad.backbones.prompts import (
    IGNORED_LABEL,
    IMAGE_SUMMARY,
    TEXT_SUMMARY,
    PromptBatch,
)

_NARROWED = "recbole_tpad_read_positions"


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

    What follows attention in a layer (module `mlp`) treats every position alone, and so do the
    maps to queries and from attention's output: in the last layer they are needed only where
    states are read, as are the queries themselves. Keys and values come from every position.
    Decoders that are built otherwise, or whose attention is not transformers' sdpa, do the rest
    of their work as they are.

    Args:
        decoder: of a causal language model.
    """

    def __init__(self, decoder: nn.Module) -> None:
        layers = getattr(decoder, "layers", None)
        last = layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) else None
        attention = getattr(last, "self_attn", None)
        around = [getattr(attention, name, None) for name in ("q_proj", "o_proj")]
        implementation = getattr(getattr(attention, "config", None), "_attn_implementation", None)
        narrowed = implementation == "sdpa" and all(isinstance(m, nn.Module) for m in around)
        self._attention: Any = attention if narrowed else None
        alone = [getattr(last, "post_attention_layernorm", None), getattr(decoder, "norm", None)]
        parts = [getattr(last, "mlp", None), *alone, *(around if narrowed else [])]
        self._parts = [part for part in parts if isinstance(part, nn.Module)]

    @contextmanager
    def only(self, columns: torch.Tensor) -> Iterator[None]:
        """Within the context only these columns (B, n) of last-layer states are right."""
        # What others have put in the place of a forward, such as moves between devices, comes back.
        before = [vars(part).get("forward") for part in self._parts]
        for part in self._parts:
            part.forward = _at_columns(part.forward, columns)
        attention = self._attention
        if attention is not None:
            config = attention.config  # shared by all layers, so a copy says what the last one does
            attention.config = copy.copy(config)
            attention.config._attn_implementation = _NARROWED
            attention.read_columns = columns
        try:
            yield
        finally:
            for part, forward in zip(self._parts, before, strict=True):
                if forward is None:
                    del part.forward
                else:
                    part.forward = forward
            if attention is not None:
                attention.config = config
                del attention.read_columns


def _at_columns(whole: Callable[..., Any], columns: torch.Tensor) -> Callable[..., Any]:
    """A map of (B, L, width) positions that runs on some columns (B, n) and is zero elsewhere."""

    def some(states: torch.Tensor, *more: Any, **named: Any) -> Any:
        if more or named or states.dim() != 3 or states.shape[0] != len(columns):
            return whole(states, *more, **named)
        rows = torch.arange(len(columns), device=states.device)[:, None]
        found = whole(states[rows, columns])
        if not isinstance(found, torch.Tensor):
            return whole(states)
        return _spread(found, rows, columns, states.shape[1])

    return some


def _spread(
    found: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, length: int
) -> torch.Tensor:
    """(B, n, …) at its columns of (B, length, …); zero elsewhere, as what is absent adds."""
    whole = found.new_zeros(found.shape[0], length, *found.shape[2:])
    return whole.index_put((rows, columns), found)


def _narrowed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa for the queries at `module.read_columns` (B, n); zero elsewhere."""
    columns = module.read_columns
    length = query.shape[2]
    if len(columns) != len(query) or named.get("position_bias") is not None:
        whole: torch.Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, **named
        )[0]
        return whole, None
    rows = torch.arange(len(columns), device=query.device)[:, None]
    if attention_mask is None:  # causal, as sdpa takes it
        seen = torch.arange(key.shape[2], device=query.device) <= columns[:, :, None]
        seen = seen[:, None]
    else:
        every = attention_mask.expand(len(query), *attention_mask.shape[1:])
        seen = every.transpose(1, 2)[rows, columns].transpose(1, 2)
    some = query.transpose(1, 2)[rows, columns].transpose(1, 2)
    named["is_causal"] = False
    found, _ = sdpa_attention_forward(module, some, key, value, seen, **named)
    return _spread(found, rows, columns, length), None


AttentionInterface.register(_NARROWED, _narrowed_attention)


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
