"""Items that stage 1 does not train on: loss and Generation Rate while it trains, early stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from recbole_tpad.backbones.base import Backbone, Inputs
from recbole_tpad.errors import InputError
from recbole_tpad.files import atomic_path
from recbole_tpad.stages.generation_rate import measure
from recbole_tpad.stages.loop import Metrics
from recbole_tpad.stages.processes import processes

HELD_OUT_LOSS = "held_out_loss"


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


@torch.no_grad()
def held_out_loss(
    backbone: Backbone, inputs: Inputs, rows: Sequence[int], batch: int = 64
) -> float:
    """Mean answer loss over all answer tokens of some items, in nats."""
    total, terms = 0.0, 0
    for part in torch.tensor(list(rows), dtype=torch.int64).split(batch):
        encoded = backbone.encode(inputs.batch(part, answers=True))
        loss = encoded.answer_loss()
        if loss is not None:
            total += loss.item() * encoded.answer_tokens
            terms += encoded.answer_tokens
    return total / max(1, terms)


class HeldOut:
    """Looks at held-out items every so many steps; keeps the best weights for an early stop.

    The looks depend on the parameters only and consume none of torch's global random numbers, so
    they change no training, and a resumed run finds its past looks in the loop's history. Of
    several processes the first one's loss counts: sums may differ in their last digits, and where
    one stopped and another did not, they would wait for each other for ever.

    Args:
        backbone: the backbone being trained.
        inputs: its items.
        rows: held-out rows.
        every: steps between looks; 0 never looks.
        patience: looks without a lower loss until training stops; 0 never stops.
        parameters: what is trained.
        best: file for the best weights.
        seed: of the controls.
    """

    def __init__(
        self,
        backbone: Backbone,
        inputs: Inputs,
        rows: Sequence[int],
        *,
        every: int,
        patience: int,
        parameters: Mapping[str, nn.Parameter],
        best: Path,
        seed: int,
    ) -> None:
        self._backbone = backbone
        self._inputs = inputs
        self._rows = rows
        self._every = every if rows else 0
        self._patience = patience
        self._parameters = parameters
        self._best = best
        self._seed = seed

    def look(self, step: int, history: Sequence[Metrics], *, write: bool = True) -> Metrics:
        """Quantities for the history at this step; none between looks."""
        if not self._every or step == 0 or step % self._every:
            return {}
        self._backbone.eval()
        loss = self._loss()
        found = {HELD_OUT_LOSS: loss}
        named = [r for r in self._rows if self._inputs.items[r].keywords]
        if len(named) > 1:
            rates = measure(self._backbone, self._inputs, named, seed=self._seed)
            for key in ("recall", "f1", "chance", "shuffled_images"):
                value = rates[key]
                if value is not None:
                    found[f"held_out_{key}"] = value
        self._backbone.train()
        if self._patience and write and loss < min(_losses(history), default=float("inf")):
            with atomic_path(self._best) as temporary:
                save_file(
                    {n: p.detach().cpu().contiguous() for n, p in self._parameters.items()},
                    temporary,
                )
        return found

    def exhausted(self, history: Sequence[Metrics]) -> bool:
        """Whether the last `patience` looks were all worse than an earlier one."""
        losses = _losses(history)
        if not self._patience or len(losses) <= self._patience:
            return False
        return min(losses[-self._patience :]) >= min(losses[: -self._patience])

    def _loss(self) -> float:
        own = held_out_loss(self._backbone, self._inputs, self._rows)
        return processes().first_says(own, self._inputs.device)

    @torch.no_grad()
    def take_best(self, history: Sequence[Metrics]) -> None:
        """Go back to the weights of the lowest loss, if an earlier look's was lower than now.

        Their file stays on disk until the stage's result is safe.
        """
        losses = _losses(history)
        if not self._patience or not losses:
            return
        self._backbone.eval()
        if min(losses) < self._loss():
            kept = load_file(self._best)
            for name, parameter in self._parameters.items():
                parameter.copy_(kept[name])


def _losses(history: Sequence[Metrics]) -> list[float]:
    return [m[HELD_OUT_LOSS] for m in history if HELD_OUT_LOSS in m]
