"""NoteLLM-2's training (arXiv 2405.16789): two compressed words an item, late fusion, one loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from recbole_tpad.backbones.base import Backbone, Inputs
from recbole_tpad.errors import InputError
from recbole_tpad.objectives import pair_info_nce
from recbole_tpad.settings import at_least
from recbole_tpad.stages.loop import LoopSettings, Metrics, Trainable, TrainingLoop
from recbole_tpad.stages.pairs import MetaPairs, check_orders
from recbole_tpad.stages.transition import encode_distinct, record_balance

_LOSS_BLOCK = 256  # anchors whose logits are in memory at a time, with gradient caching


@dataclass(frozen=True, slots=True)
class CompressionSettings:
    """NoteLLM-2's stage.

    Attributes:
        loop: optimisation.
        pairs_per_step: meta pairs a step; distinct items are encoded once.
        orders: transition orders of the pairs.
        log_scale: initial τ; similarities are cosine · exp(τ).
        multimodal_weight, visual_weight: L = (w_m·L_m + w_v·L_v) / (w_m + w_v).
        dimension: of the exported vectors.
        chunk: items encoded at a time, by gradient caching. 0: all at once.
        train_base: also train the base; for backbones with random weights only.
    """

    loop: LoopSettings
    pairs_per_step: int = 256
    orders: tuple[int, ...] = (1, 2, 3)
    log_scale: float = 3.0
    multimodal_weight: float = 9.0
    visual_weight: float = 1.0
    dimension: int = 256
    chunk: int = 0
    train_base: bool = False

    def __post_init__(self) -> None:
        at_least("compression", 1, pairs_per_step=self.pairs_per_step, dimension=self.dimension)
        at_least(
            "compression",
            0,
            chunk=self.chunk,
            multimodal_weight=self.multimodal_weight,
            visual_weight=self.visual_weight,
        )
        if self.multimodal_weight + self.visual_weight == 0:
            raise InputError("compression: both loss weights are 0; nothing would train.")
        check_orders(self.orders)


class LateFusion(nn.Module):
    """h ← z ⊙ g + (1 − z) ⊙ h with g = W·CLS and z = σ(W₂[g; h]), then a shared linear map.

    The same fusion and the same bias-free map serve both states. Without an image h stays as it
    is (assumption).

    Args:
        vision_width: of CLS, the vision encoder's summary of an image.
        width: of h, the language model's states.
        dimension: of the result.
    """

    def __init__(self, vision_width: int, width: int, dimension: int) -> None:
        super().__init__()
        self.image = nn.Linear(vision_width, width)
        self.gate = nn.Linear(2 * width, width)
        self.project = nn.Linear(width, dimension, bias=False)

    def forward(
        self, states: torch.Tensor, summaries: torch.Tensor, has_image: torch.Tensor
    ) -> torch.Tensor:
        """Fuse and map.

        Args:
            states: h, (B, width).
            summaries: CLS, (B, vision width); rows without an image are ignored.
            has_image: (B,) bool.

        Returns:
            (B, dimension).
        """
        image = self.image(summaries)
        gate = torch.sigmoid(self.gate(torch.cat([image, states], dim=-1)))
        fused = gate * image + (1 - gate) * states
        fused = torch.where(has_image[:, None], fused, states)
        found: torch.Tensor = self.project(fused)
        return found


@dataclass(frozen=True, slots=True)
class ImageSummaries:
    """CLS of every item's image: (N, vision width), and which rows have one, (N,) bool."""

    table: torch.Tensor
    has_image: torch.Tensor

    def of(self, rows: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of some items, on a device."""
        return self.table[rows].to(device), self.has_image[rows].to(device)


def compressed(
    states: Mapping[str, torch.Tensor],
    fusion: LateFusion,
    summaries: torch.Tensor,
    has_image: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """e_v and e_m of items, from their states before the image's and at the last word.

    Args:
        states: 'visual' h_v and 'text' h_m, (B, width) each.
        fusion: shared by both.
        summaries, has_image: see `LateFusion.forward`.

    Returns:
        'visual' and 'multimodal', (B, dimension) each.
    """
    return {
        "visual": fusion(states["visual"], summaries, has_image),
        "multimodal": fusion(states["text"], summaries, has_image),
    }


def compression_loss(
    vectors: Mapping[str, torch.Tensor],
    pairs: torch.Tensor,
    log_scale: torch.Tensor,
    known: torch.Tensor,
    *,
    multimodal_weight: float = 9.0,
    visual_weight: float = 1.0,
    block: int | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """L = (9·L_m + L_v)/10, both InfoNCE of cosine · exp(τ) in both directions.

    Args:
        vectors: of `compressed`.
        pairs, log_scale, known, block: see `pair_info_nce`.
        multimodal_weight, visual_weight: 9 and 1 in the paper.
    """
    parts = {
        n: pair_info_nce(vectors[n], pairs, log_scale, known, block=block)
        for n in ("multimodal", "visual")
    }
    whole = multimodal_weight * parts["multimodal"] + visual_weight * parts["visual"]
    metrics = {f"loss_contrastive_{n}": value.item() for n, value in parts.items()}
    return whole / (multimodal_weight + visual_weight), metrics


def train_compression(
    backbone: Backbone,
    inputs: Inputs,
    pairs: MetaPairs,
    images: ImageSummaries,
    settings: CompressionSettings,
    folder: Path,
    seed: int,
) -> tuple[list[Metrics], LateFusion, torch.Tensor]:
    """Train the shared encoder (the knowledge tower), the late fusion and the scale.

    Args:
        backbone: with `readout: before`; changed in place.
        inputs: items; prepared.
        pairs: meta pairs of training sessions.
        images: CLS of the items' images.
        settings: of the stage.
        folder: for checkpoints.
        seed: of pairs, dropout and the fusion's start.

    Returns:
        The history, the fusion, and the learned τ.

    Raises:
        InputError: the loss or a gradient is NaN or infinite.
    """
    backbone.use("knowledge")
    if settings.train_base:
        tower = backbone.full_training_parameters()
    else:
        tower = backbone.trained_parameters("knowledge")
    torch.manual_seed(seed)
    fusion = new_fusion(backbone, images, settings).to(inputs.device)
    log_scale = nn.Parameter(torch.tensor(settings.log_scale, device=inputs.device))
    own = {f"fusion.{n}": p for n, p in fusion.named_parameters()} | {"log_scale": log_scale}
    loop = TrainingLoop("compression", Trainable(tower | own), settings.loop, folder)

    def compute(step: int) -> tuple[torch.Tensor, Metrics]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        drawn = pairs.sample(settings.pairs_per_step, generator)
        rows, places = torch.unique(drawn, return_inverse=True)
        states = encode_distinct(backbone, inputs, rows, settings.chunk)
        vectors = compressed(states, fusion, *images.of(rows, inputs.device))
        loss, metrics = compression_loss(
            vectors,
            places.to(inputs.device),
            log_scale,
            pairs.known(rows.numpy()).to(inputs.device),
            multimodal_weight=settings.multimodal_weight,
            visual_weight=settings.visual_weight,
            block=_LOSS_BLOCK if settings.chunk else None,
        )
        record_balance(states, metrics)
        return loss, metrics

    with backbone.training_only(tower):
        history = loop.run(compute)
    return history, fusion, log_scale.detach()


def new_fusion(
    backbone: Backbone, images: ImageSummaries, settings: CompressionSettings
) -> LateFusion:
    """A fusion of the right widths."""
    return LateFusion(images.table.shape[1], backbone.widths["text"], settings.dimension)
