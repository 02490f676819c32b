"""Stage 2a, T-MLLM: contrastive learning of what follows what in training sessions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from recbole_tpad.backbones.base import Backbone, Inputs
from recbole_tpad.objectives import pair_info_nce
from recbole_tpad.settings import at_least
from recbole_tpad.stages.loop import LoopSettings, Metrics, Trainable, TrainingLoop
from recbole_tpad.stages.pairs import MetaPairs, check_orders


@dataclass(frozen=True, slots=True)
class TransitionSettings:
    """Stage 2a.

    Attributes:
        loop: optimisation.
        pairs_per_step: meta pairs a step; distinct items are encoded once.
        orders: transition orders.
        log_scale: initial τ; similarities are cosine · exp(τ).
        visual_weight, text_weight: of the two modality losses.
    """

    loop: LoopSettings
    pairs_per_step: int = 256
    orders: tuple[int, ...] = (1, 2, 3)
    log_scale: float = 3.0
    visual_weight: float = 1.0
    text_weight: float = 1.0

    def __post_init__(self) -> None:
        at_least("transition", 1, pairs_per_step=self.pairs_per_step)
        at_least("transition", 0, visual_weight=self.visual_weight, text_weight=self.text_weight)
        check_orders(self.orders)


def train_transition(
    backbone: Backbone,
    inputs: Inputs,
    pairs: MetaPairs,
    settings: TransitionSettings,
    folder: Path,
    seed: int,
) -> tuple[list[Metrics], dict[str, nn.Parameter]]:
    """Train the transition tower, starting from the knowledge tower, on single items.

    Only the transition tower changes: its LoRA adapter, connector and summary tokens.

    Returns:
        The history and the learned scales, one per modality.
    """
    backbone.copy_tower("knowledge", "transition")
    backbone.use("transition")
    tower = backbone.tower_parameters("transition")
    weights = {"visual": settings.visual_weight, "text": settings.text_weight}
    weights = {n: w for n, w in weights.items() if n in backbone.modalities}
    scales = {
        name: nn.Parameter(torch.tensor(settings.log_scale, device=inputs.device))
        for name in weights
    }
    torch.manual_seed(seed)
    parameters = tower | {f"scale.{n}": p for n, p in scales.items()}
    loop = TrainingLoop("transition", Trainable(parameters), settings.loop, folder)

    def compute(step: int) -> tuple[torch.Tensor, Metrics]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        drawn = pairs.sample(settings.pairs_per_step, generator)
        rows, places = torch.unique(drawn, return_inverse=True)
        states = backbone.encode(inputs.batch(rows)).summaries
        known = pairs.known(rows.numpy()).to(inputs.device)
        losses = {
            name: pair_info_nce(states[name], places.to(inputs.device), scales[name], known)
            for name in weights
        }
        loss = torch.stack([weights[n] * losses[n] for n in weights]).sum()
        return loss, {f"loss_contrastive_{n}": value.item() for n, value in losses.items()}

    with backbone.training_only(tower):
        history = loop.run(compute)
    return history, scales
