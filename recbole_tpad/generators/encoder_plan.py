"""What a TPAD run on an encoder backbone would take, counted before its weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from recbole_tpad.backbones.encoder import EncoderBackbone
from recbole_tpad.backbones.sizing import META
from recbole_tpad.data import Item

if TYPE_CHECKING:
    from recbole_tpad.generators.tpad_plan import PlannedStages

_GIGA = 1e9
_HALF = 2  # bytes of a kept state


@dataclass(frozen=True, slots=True)
class EncoderPlan:
    """Attributes:
    lines: of the plan, without time.
    work: part → floating point operations. Of the text layers those of their weight matrices are
        counted; attention's own products, small at these lengths, are not.
    """

    lines: list[str]
    work: dict[str, float]


def encoder_plan(
    empty: EncoderBackbone, stages: PlannedStages, items: Sequence[Item], dtype: str
) -> EncoderPlan:
    """Count parameters, memory, steps and operations of the stages.

    Args:
        empty: of `empty_encoder`.
        stages: what will run.
        items: the catalogue.
        dtype: of the base, for the text.
    """
    lengths = empty.inputs(items, torch.device("cpu")).lengths().float()
    tokens, mean = float(lengths.sum()), float(lengths.mean())
    shown = sum(i.image is not None for i in items) if empty.image is not None else 0
    base, tower, trained = (
        sum(p.numel() for p in found.values())
        for found in (
            empty.base_parameters(),
            empty.tower_parameters("knowledge"),
            empty.trained_parameters("knowledge"),
        )
    )
    weights = sum(p.numel() * p.element_size() for p in empty.parameters())
    states = (tokens * empty.widths["text"] + shown * empty.widths.get("visual", 0)) * _HALF
    labelled = sum(bool(i.keywords or i.category) for i in items)
    lines = [
        f"Items: {len(items):,}, {shown:,} with an image that is read, {labelled:,} with an answer",
        f"Parameters: base {base:,}, each of two towers {tower:,}; stage 1 trains {trained:,}",
        f"Weights: {weights / _GIGA:.2f} GB ({dtype}); gradients and Adam's moments of what stage "
        f"1 trains: {trained * 12 / _GIGA:.2f} GB",
        f"Texts: {mean:.0f} tokens, the longest {int(lengths.max())}",
        f"Kept in memory: states below the trained layers, {states / _GIGA:.2f} GB (float16)",
    ]
    return EncoderPlan(lines, _work(empty, stages, tokens, mean, len(items), shown))


def _work(
    empty: EncoderBackbone,
    stages: PlannedStages,
    tokens: float,
    mean: float,
    items: int,
    shown: int,
) -> dict[str, float]:
    below = _matrices(empty.text.encoder)
    top = _matrices(empty.tower_layers("knowledge"))

    def item(trained: Mapping[str, nn.Parameter]) -> float:
        """Training on one item: forward, and twice that backward, for what trains."""
        layers = top * mean if any(".layers." in n for n in trained) else 0
        rest = sum(p.numel() for n, p in trained.items() if p.dim() > 1 and ".layers." not in n)
        return 6.0 * (layers + rest)

    work = {"frozen layers": 2.0 * below * tokens}
    if shown:
        work["image features"] = float(shown * _image_flops(empty))
    knowledge, known = stages.knowledge, empty.trained_parameters("knowledge")
    work["knowledge"] = knowledge.loop.steps * knowledge.batch_size * item(known)
    if stages.transition is not None:
        pairs = stages.transition.loop.steps * stages.transition.pairs_per_step
        kept = 2.0 * top * tokens if empty.settings.transition == "head" else 0.0
        work["transition"] = kept + 2 * pairs * item(empty.trained_parameters("transition"))
    if stages.alignment is not None:
        alignment = stages.alignment
        items_seen = alignment.loop.steps * alignment.batch_size
        work["alignment"] = items_seen * item(empty.aligned_parameters())
    # Both towers read the catalogue once where there is something to align.
    passes = 1 if stages.alignment is None else 2
    work["encoding"] = passes * 2.0 * top * tokens
    return work


def _matrices(module: nn.Module) -> int:
    """Numbers in a module's weight matrices: multiply-adds a token."""
    return sum(p.numel() for p in module.parameters() if p.dim() > 1)


def _image_flops(empty: EncoderBackbone) -> int:
    assert empty.image is not None  # asked only where there are images
    edge = int(empty.image.config.image_size)
    pixels = torch.empty(1, 3, edge, edge, device=META, dtype=empty.image.dtype)
    with FlopCounterMode(display=False) as counter:
        empty.image_features(pixels)
    return int(counter.get_total_flops())
