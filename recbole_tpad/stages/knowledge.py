"""Stage 1, K-MLLM: from one item's image and text, say its visual keywords and category."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from recbole_tpad.backbones.base import Backbone, Inputs
from recbole_tpad.errors import InputError
from recbole_tpad.settings import at_least
from recbole_tpad.stages.loop import LoopSettings, Metrics, Trainable, TrainingLoop, epoch_batches


@dataclass(frozen=True, slots=True)
class KnowledgeSettings:
    """Stage 1.

    Attributes:
        loop: optimisation.
        batch_size: items a step.
        holdout: share of labelled items kept out, for the Generation Rate.
        train_base: train the base too (for randomly initialised backbones); LoRA rests then.
    """

    loop: LoopSettings
    batch_size: int = 32
    holdout: float = 0.1
    train_base: bool = False

    def __post_init__(self) -> None:
        at_least("knowledge", 1, batch_size=self.batch_size)
        if not 0 <= self.holdout < 1:
            raise InputError(f"knowledge: holdout is a share below 1, not {self.holdout}.")


@dataclass(slots=True)
class KnowledgeResult:
    """What stage 1 leaves behind besides the trained backbone."""

    history: list[Metrics]
    holdout: list[int] = field(default_factory=list)


def split_holdout(has_answer: torch.Tensor, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split the labelled item rows into (training, held out), at random.

    Raises:
        InputError: no item has keywords or a category.
    """
    rows = torch.nonzero(has_answer).flatten()
    if len(rows) == 0:
        raise InputError(
            "No item has keywords or a category, so stage 1 has nothing to learn from. Run "
            "'recbole-tpad keywords' first, or convert metadata that has categories."
        )
    order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    held = min(len(rows) - 1, round(share * len(rows)))
    return sorted(order[held:].tolist()), sorted(order[:held].tolist())


def trained_parameters(
    backbone: Backbone, settings: KnowledgeSettings
) -> dict[str, torch.nn.Parameter]:
    """What stage 1 trains: the tower, or for a random base everything but LoRA."""
    if settings.train_base:
        return backbone.full_training_parameters()
    return backbone.trained_parameters("knowledge")


def train_knowledge(
    backbone: Backbone,
    inputs: Inputs,
    settings: KnowledgeSettings,
    folder: Path,
    seed: int,
) -> KnowledgeResult:
    """Train the knowledge tower with cross-entropy on answer tokens only.

    Args:
        backbone: changed in place.
        inputs: items, prepared for stage 1 (`Inputs.prepare`).
        settings: stage settings.
        folder: for checkpoints.
        seed: of hold-out, batches and dropout.
    """
    training, holdout = split_holdout(inputs.has_answer, settings.holdout, seed)
    rows = torch.tensor(training)
    backbone.use("knowledge")
    parameters = trained_parameters(backbone, settings)
    torch.manual_seed(seed)
    loop = TrainingLoop("knowledge", Trainable(parameters), settings.loop, folder)

    def compute(step: int) -> tuple[torch.Tensor, Metrics]:
        chosen = rows[epoch_batches(len(rows), settings.batch_size, step, seed)]
        loss = backbone.encode(inputs.batch(chosen, answers=True)).answer_loss()
        assert loss is not None  # every training row has an answer
        return loss, {"loss_generation": loss.item()}

    with backbone.training_only(parameters):
        history = loop.run(compute)
    return KnowledgeResult(history, holdout)
