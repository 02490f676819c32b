"""TPAD's whole line on two processes that divide the frozen base equals that of one process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_tpad import NAME
from tiny_catalogue import write_backbone, write_catalogue

from recbole_tpad.data import DatasetFolder
from recbole_tpad.store import open_store

ROOT = Path(__file__).resolve().parents[2]
# Cut so that the two processes have unequal numbers of micro-batches, chunks and shards.
KEYS: dict[str, Any] = {
    "backbone.dtype": "float32",
    "backbone.lora.rank": 4,
    "backbone.lora.dropout": 0.0,
    "knowledge.batch_size": 7,
    "knowledge.micro_batch_tokens": 150,
    "knowledge.evaluate_every": 3,
    "knowledge.patience": 2,
    "knowledge.loop.steps": 7,
    "knowledge.loop.learning_rate": 1e-3,
    "transition.pairs_per_step": 8,
    "transition.chunk": 3,
    "transition.loop.steps": 5,
    "transition.loop.learning_rate": 1e-3,
    "alignment.batch_size": 8,
    "alignment.projection": 8,
    "alignment.loop.steps": 5,
    "encoding.shard_items": 5,
    "encoding.batch_tokens": 250,
}


def prepared(place: Path) -> dict[str, str]:
    """A catalogue and a base with random weights in Hugging Face format; the base's keys."""
    dataset = write_catalogue(place)
    base = write_backbone(place / "base", dataset.items)
    return {
        "backbone.vision": str(base / "vision"),
        "backbone.language_model": str(base / "language_model"),
    }


def start(
    place: Path, processes: int, changes: dict[str, Any], *, update: bool = False
) -> subprocess.Popen[str]:
    launcher = []
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        launcher += ["--master_addr", "127.0.0.1", "--master_port", port]
    command = [sys.executable, "-W", "ignore", *launcher, "-m", "recbole_tpad", "embed"]
    command += ["--dataset", NAME, "--data_path", str(place), "--generator", "tpad"]
    command += ["--update"] if update else [f"--{k}={v}" for k, v in (KEYS | changes).items()]
    asked = {"ACCELERATE_USE_FSDP": "true"} if processes > 1 else {}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **asked},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, and for the workers of a launcher first."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in [*map(int, children), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def finish(process: subprocess.Popen[str], timeout: float = 240) -> str:
    """What it printed; a hang is killed with everything that it started."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    assert process.returncode == 0, output[-4000:]
    return output


def embed(place: Path, processes: int, changes: dict[str, Any], **more: bool) -> None:
    finish(start(place, processes, changes, **more))


def result(place: Path, stage: str) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    (folder,) = (place / NAME / "stages").glob(f"{stage}-*/stage.json")
    history = json.loads(folder.read_text())["history"]
    return load_file(folder.with_name("weights.safetensors")), history


def assert_equal_runs(one: Path, two: Path) -> None:
    for stage in ("knowledge", "transition", "alignment"):
        (wanted, history), (found, other) = result(one, stage), result(two, stage)
        assert set(found) == set(wanted)
        for name, tensor in wanted.items():
            assert torch.allclose(found[name], tensor, atol=1e-4), (stage, name)
        for left, right in zip(history, other, strict=True):
            assert set(left) == set(right)
            for key in ("loss", "gradient_norm"):
                assert right[key] == pytest.approx(left[key], rel=1e-3), (stage, key)
    assert_equal_stores(one, two)


def assert_equal_stores(one: Path, two: Path) -> None:
    stores = [open_store(place / NAME / "embeddings" / "tpad") for place in (one, two)]
    for name in stores[0].manifest.modalities:
        left, right = (np.asarray(store.array(name), dtype=np.float32) for store in stores)
        assert np.allclose(left, right, atol=2e-3), name  # fp16


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    for place, processes in (("one", 1), ("two", 2)):
        embed(tmp_path / place, processes, prepared(tmp_path / place))
    assert_equal_runs(tmp_path / "one", tmp_path / "two")
    for place, processes in (("one", 1), ("two", 2)):
        dataset = DatasetFolder.open(tmp_path / place, NAME)
        file = dataset.path / "items.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines += [{**lines[0], "item_id": f"n{k}", "title": f"jug {k}"} for k in range(11)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        embed(tmp_path / place, processes, {}, update=True)
    assert_equal_stores(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_killed_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    frequent = {"knowledge.loop.checkpoint_seconds": 0, "transition.loop.checkpoint_seconds": 0}
    for place in ("whole", "killed"):
        frequent |= prepared(tmp_path / place)
    embed(tmp_path / "whole", 1, frequent)
    work = tmp_path / "killed" / NAME / "stages"
    for processes, stage in ((2, "knowledge"), (2, "transition")):
        process = start(tmp_path / "killed", processes, frequent)
        deadline = time.monotonic() + 120
        while not any(work.glob(f"{stage}-*.checkpoint/progress.json")):
            assert process.poll() is None, process.communicate()[0][-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        kill(process)
    embed(tmp_path / "killed", 1, frequent)
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
