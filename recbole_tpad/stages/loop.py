"""One training loop for every stage: schedule, history, checkpoints, exact resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from recbole_tpad.errors import InputError
from recbole_tpad.files import atomic_folder
from recbole_tpad.objectives import average_gradients, is_first_process
from recbole_tpad.progress import progress
from recbole_tpad.stages.journal import Journal

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Optimisation of a stage.

    Attributes:
        steps: optimiser steps.
        learning_rate: peak of the schedule (linear warm-up, cosine decay to zero).
        warmup: share of the steps spent warming up.
        weight_decay: AdamW's.
        clip_norm: gradient norm limit.
        checkpoint_seconds: time between checkpoints: what a kill costs at most.
    """

    steps: int
    learning_rate: float = 1e-4
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.learning_rate < 10 or not 0 <= self.warmup < 1:
            raise InputError(
                f"Impossible training settings: steps {self.steps}, learning_rate "
                f"{self.learning_rate}, warmup {self.warmup}."
            )


@dataclass(slots=True)
class Trainable:
    """What a stage trains and what must survive a kill.

    Attributes:
        main: parameters of the outer objective.
        auxiliary: parameters with their own Adam (rate `auxiliary_rate`), stepped by the stage.
        buffers: running values that are no parameters.
    """

    main: Mapping[str, nn.Parameter]
    auxiliary: Mapping[str, nn.Parameter] = field(default_factory=dict)
    auxiliary_rate: float = 1e-3
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict)


class TrainingLoop:
    """Runs a step function; a run killed at any moment resumes to the uninterrupted result.

    Args:
        name: stage name for the progress bar.
        trainable: parameters.
        settings: optimisation.
        folder: keeps the checkpoint while training; the caller removes it once the stage's result
            is safely on disk. Every step's quantities go to ``logs/<its stem>/steps.jsonl`` beside
            it, and stay.

    The step function must depend only on the step number, the parameters and torch's global RNG.
    Where several processes train together, gradients are averaged over them.
    """

    def __init__(
        self, name: str, trainable: Trainable, settings: LoopSettings, folder: Path
    ) -> None:
        self.name = name
        self.settings = settings
        self.history: list[Metrics] = []
        self._folder = folder
        self._trainable = trainable
        self._optimizers: dict[str, torch.optim.Optimizer] = {
            "main": torch.optim.AdamW(
                trainable.main.values(),
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
            )
        }
        if trainable.auxiliary:
            self._optimizers["auxiliary"] = torch.optim.Adam(
                trainable.auxiliary.values(), lr=trainable.auxiliary_rate
            )

    @property
    def auxiliary(self) -> torch.optim.Optimizer:
        """The auxiliary optimiser, for the stage's inner steps."""
        return self._optimizers["auxiliary"]

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        settings = self.settings
        warm = max(1, round(settings.warmup * settings.steps))
        if step < warm:
            return settings.learning_rate * (step + 1) / warm
        progress = (step - warm) / max(1, settings.steps - warm)
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def run(
        self,
        compute: Callable[[int], tuple[torch.Tensor, Metrics]],
        items: Callable[[int], str] | None = None,
    ) -> list[Metrics]:
        """Train to the last step, from a checkpoint if one is there.

        Args:
            compute: step → (scalar loss, quantities for the history).
            items: step → its items in words, for an error.

        Returns:
            One mapping a step: step, loss, learning_rate and the quantities.

        Raises:
            InputError: the loss or a gradient is NaN or infinite, with the step's items named; the
                last checkpoint stays.
        """
        start = self._load()
        bar = progress(
            range(start, self.settings.steps),
            desc=self.name,
            initial=start,
            total=self.settings.steps,
            mininterval=0.5,
        )
        first = is_first_process()
        with Journal(self.journal_folder, self.history, enabled=first) as journal:
            self._train(bar, compute, journal, items)
        return self.history

    @property
    def journal_folder(self) -> Path:
        """Where every step's quantities are written while training."""
        return self._folder.parent / "logs" / self._folder.stem

    def _train(
        self,
        bar: Iterable[int],
        compute: Callable[[int], tuple[torch.Tensor, Metrics]],
        journal: Journal,
        items: Callable[[int], str] | None,
    ) -> None:
        def diverged(step: int, what: str, metrics: Metrics) -> InputError:
            where = f", {items(step)}" if items else ""
            return InputError(
                f"Stage '{self.name}' diverged at step {step}{where}: {what}, quantities "
                f"{metrics}. Lower its learning_rate (now {self.settings.learning_rate}); the last "
                "checkpoint and finished stages are kept."
            )

        saved = time.monotonic()
        main = self._optimizers["main"]
        parameters = list(self._trainable.main.values())
        for step in bar:
            for group in main.param_groups:
                group["lr"] = self.rate(step)
            main.zero_grad(set_to_none=True)  # before: a stage may accumulate gradients itself
            loss, metrics = compute(step)
            if not torch.isfinite(loss):
                raise diverged(step, f"loss {loss.item()}", metrics)
            loss.backward()
            average_gradients(parameters)
            norm = nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
            if not torch.isfinite(norm):
                raise diverged(step, f"loss {loss.item()}, gradient norm {norm.item()}", metrics)
            main.step()
            self.history.append(
                {
                    "step": step,
                    "loss": loss.item(),
                    **metrics,
                    "gradient_norm": float(norm),
                    "learning_rate": self.rate(step),
                }
            )
            journal.write(self.history[-1])
            if time.monotonic() - saved > self.settings.checkpoint_seconds:
                self._save(step + 1)
                saved = time.monotonic()

    def _save(self, step: int) -> None:
        if not is_first_process():
            return
        tensors = {"rng": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["rng_cuda"] = torch.cuda.get_rng_state()
        tensors |= {f"buffer/{name}": b for name, b in self._trainable.buffers.items()}
        for role, parameters, optimizer in self._roles():
            for name, parameter in parameters.items():
                tensors[f"{role}/value/{name}"] = parameter.detach()
                for key, value in optimizer.state[parameter].items():
                    tensors[f"{role}/{key}/{name}"] = value
        with atomic_folder(self._folder) as folder:
            save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "state.safetensors")
            (folder / "progress.json").write_text(
                json.dumps({"step": step, "history": self.history})
            )

    def _load(self) -> int:
        if not (self._folder / "progress.json").is_file():
            return 0
        progress = json.loads((self._folder / "progress.json").read_text())
        with (
            torch.no_grad(),
            safe_open(self._folder / "state.safetensors", framework="pt") as tensors,
        ):
            stored = set(tensors.keys())
            for name, buffer in self._trainable.buffers.items():
                buffer.copy_(tensors.get_tensor(f"buffer/{name}"))
            for role, parameters, optimizer in self._roles():
                for name, parameter in parameters.items():
                    parameter.copy_(tensors.get_tensor(f"{role}/value/{name}"))
                    state = {}
                    for key in ("step", "exp_avg", "exp_avg_sq"):
                        if f"{role}/{key}/{name}" in stored:
                            value = tensors.get_tensor(f"{role}/{key}/{name}")
                            state[key] = value if key == "step" else value.to(parameter.device)
                    if state:
                        optimizer.state[parameter] = state
            torch.set_rng_state(tensors.get_tensor("rng"))
            if "rng_cuda" in stored and torch.cuda.is_available():
                torch.cuda.set_rng_state(tensors.get_tensor("rng_cuda"))
        self.history = progress["history"]
        return int(progress["step"])

    def _roles(
        self,
    ) -> list[tuple[str, Mapping[str, nn.Parameter], torch.optim.Optimizer]]:
        roles = [("main", self._trainable.main, self._optimizers["main"])]
        if self._trainable.auxiliary:
            roles.append(("auxiliary", self._trainable.auxiliary, self._optimizers["auxiliary"]))
        return roles


def epoch_batches(count: int, batch: int, step: int, seed: int) -> torch.Tensor:
    """Rows of a step's batch: shuffled epochs, a function of (seed, step) only.

    Args:
        count: rows in total.
        batch: rows a step; at most `count` are returned.
        step: step number from 0.
        seed: of the shuffles.

    Returns:
        int64 rows, all from one epoch; the last batch of an epoch may be short.
    """
    per_epoch = max(1, math.ceil(count / batch))
    epoch, position = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    return order[position * batch : (position + 1) * batch]
