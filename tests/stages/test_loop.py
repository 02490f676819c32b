"""The training loop: schedule, exact resume, divergence, epochs."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from recbole_tpad.errors import InputError
from recbole_tpad.stages.loop import LoopSettings, Metrics, Trainable, TrainingLoop, epoch_batches

SETTINGS = LoopSettings(steps=12, learning_rate=0.05, warmup=0.2, checkpoint_seconds=0)


class Killed(BaseException):
    """Stands for a kill."""


class Stage:
    """A main network with dropout, and an auxiliary one that the step function trains."""

    def __init__(self, folder: Path, settings: LoopSettings = SETTINGS, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.main = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 1))
        self.auxiliary = nn.Linear(1, 1)
        trainable = Trainable(
            dict(self.main.named_parameters()), dict(self.auxiliary.named_parameters()), 0.02
        )
        self.loop = TrainingLoop("practice", trainable, settings, folder)

    def compute(self, step: int) -> tuple[torch.Tensor, Metrics]:
        """Depends on the step, the parameters and the global RNG."""
        rows = epoch_batches(10, 4, step, seed=3)
        x = torch.sin(rows[:, None] * torch.arange(1.0, 7.0)) + 0.1 * torch.randn(len(rows), 6)
        said = self.main(x)
        own = (self.auxiliary(said.detach()) - x[:, :1]).square().mean()
        self.loop.auxiliary.zero_grad()
        own.backward()
        self.loop.auxiliary.step()
        loss = (said - x.sum(1, keepdim=True)).square().mean() + self.auxiliary(said).mean() * 0.1
        return loss, {"own": own.item()}

    def run(self, kill_at: int | None = None) -> list[Metrics]:
        def compute(step: int) -> tuple[torch.Tensor, Metrics]:
            result = self.compute(step)  # a kill comes in the middle of a step, not between two
            if step == kill_at:
                raise Killed
            return result

        return self.loop.run(compute)

    def values(self) -> list[torch.Tensor]:
        return [p.detach().clone() for m in (self.main, self.auxiliary) for p in m.parameters()]


def same(left: Stage, right: Stage) -> bool:
    pairs = zip(left.values(), right.values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs) and left.loop.history == right.loop.history


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which every look takes a second."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))


@pytest.mark.parametrize("seconds", [0, 2, 100], ids=["every-step", "some-steps", "never"])
@pytest.mark.parametrize("kill_at", [0, *random.Random(4).sample(range(1, 12), 4)])
def test_a_killed_run_resumes_to_the_same_bits(
    kill_at: int, seconds: float, tmp_path: Path, slow_clock: None
) -> None:
    settings = replace(SETTINGS, checkpoint_seconds=seconds)
    whole = Stage(tmp_path / "whole", settings)
    whole.run()
    first = Stage(tmp_path / "killed", settings)
    with pytest.raises(Killed):
        first.run(kill_at)
    # A run without a checkpoint starts again, from its own start.
    started = (tmp_path / "killed" / "progress.json").is_file()
    second = Stage(tmp_path / "killed", settings, seed=99 if started else 0)
    second.run()
    assert same(whole, second)
    assert [m["step"] for m in second.loop.history] == list(range(12))


def test_killed_twice(tmp_path: Path) -> None:
    whole = Stage(tmp_path / "whole")
    whole.run()
    for seed, kill_at in ((0, 3), (5, 9), (6, None)):
        stage = Stage(tmp_path / "killed", seed=seed)
        if kill_at is None:
            stage.run()
            assert same(whole, stage)
        else:
            with pytest.raises(Killed):
                stage.run(kill_at)


def test_a_run_that_is_done_is_not_repeated(tmp_path: Path) -> None:
    first = Stage(tmp_path / "c")
    first.run()
    second = Stage(tmp_path / "c", seed=8)
    second.run(kill_at=0)
    assert same(first, second)


@pytest.mark.parametrize(
    "part", ["rng", "main/exp_avg/0.weight", "main/step/0.weight", "auxiliary/exp_avg_sq/weight"]
)
def test_every_part_of_a_checkpoint_counts(part: str, tmp_path: Path) -> None:
    whole = Stage(tmp_path / "whole")
    whole.run()
    with pytest.raises(Killed):
        Stage(tmp_path / "killed").run(kill_at=6)
    file = tmp_path / "killed" / "state.safetensors"
    tensors = load_file(file)
    other = torch.Generator().manual_seed(77).get_state()
    tensors[part] = other if part == "rng" else tensors[part] * 2
    save_file(tensors, file)
    resumed = Stage(tmp_path / "killed")
    resumed.run()
    assert not same(whole, resumed)


@pytest.mark.parametrize("anomaly_mode", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_divergence_names_stage_and_step(bad: float, anomaly_mode: bool, tmp_path: Path) -> None:
    # Importing one of RecBole's models is enough to turn anomaly mode on.
    with torch.autograd.set_detect_anomaly(anomaly_mode):
        check_divergence(bad, tmp_path)


def check_divergence(bad: float, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "c")

    def compute(step: int) -> tuple[torch.Tensor, Metrics]:
        loss, metrics = stage.compute(step)
        return loss * (bad if step == 5 else 1.0), metrics

    said = r"Stage 'practice' diverged at step 5, items of 5: .*learning_rate"
    with pytest.raises(InputError, match=said):
        stage.loop.run(compute, lambda step: f"items of {step}")
    assert all(torch.isfinite(p).all() for p in stage.values())
    assert len(stage.loop.history) == 5
    # The last good checkpoint is kept: with a cure the run goes on from it.
    cured = Stage(tmp_path / "c", seed=4)
    steps: list[int] = []

    def counted(step: int) -> tuple[torch.Tensor, Metrics]:
        steps.append(step)
        return cured.compute(step)

    cured.loop.run(counted)
    assert steps == list(range(5, 12))


def test_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(1))
    loop = TrainingLoop("roots", Trainable({"w": weight}), SETTINGS, tmp_path / "c")
    with pytest.raises(InputError, match="'roots' diverged at step 0"):
        loop.run(lambda step: (weight.sqrt().sum(), {}))
    assert weight.item() == 0


def test_the_schedule(tmp_path: Path) -> None:
    settings = LoopSettings(steps=100, learning_rate=2.0, warmup=0.1)
    loop = TrainingLoop("s", Trainable({"w": nn.Parameter(torch.ones(1))}), settings, tmp_path)
    rates = [loop.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (k + 1) for k in range(10)])
    assert rates[10] == max(rates) == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"warmup": 1.0}],
)
def test_impossible_settings(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match="Impossible training settings"):
        replace(SETTINGS, **change)  # type: ignore[arg-type]  # the point


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (8, 4), (3, 5), (1, 1), (7, 1)])
def test_epochs_cover_every_row_once(count: int, batch: int) -> None:
    per_epoch = -(-count // batch)
    epochs = []
    for epoch in range(4):
        parts = [epoch_batches(count, batch, epoch * per_epoch + k, 9) for k in range(per_epoch)]
        assert all(0 < len(p) <= batch for p in parts)
        epochs.append(torch.cat(parts).tolist())
        assert sorted(epochs[-1]) == list(range(count))
    if count > 6:
        assert len({tuple(e) for e in epochs}) > 1
        assert epoch_batches(count, batch, 0, 9).tolist() == epochs[0][:batch]
        other = torch.cat([epoch_batches(count, batch, k, 10) for k in range(per_epoch)])
        assert other.tolist() != epochs[0]


def test_quantities_of_the_history(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "c")
    history = stage.run()
    assert set(history[0]) == {"step", "loss", "own", "gradient_norm", "learning_rate"}
    assert [m["learning_rate"] for m in history] == [stage.loop.rate(k) for k in range(12)]
