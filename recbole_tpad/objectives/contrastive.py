"""Contrastive loss over item pairs with shared, de-duplicated candidates."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def pair_info_nce(
    states: torch.Tensor,
    pairs: torch.Tensor,
    log_scale: torch.Tensor,
    known: torch.Tensor,
    *,
    block: int | None = None,
) -> torch.Tensor:
    """InfoNCE of meta pairs, in both directions, on normalised states (NoteLLM-2's loss form).

    Every distinct item of the batch is encoded once and serves as a candidate once, so a popular
    item is not its own negative. An anchor never competes with itself or with its known partners.

    Args:
        states: (U, d) states of the batch's distinct items.
        pairs: (B, 2) int64 rows into `states`: anchor, target.
        log_scale: scalar τ; similarities are cosine · exp(τ).
        known: (U, U) bool, True where two items are a known positive pair in either direction.
        block: anchors at a time; their logits are computed again in the backward pass, so memory
            does not grow with B·U. None: all at once.

    Returns:
        Scalar mean cross-entropy over 2B anchor-target rows, in nats.
    """
    unit = F.normalize(states, dim=-1)
    anchors = torch.cat([pairs[:, 0], pairs[:, 1]])
    targets = torch.cat([pairs[:, 1], pairs[:, 0]])
    if block is None or len(anchors) <= block:
        return _cross_entropy(unit, anchors, targets, log_scale, known)
    total = unit.new_zeros(())
    for part, aims in zip(anchors.split(block), targets.split(block), strict=True):
        total = total + checkpoint(
            _cross_entropy,
            unit,
            part,
            aims,
            log_scale,
            known,
            "sum",
            use_reentrant=False,
            preserve_rng_state=False,
        )
    return total / len(anchors)


def _cross_entropy(
    unit: torch.Tensor,
    anchors: torch.Tensor,
    targets: torch.Tensor,
    log_scale: torch.Tensor,
    known: torch.Tensor,
    reduction: str = "mean",
) -> torch.Tensor:
    logits = unit[anchors] @ unit.T * log_scale.exp()
    excluded = known[anchors].clone()
    rows = torch.arange(len(anchors), device=unit.device)
    excluded[rows, anchors] = True
    excluded[rows, targets] = False
    return F.cross_entropy(
        logits.masked_fill(excluded, float("-inf")), targets, reduction=reduction
    )


def session_info_nce(
    states: torch.Tensor,
    contexts: torch.Tensor,
    targets: torch.Tensor,
    recency: torch.Tensor,
    log_scale: torch.Tensor,
    known: torch.Tensor,
) -> torch.Tensor:
    """InfoNCE of what follows a session: its items, mixed by recency, against the next item.

    A session is the softmax(recency)-weighted mean of its items' normalised states (assumption).
    The session's own items and known partners of its last one are no negatives.

    Args:
        states: (U, d) states of the batch's distinct items.
        contexts: (B, L) int64 rows into `states`, last item first, −1 where the session is shorter.
        targets: (B,) int64 rows into `states`.
        recency: (L,) learned logits of the weights.
        log_scale, known: as in `pair_info_nce`.

    Returns:
        Scalar mean cross-entropy over the B sessions, in nats.
    """
    unit = F.normalize(states, dim=-1)
    logits = session_states(unit, contexts, recency) @ unit.T * log_scale.exp()
    excluded = known[contexts[:, 0]].clone()
    rows = torch.arange(len(contexts), device=unit.device)
    for column in contexts.T:
        excluded[rows, torch.where(column >= 0, column, contexts[:, 0])] = True
    excluded[rows, targets] = False
    return F.cross_entropy(logits.masked_fill(excluded, float("-inf")), targets)


def session_states(
    unit: torch.Tensor, contexts: torch.Tensor, recency: torch.Tensor
) -> torch.Tensor:
    """(B, d) normalised session states of `session_info_nce`, from normalised item states."""
    real = contexts >= 0
    weights = recency.expand(len(contexts), -1).masked_fill(~real, float("-inf")).softmax(-1)
    mixed = torch.einsum("bl,bld->bd", weights, unit[contexts.clamp(min=0)])
    return F.normalize(mixed, dim=-1)
