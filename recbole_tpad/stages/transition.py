"""Stage 2a, T-MLLM: contrastive learning of what follows what in training sessions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from recbole_tpad.backbones.base import Backbone, Inputs
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.objectives import (
    cached_states,
    gather_slices,
    own_slice,
    pair_info_nce,
    processes,
    session_info_nce,
)
from recbole_tpad.settings import at_least
from recbole_tpad.stages.inputs import name_items
from recbole_tpad.stages.loop import LoopSettings, Metrics, Trainable, TrainingLoop
from recbole_tpad.stages.pairs import MetaPairs, check_orders

INPUTS = ("item", "session")
_LOSS_BLOCK = 256  # anchors whose logits are in memory at a time, with gradient caching


@dataclass(frozen=True, slots=True)
class TransitionSettings:
    """Stage 2a.

    Attributes:
        loop: optimisation.
        pairs_per_step: meta pairs a step; distinct items are encoded once.
        orders: transition orders.
        log_scale: initial τ; similarities are cosine · exp(τ).
        visual_weight, text_weight: of the two modality losses.
        input: 'item' (pairs of single items) or 'session' (the session so far and an item).
        session_length: most items of a session that are read, with `input: session`.
        chunk: items encoded at a time, by gradient caching: the same step in bounded memory.
            0: all at once.
        popularity_balance: β ≥ 0; pairs are drawn by (popularity of both items)^(−β/2).
    """

    loop: LoopSettings
    pairs_per_step: int = 256
    orders: tuple[int, ...] = (1, 2, 3)
    log_scale: float = 3.0
    visual_weight: float = 1.0
    text_weight: float = 1.0
    input: str = "item"
    session_length: int = 8
    chunk: int = 0
    popularity_balance: float = 0.0

    def __post_init__(self) -> None:
        at_least("transition", 1, pairs_per_step=self.pairs_per_step)
        at_least("transition", 1, session_length=self.session_length)
        at_least(
            "transition",
            0,
            visual_weight=self.visual_weight,
            text_weight=self.text_weight,
            chunk=self.chunk,
            popularity_balance=self.popularity_balance,
        )
        check_orders(self.orders)
        if self.input not in INPUTS:
            raise InputError(
                f"transition: unknown input '{self.input}'.{nearest(self.input, INPUTS)} "
                f"Known: {', '.join(INPUTS)}."
            )


def train_transition(
    backbone: Backbone,
    inputs: Inputs,
    pairs: MetaPairs,
    settings: TransitionSettings,
    folder: Path,
    seed: int,
) -> tuple[list[Metrics], dict[str, nn.Parameter]]:
    """Train the transition tower, starting from the knowledge tower.

    Only what the backbone trains of the transition tower changes. Where several processes train
    together, each encodes its share of the step's items and sees all of them as negatives.

    Returns:
        The history and what was learned beside the tower: one scale a modality, and with
        `input: session` the logits of the recency weights, `recency_<modality>`.

    Raises:
        InputError: the states or the loss are NaN or infinite; the items are named.
    """
    backbone.copy_tower("knowledge", "transition")
    backbone.use("transition")
    tower = backbone.trained_parameters("transition")
    weights = {"visual": settings.visual_weight, "text": settings.text_weight}
    weights = {n: w for n, w in weights.items() if n in backbone.modalities}
    learned = {
        name: nn.Parameter(torch.tensor(settings.log_scale, device=inputs.device))
        for name in weights
    }
    if settings.input == "session":
        decay = -0.5 * torch.arange(settings.session_length, device=inputs.device)
        learned |= {f"recency_{name}": nn.Parameter(decay.clone()) for name in weights}
    torch.manual_seed(seed)
    parameters = tower | {f"scale.{n}": p for n, p in learned.items()}
    loop = TrainingLoop("transition", Trainable(parameters), settings.loop, folder)

    def draw(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Distinct rows, and contexts and targets as places among them; (B, 1) for items."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        if settings.input == "item":
            drawn = pairs.sample(settings.pairs_per_step, generator)
            rows, places = torch.unique(drawn, return_inverse=True)
            return rows, places[:, :1], places[:, 1]
        contexts, targets = pairs.sample_contexts(
            settings.pairs_per_step, generator, settings.session_length
        )
        every = torch.cat([contexts, targets[:, None]], dim=1)
        rows, places = torch.unique(every, return_inverse=True)
        if rows[0] < 0:  # the mark of absent context items
            rows, places = rows[1:], places - 1
        return rows, places[:, :-1], places[:, -1]

    def compute(step: int) -> tuple[torch.Tensor, Metrics]:
        rows, contexts, targets = draw(step)
        states = encode_distinct(backbone, inputs, rows, settings.chunk)
        known = pairs.known(rows.numpy()).to(inputs.device)
        contexts, targets = contexts.to(inputs.device), targets.to(inputs.device)
        block = _LOSS_BLOCK if settings.chunk else None
        losses = {}
        for name in weights:
            if settings.input == "item":
                couples = torch.stack([contexts[:, 0], targets], dim=1)
                losses[name] = pair_info_nce(
                    states[name], couples, learned[name], known, block=block
                )
            else:
                recency = learned[f"recency_{name}"]
                losses[name] = session_info_nce(
                    states[name], contexts, targets, recency, learned[name], known
                )
        loss = torch.stack([weights[n] * losses[n] for n in weights]).sum()
        metrics = {f"loss_contrastive_{n}": value.item() for n, value in losses.items()}
        record_balance(states, metrics)
        return loss, metrics

    with backbone.training_only(tower):
        history = loop.run(compute, lambda step: name_items(backbone, inputs, draw(step)[0]))
    return history, learned


def encode_distinct(
    backbone: Backbone, inputs: Inputs, rows: torch.Tensor, chunk: int
) -> dict[str, torch.Tensor]:
    """States of distinct rows (U,) with the active tower, in chunks of similar length.

    Args:
        chunk: items at a time by gradient caching; 0: all at once.
    """

    def encode(part: torch.Tensor) -> dict[str, torch.Tensor]:
        return backbone.encode(inputs.batch(part)).summaries

    if not chunk and processes() == 1:
        return encode(rows)
    order = torch.argsort(inputs.lengths()[rows], stable=True)
    # Dealt out in turn, so that every process gets short and long texts.
    order = torch.cat([order[k :: processes()] for k in range(processes())])
    own, chunk = own_slice(rows[order]), chunk or len(rows)
    parts = -(-len(own) // chunk)
    most = backbone.passes(parts)
    # Slices differ by an item at most: one more makes up for the chunk that others have.
    more = rows[: most - parts]
    states = cached_states(encode, torch.cat([own, more]), chunk=chunk, device=inputs.device)
    back = torch.argsort(order).to(inputs.device)
    return {n: gather_slices(s[: len(own)], len(rows))[back] for n, s in states.items()}


def record_balance(states: dict[str, torch.Tensor], metrics: Metrics) -> None:
    """Add each modality's mean norm, and once the backward pass has run its gradient's share."""
    gradients: dict[str, float] = {}

    def note(name: str, gradient: torch.Tensor) -> None:
        gradients[name] = gradient.detach().float().norm().item()
        total = sum(gradients.values())
        for seen, size in gradients.items():
            metrics[f"gradient_share_{seen}"] = size / total if total else 0.0

    for name, values in states.items():
        metrics[f"norm_{name}"] = values.detach().float().norm(dim=-1).mean().item()
        if values.requires_grad:
            values.register_hook(lambda gradient, name=name: note(name, gradient))
