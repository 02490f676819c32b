"""A training run killed at any moment goes on to the result of an uninterrupted one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.dataset import load_data
from recbole_tpad.bridge.runner import RunResult, build_model, run
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.bridge.trainer import SessionTrainer
from recbole_tpad.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"embedding_size": 8, "n_heads": 2, "n_layers": 2}


class Killed(Exception):
    """Stands for the end of the process."""


def interrupted(keys: dict[str, Any], after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until `after` training steps are done, then stop as a kill would."""
    with monkeypatch.context() as patch:
        step, done = SessionTrainer._step, 0

        def stopping(self: Any, *args: Any) -> float:
            nonlocal done
            if done == after:
                raise Killed
            done += 1
            return step(self, *args)

        patch.setattr(SessionTrainer, "_step", stopping)
        with pytest.raises(Killed):
            run(keys)


def same(first: RunResult, second: RunResult) -> None:
    assert first.curve == second.curve
    assert first.metrics == second.metrics
    assert first.best_epoch == second.best_epoch
    assert first.recbole == second.recbole
    np.testing.assert_array_equal(first.ranks, second.ranks)


def states(keys: dict[str, Any]) -> list[Path]:
    return sorted(Path(keys["checkpoint_dir"]).glob("*.resume.safetensors"))


@pytest.mark.parametrize(
    ("model", "extra"),
    [
        ("SASRec", {}),
        # Negative samples come from numpy's random numbers, masked sequences from Python's.
        ("GRU4Rec", {"loss_type": "BPR", "learner": "sgd"}),
        ("BERT4Rec", {"learner": "rmsprop", "hidden_size": 8, "inner_size": 8}),
        ("DIMO", {**SMALL, "length_bucketing": True}),
        ("DIMO", {**SMALL, "propagate_every": 3, "train_batch_size": 40}),
    ],
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    quick: dict[str, Any], model: str, extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**quick, "model": model, "train_batch_size": 128, **extra}
    whole = run(keys)
    resuming = {**keys, "resume": True, "checkpoint_seconds": 0}
    for after in (0, 2, 3):  # before anything, in the first epoch, past its end
        interrupted(resuming, after, monkeypatch)
    assert len(states(keys)) == 1
    same(run(resuming), whole)
    assert not states(keys)


def test_what_a_finished_training_left_is_only_tested(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**quick, "model": "SASRec", "stopping_step": 0, "epochs": 30}
    whole = run(keys)
    assert whole.epochs < 30, "the case needs a run that stops early"
    resuming = {**keys, "resume": True, "checkpoint_seconds": 0}
    with monkeypatch.context() as patch:
        patch.setattr(SessionTrainer, "forget_state", lambda self: None)
        same(run(resuming), whole)
    with monkeypatch.context() as patch:
        patch.setattr(SessionTrainer, "_step", lambda *_: pytest.fail("trained again"))
        same(run(resuming), whole)


def test_another_run_never_meets_a_foreign_state(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**quick, "model": "SASRec", "resume": True, "checkpoint_seconds": 0}
    interrupted(keys, 3, monkeypatch)
    other = {**keys, "learning_rate": 0.01}
    same(run(other), run({**other, "resume": False}))
    assert len(states(keys)) == 1  # still that of the interrupted run
    moved = {**keys, "show_progress": False, "checkpoint_seconds": 1000}
    same(run(moved), run({**moved, "resume": False}))
    assert not states(keys)


def test_a_damaged_state_is_named(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {**quick, "model": "SASRec", "resume": True, "checkpoint_seconds": 0}
    interrupted(keys, 2, monkeypatch)
    [file] = states(keys)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{file.name}.*is damaged.*Delete it"):
        run(keys)


def test_states_are_kept_only_as_often_as_asked(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted({**quick, "model": "SASRec", "resume": True}, 5, monkeypatch)  # within a minute
    interrupted({**quick, "model": "SASRec", "checkpoint_seconds": 0}, 5, monkeypatch)
    assert not states(quick)


def test_optimiser_and_random_states_are_put_back(quick: dict[str, Any]) -> None:
    with numpy_names():
        config = SessionConfig(
            config_dict={**quick, "model": "SASRec", "resume": True, "checkpoint_seconds": 0}
        )
        loaders = load_data(config)
        made = [SessionTrainer(config, build_model(config, loaders.train._dataset)) for _ in "ab"]
        made[0].epochs = 1
        made[0].fit(loaders.train, loaders.valid, saved=False)
        expected = torch.rand(3), np.random.rand(3)
        made[1]._resume(loaders.train, loaders.valid)
    assert made[1]._resumed is not None
    made[1]._resumed.restore_random()
    torch.testing.assert_close(torch.rand(3), expected[0], rtol=0, atol=0)
    np.testing.assert_array_equal(np.random.rand(3), expected[1])
    first, second = (m.optimizer.state_dict() for m in made)
    assert first["param_groups"] == second["param_groups"]
    for index, entries in first["state"].items():
        for key, value in entries.items():
            assert torch.equal(value, second["state"][index][key])


DRIVER = """
import hashlib, json, os, signal, sys, time
import random as chance
import torch
from safetensors.torch import load_file
from recbole_tpad.bridge.runner import run

from recbole_tpad.bridge.models import model_class

keys = json.loads(sys.argv[1])
model_class("SASRec")  # imports every model of RecBole's, once for all children
chance.seed(int(sys.argv[2]))

def report(keys):
    result = run(keys, saved=True)
    parameters = {k: v.flatten().tolist() for k, v in load_file(result.checkpoint).items()}
    return {"curve": result.curve, "ranks": result.ranks.tolist(), "metrics": result.metrics,
            "best": result.best_epoch, "recbole": result.recbole, "parameters": parameters}

def whole(keys, file):
    child = os.fork()
    if not child:
        with open(file, "w") as stream:
            json.dump(report(keys), stream)
        os._exit(0)
    return child

start = time.monotonic()
os.waitpid(whole(keys, "whole.json"), 0)
duration = time.monotonic() - start
kills = 0
while True:
    child = whole({**keys, "resume": True, "checkpoint_seconds": 0.0}, "resumed.json")
    if kills < 4:
        time.sleep(chance.uniform(0.05, 0.6) * duration)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        kills += 1
    else:
        assert status == 0, status
        break
print(json.dumps({"kills": kills, "left": [f for f in os.listdir("saved") if "resume" in f]}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", ["SASRec", "DIMO"])
def test_killed_processes(shop: Path, tmp_path: Path, model: str) -> None:
    """SIGKILL at random moments; parameters, ranks and curve equal to the last bit."""
    keys = {"model": model, "dataset": "shop", "data_path": "dataset", "epochs": 6}
    keys |= {"train_batch_size": 24, **(SMALL if model == "DIMO" else {})}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER, json.dumps(keys), "5"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["kills"] >= 2
    assert said["left"] == []
    whole, resumed = (
        json.loads((tmp_path / f"{n}.json").read_text()) for n in ("whole", "resumed")
    )
    assert whole == resumed
