"""What a TPAD run would take, before anything is loaded: parameters, memory, steps, time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.backbones.divided import expected_bytes
from recbole_tpad.backbones.encoder_loading import empty_encoder
from recbole_tpad.backbones.native import NativeBackbone
from recbole_tpad.backbones.settings import DTYPES, BackboneSettings
from recbole_tpad.backbones.sizing import count_step, empty_backbone, parameter_count, vision_flops
from recbole_tpad.data import Item
from recbole_tpad.generators import encoding_plan
from recbole_tpad.generators.encoder_plan import encoder_plan
from recbole_tpad.generators.encoding_plan import (
    EFFICIENCY,
    duration,
    made_tiny,
    plan_encoding,
)
from recbole_tpad.stages.alignment import AlignmentSettings
from recbole_tpad.stages.knowledge import KnowledgeSettings, trained_parameters
from recbole_tpad.stages.transition import TransitionSettings

_GIGA = 1e9
_PROCESSES = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class PlannedStages:
    """Settings of the stages that will run; None where one is left out."""

    knowledge: KnowledgeSettings
    transition: TransitionSettings | None
    alignment: AlignmentSettings | None


def plan(
    backbone: BackboneSettings, stages: PlannedStages, items: Sequence[Item], device: torch.device
) -> list[str]:
    """Lines that say what a run would take.

    Parameters and bytes are counted on the
    meta device for the longest prompts of these items; time is the counted operations over the
    rate of a matrix product measured on the device, times an assumed efficiency.

    Raises:
        InputError: a part that is absent.
    """
    if backbone.kind == "tiny":
        with tempfile.TemporaryDirectory() as folder:
            return plan(made_tiny(Path(folder), backbone, items), stages, items, device)
    found = plan_encoding(backbone, items, device)
    if backbone.kind == "encoder":
        counted = encoder_plan(empty_encoder(backbone, items), stages, items, backbone.dtype)
        times = _times(counted.work, backbone.dtype, device)
        return [*counted.lines, *found.lines(), _steps(stages), times]
    empty = empty_backbone(backbone)
    lines = _sizes(empty, backbone, stages, items)
    if isinstance(empty, NativeBackbone):
        lines.append(
            "Time and activations: not estimated, since how many tokens an image takes depends on "
            "the images."
        )
        return found.lines() + lines
    return lines + found.lines() + _work(empty, backbone, stages, items, device)


def _sizes(
    empty: ComposedBackbone | NativeBackbone,
    backbone: BackboneSettings,
    stages: PlannedStages,
    items: Sequence[Item],
) -> list[str]:
    base = sum(p.numel() for p in empty.base_parameters().values())
    tower = sum(p.numel() for p in empty.tower_parameters("knowledge").values())
    trained = sum(p.numel() for p in trained_parameters(empty, stages.knowledge).values())
    weights = sum(p.numel() * p.element_size() for p in empty.parameters())
    parts = f"base {base:,}"
    if isinstance(empty, ComposedBackbone):
        vision = parameter_count(empty.vision)
        parts = f"vision {vision:,}, language model {base - vision:,}"
    labelled = sum(bool(i.keywords or i.category) for i in items)
    shown = sum(i.image is not None for i in items)
    divided = []
    if not stages.knowledge.train_base:
        held = [f"{expected_bytes(empty, n) / _GIGA:.2f} GB of {n}" for n in _PROCESSES]
        divided = [f"Weights a process with FSDP: {', '.join(held)}"]
    return [
        f"Items: {len(items):,}, {shown:,} with an image, {labelled:,} with an answer",
        f"Parameters: {parts}, each of two towers {tower:,}; stage 1 trains {trained:,}",
        f"Weights: {weights / _GIGA:.2f} GB ({backbone.dtype}); gradients and Adam's moments of "
        f"what stage 1 trains: {trained * 12 / _GIGA:.2f} GB",
        *divided,
    ]


def _work(
    empty: ComposedBackbone,
    backbone: BackboneSettings,
    stages: PlannedStages,
    items: Sequence[Item],
    device: torch.device,
) -> list[str]:
    prompts = [empty.prompts.prompt(item) for item in items]
    whole = [len(p.ids) + len(p.answer) for p in prompts]
    answers = sum(len(p.answer) for p in prompts) / max(1, len(items))
    longest, mean = max(whole), sum(whole) / len(whole)
    settings = stages.knowledge
    batch, tokens = settings.batch_size, settings.micro_batch_tokens
    side_by_side = min(batch, max(1, tokens // longest)) if tokens else batch
    step = count_step(
        empty,
        side_by_side,
        longest,
        max(1, round(side_by_side * answers)),
        checkpointing=backbone.activation_checkpointing,
    )
    per_token = step.flops / (side_by_side * longest)
    forward = step.forward_flops / (side_by_side * longest)
    image = vision_flops(empty)
    shown = sum(i.image is not None for i in items)
    features = shown * empty.vision.shape[0] * empty.vision.shape[1] * 2
    if settings.train_base:  # weights' gradients, and the vision encoder in every step
        per_token *= 1.5
    work = {
        "vision features": shown * image,
        "knowledge": settings.loop.steps
        * batch
        * (mean * per_token + (3 * image if settings.train_base else 0)),
        "encoding": len(items) * mean * forward,
    }
    if stages.transition is not None:
        pairs = stages.transition.pairs_per_step
        # In chunks every item is encoded once more, without gradients, to know the whole batch.
        own_tokens = per_token + (forward if stages.transition.chunk else 0)
        work["transition"] = stages.transition.loop.steps * 2 * pairs * mean * own_tokens
    if stages.alignment is not None:
        alignment = stages.alignment
        tokens_read = alignment.loop.steps * alignment.batch_size * mean
        work["alignment"] = tokens_read * per_token
    return [
        f"Prompts: {mean:.0f} tokens with the answer, the longest {longest}",
        f"Activations of stage 1: {step.activation_bytes / _GIGA:.2f} GB "
        f"({side_by_side} x {longest} tokens at once)",
        f"Vision features on disk: {features / _GIGA:.2f} GB",
        _steps(stages),
        _times(work, backbone.dtype, device),
    ]


def _steps(stages: PlannedStages) -> str:
    knowledge = stages.knowledge
    parts = [f"knowledge {knowledge.loop.steps:,} x {knowledge.batch_size} items"]
    if stages.transition is not None:
        transition = stages.transition
        parts.append(f"transition {transition.loop.steps:,} x {transition.pairs_per_step} pairs")
    if stages.alignment is not None:
        alignment = stages.alignment
        parts.append(f"alignment {alignment.loop.steps:,} x {alignment.batch_size} items")
    return f"Steps: {', '.join(parts)}"


def _times(work: Mapping[str, float], dtype: str, device: torch.device) -> str:
    rate = encoding_plan.matrix_rate(device, DTYPES[dtype])
    seconds = {name: flops / (rate * EFFICIENCY) for name, flops in work.items()}
    return (
        f"Expected time on {device.type} (a matrix product runs at {rate / 1e12:.2f} TFLOP/s "
        f"there, {EFFICIENCY:.0%} of it assumed): "
        + ", ".join(f"{name} {duration(s)}" for name, s in seconds.items())
        + f"; {duration(sum(seconds.values()))} in all"
    )
