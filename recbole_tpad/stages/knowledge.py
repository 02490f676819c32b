"""Stage 1, K-MLLM: from one item's image and text, say its visual keywords and category."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from recbole_tpad.backbones.base import Backbone, Inputs
from recbole_tpad.errors import InputError
from recbole_tpad.settings import at_least
from recbole_tpad.stages.held_out import HeldOut, split_holdout
from recbole_tpad.stages.inputs import name_items
from recbole_tpad.stages.loop import LoopSettings, Metrics, Trainable, TrainingLoop, epoch_batches
from recbole_tpad.stages.micro_batches import micro_batches
from recbole_tpad.stages.processes import processes


@dataclass(frozen=True, slots=True)
class KnowledgeSettings:
    """Stage 1.

    Attributes:
        loop: optimisation.
        batch_size: items a step, over all processes.
        micro_batch_tokens: padded tokens in one forward pass; a batch with more is accumulated.
            0 takes a batch at once.
        holdout: share of labelled items kept out, for the Generation Rate.
        evaluate_every: steps between looks at the held-out items; 0 looks at the end only.
        evaluation_items: held-out items looked at while training, at most.
        patience: looks without a lower held-out loss until training stops and the best weights
            are taken; 0 trains all steps and keeps the last.
        train_base: train the base too (for randomly initialised backbones); LoRA rests then.
    """

    loop: LoopSettings
    batch_size: int = 32
    micro_batch_tokens: int = 0
    holdout: float = 0.1
    evaluate_every: int = 0
    evaluation_items: int = 200
    patience: int = 0
    train_base: bool = False

    def __post_init__(self) -> None:
        at_least("knowledge", 1, batch_size=self.batch_size, evaluation_items=self.evaluation_items)
        at_least(
            "knowledge",
            0,
            micro_batch_tokens=self.micro_batch_tokens,
            evaluate_every=self.evaluate_every,
            patience=self.patience,
        )
        if not 0 <= self.holdout < 1:
            raise InputError(f"knowledge: holdout is a share below 1, not {self.holdout}.")
        if self.patience and not (self.evaluate_every and self.holdout):
            raise InputError("knowledge: patience needs evaluate_every and holdout above 0.")


@dataclass(slots=True)
class KnowledgeResult:
    """What stage 1 leaves behind besides the trained backbone; `stopped`: before the last step."""

    history: list[Metrics]
    holdout: list[int] = field(default_factory=list)
    stopped: bool = False


class _Exhausted(Exception):
    """Ends the loop: the held-out loss has not fallen for long enough."""


def trained_parameters(
    backbone: Backbone, settings: KnowledgeSettings
) -> dict[str, torch.nn.Parameter]:
    """What stage 1 trains: the tower, or for a random base everything but LoRA."""
    if settings.train_base:
        return backbone.full_training_parameters()
    return backbone.trained_parameters("knowledge")


def best_weights_file(folder: Path) -> Path:
    """Where the best weights lie while a stage with checkpoints in `folder` trains."""
    return folder.with_name(f"{folder.name}.best.safetensors")


def train_knowledge(
    backbone: Backbone,
    inputs: Inputs,
    settings: KnowledgeSettings,
    folder: Path,
    seed: int,
) -> KnowledgeResult:
    """Train the knowledge tower with cross-entropy on answer tokens only.

    The loss is the mean over all answer tokens of the batch, however it is cut into micro-batches
    or divided among processes.

    Args:
        backbone: changed in place.
        inputs: items, prepared for stage 1 (`Inputs.prepare`).
        settings: stage settings.
        folder: for checkpoints.
        seed: of hold-out, batches and dropout.

    Raises:
        InputError: nothing to learn from, or a loss that is not finite, with the items named.
    """
    training, holdout = split_holdout(inputs.has_answer, settings.holdout, seed)
    rows = torch.tensor(training)
    terms = inputs.answer_lengths()
    lengths = inputs.lengths() + terms if settings.micro_batch_tokens else terms
    team = processes()
    backbone.use("knowledge")
    parameters = trained_parameters(backbone, settings)
    held_out = HeldOut(
        backbone,
        inputs,
        holdout[: settings.evaluation_items],
        every=settings.evaluate_every,
        patience=settings.patience,
        parameters=parameters,
        best=best_weights_file(folder),
        seed=seed,
    )
    torch.manual_seed(seed)
    # Checkpoints are the first process's; the others start from them, too.
    loop_settings = (
        settings.loop
        if team.first
        else dataclasses.replace(settings.loop, checkpoint_seconds=math.inf)
    )
    loop = TrainingLoop("knowledge", Trainable(parameters), loop_settings, folder)

    def part_loss(part: torch.Tensor) -> tuple[torch.Tensor, int]:
        encoded = backbone.encode(inputs.batch(part, answers=True))
        loss = encoded.answer_loss()
        assert loss is not None  # every training row has an answer
        if not torch.isfinite(loss):
            raise InputError(
                f"Stage 'knowledge': the loss is {loss.item()}, "
                f"{name_items(backbone, inputs, part)}. Lower knowledge.loop.learning_rate, or "
                "take dtype bfloat16 instead of float16; the last checkpoint is kept."
            )
        return loss, encoded.answer_tokens

    def rows_of(step: int) -> torch.Tensor:
        return rows[epoch_batches(len(rows), settings.batch_size, step, seed)]

    def compute(step: int) -> tuple[torch.Tensor, Metrics]:
        if held_out.exhausted(loop.history):
            raise _Exhausted
        seen = held_out.look(step, loop.history, write=team.first)
        chosen = rows_of(step)
        parts = micro_batches(team.share(chosen), lengths, settings.micro_batch_tokens)
        if len(parts) == 1 and team.count == 1:
            loss, _ = part_loss(parts[0])
            return loss, {"loss_generation": loss.item(), **seen}
        spare = backbone.passes(len(parts)) - len(parts)
        every = int(terms[chosen].sum())
        value = torch.zeros((), device=inputs.device)
        for part in parts:
            loss, count = part_loss(part)
            share = loss * (count / every)
            share.backward()
            value += share.detach()
        for _ in range(spare):
            with torch.random.fork_rng([inputs.device] if inputs.device.type == "cuda" else []):
                (part_loss(chosen[:1])[0] * 0).backward()
        team.add_up_gradients(parameters.values())
        team.add_up([value], inputs.device)
        # The gradients are there already: the loop's own backward ends in this leaf.
        return value.requires_grad_(), {"loss_generation": value.item(), **seen}

    stopped = False
    with backbone.training_only(parameters):
        try:
            loop.run(compute, lambda step: name_items(backbone, inputs, rows_of(step)))
        except _Exhausted:
            stopped = True
        team.wait()
        held_out.take_best(loop.history)
    return KnowledgeResult(loop.history, holdout, stopped)
