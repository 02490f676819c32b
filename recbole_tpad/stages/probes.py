"""What to look at when stage 1 has not learned: gradients, answers, one prompt as it was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from recbole_tpad.backbones.base import Backbone, Inputs

LATE_GENERATION_RATE = 0.2
_MANY_EMPTY = 0.5
_GROUPS = {
    "lora.": "LoRA",
    "tower.connector": "connector",
    "tower.summary_tokens": "summary-token rows",
    "tower.no_image": "no-image vectors",
}


@dataclass(frozen=True, slots=True)
class KnowledgeProbes:
    """Probes of a knowledge tower.

    Attributes:
        gradient_norms: group of parameters → L2 norm of the answer loss's gradient on one batch.
        prompt: an item's prompt as text.
        said, gold: the answer generated for it, and the one wanted.
    """

    gradient_norms: dict[str, float]
    prompt: str
    said: str
    gold: str

    def __str__(self) -> str:
        norms = ", ".join(f"{name} {norm:.2g}" for name, norm in self.gradient_norms.items())
        return (
            f"Gradient norms: {norms}. One prompt: {self.prompt!r}; wanted {self.gold!r}, "
            f"said {self.said!r}."
        )


def probe_knowledge(
    backbone: Backbone,
    inputs: Inputs,
    rows: Sequence[int],
    parameters: Mapping[str, nn.Parameter],
) -> KnowledgeProbes:
    """Probe the knowledge tower on some labelled items; no weight and no random state changes.

    Args:
        backbone: with its knowledge tower trained.
        inputs: its items.
        rows: labelled rows; the first is the one whose prompt is shown.
        parameters: what stage 1 trained.
    """
    backbone.use("knowledge")
    batch = torch.tensor(list(rows)[:32])
    with torch.random.fork_rng(), backbone.training_only(dict(parameters)):
        loss = backbone.encode(inputs.batch(batch, answers=True)).answer_loss()
        assert loss is not None  # the rows are labelled
        loss.backward()
    squares: dict[str, float] = {}
    for name, parameter in parameters.items():
        group = next((g for p, g in _GROUPS.items() if name.startswith(p)), "base")
        if parameter.grad is not None:
            squares[group] = squares.get(group, 0.0) + parameter.grad.square().sum().item()
            parameter.grad = None
    row = int(batch[0])
    said = backbone.predict(inputs, batch[:1])[0]
    item = inputs.items[row]
    return KnowledgeProbes(
        {group: square**0.5 for group, square in squares.items()},
        inputs.prompt_text(row),
        "; ".join([", ".join(said.keywords), said.category or ""]),
        "; ".join([", ".join(item.keywords), item.category]),
    )


def knowledge_warnings(rate: Mapping[str, float | None] | None) -> list[str]:
    """Failure signatures of stage 1 in its Generation Rate, measured on held-out items.

    Args:
        rate: of `generation_rate.measure`; None where too few items have keywords.

    Returns:
        What is wrong, a sentence each; empty where nothing is.
    """
    if rate is None:
        return [
            "No Generation Rate: too few items have visual keywords. The knowledge tower learned "
            "what the other labels say, at most the categories."
        ]
    recall, shuffled = rate["recall"] or 0.0, rate["shuffled_images"] or 0.0
    chance, empty = rate["chance"] or 0.0, rate["empty"] or 0.0
    found = []
    if recall <= LATE_GENERATION_RATE:
        found.append(
            f"Generation Rate is {recall:.3f}, not above {LATE_GENERATION_RATE} (with shuffled "
            f"images {shuffled:.3f}, {empty:.0%} of the answers empty): the knowledge tower does "
            "not say what is in the pictures. Train stage 1 longer, or check the keywords."
        )
    elif shuffled - chance > 0.8 * (recall - chance):
        found.append(
            f"The knowledge tower reads and does not look: its Generation Rate is {recall:.3f} "
            f"with an item's own image and {shuffled:.3f} with another's (chance {chance:.3f})."
        )
    if empty > _MANY_EMPTY:
        found.append(f"{empty:.0%} of the generated answers have no keyword.")
    return found
