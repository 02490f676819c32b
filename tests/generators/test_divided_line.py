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
from small_tpad import NAME, run_record
from tiny_catalogue import read_lines, write_backbone, write_catalogue, write_lines

from recbole_tpad.store import open_store

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("knowledge", "transition", "alignment")
CONFIGURATION = """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
num_machines: 1
num_processes: 2
use_cpu: true
mixed_precision: 'no'
"""
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


def port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launcher(place: Path, *, accelerate: bool) -> list[str]:
    """Two processes by accelerate, whose configuration says FSDP, or by torchrun."""
    if not accelerate:
        address = ["--master_addr", "127.0.0.1", "--master_port", port()]
        return ["-m", "torch.distributed.run", "--nproc_per_node", "2", *address]
    file = place / "fsdp.yaml"
    file.write_text(CONFIGURATION)
    address = ["--main_process_ip", "127.0.0.1", "--main_process_port", port()]
    return ["-m", "accelerate.commands.launch", "--config_file", str(file), *address]


def start(
    place: Path, launched: list[str], generator: str, changes: dict[str, Any]
) -> subprocess.Popen[str]:
    """`embed` with changes to the small run; with none, of the tower that is there (`--update`)."""
    command = [sys.executable, "-W", "ignore", *launched, "-m", "recbole_tpad", "embed"]
    command += ["--dataset", NAME, "--data_path", str(place), "--generator", generator]
    command += [f"--{k}={v}" for k, v in changes.items()] if changes else ["--update"]
    asked = {"ACCELERATE_USE_FSDP": "true"} if "torch.distributed.run" in launched else {}
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


def finish(process: subprocess.Popen[str], timeout: float = 400) -> str:
    """What it printed; a hang is killed with everything that it started."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    assert process.returncode == 0, output[-4000:]
    return output


def embed(
    place: Path, launched: list[str], changes: dict[str, Any], generator: str = "tpad"
) -> None:
    finish(start(place, launched, generator, changes))


def result(place: Path, stage: str) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    (folder,) = (place / NAME / "stages").glob(f"{stage}-*/stage.json")
    history = json.loads(folder.read_text())["history"]
    return load_file(folder.with_name("weights.safetensors")), history


def assert_equal_runs(one: Path, two: Path, *stages: str, store: str = "tpad") -> None:
    for stage in stages:
        (wanted, history), (found, other) = result(one, stage), result(two, stage)
        assert set(found) == set(wanted)
        for name, tensor in wanted.items():
            assert torch.allclose(found[name], tensor, atol=1e-4), (stage, name)
        for left, right in zip(history, other, strict=True):
            assert set(left) == set(right)
            for key in ("loss", "gradient_norm"):
                assert right[key] == pytest.approx(left[key], rel=1e-3), (stage, key)
    stores = [open_store(place / NAME / "embeddings" / store) for place in (one, two)]
    for name in stores[0].manifest.modalities:
        left, right = (np.asarray(store.array(name), dtype=np.float32) for store in stores)
        assert np.allclose(left, right, atol=2e-3), name  # fp16


def encoded_by_the_first(place: Path) -> int:
    record = run_record(open_store(place / NAME / "embeddings" / "tpad"))
    (encoding,) = (stage for stage in record["stages"] if stage["name"] == "encoding")
    return int(encoding["summary"]["items"])


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    embed(one, [], KEYS | prepared(one))
    embed(two, launcher(tmp_path, accelerate=True), KEYS | prepared(two))
    assert_equal_runs(one, two, *STAGES)
    assert (encoded_by_the_first(one), encoded_by_the_first(two)) == (24, 14)
    for place in (one, two):
        file = place / NAME / "items.jsonl"
        lines = read_lines(file)
        new = [{**lines[0], "item_id": f"n{k}", "title": f"jug {k}"} for k in range(11)]
        write_lines(file, lines + new)
    embed(one, [], {})
    embed(two, launcher(tmp_path, accelerate=True), {})
    assert_equal_runs(one, two)


@pytest.mark.slow
def test_notellm2(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    keys = {k: v for k, v in KEYS.items() if k.startswith("backbone.")}
    keys |= {"compression.pairs_per_step": 8, "compression.chunk": 3, "compression.dimension": 8}
    keys |= {"compression.loop.steps": 4, "compression.loop.learning_rate": 1e-3}
    embed(one, [], keys | prepared(one), "notellm2")
    embed(two, launcher(tmp_path, accelerate=False), keys | prepared(two), "notellm2")
    assert_equal_runs(one, two, "notellm2", store="notellm2")


@pytest.mark.slow
def test_a_killed_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    often = {"knowledge.loop.checkpoint_seconds": 0, "transition.loop.checkpoint_seconds": 0}
    embed(whole, [], KEYS | often | prepared(whole))
    keys = KEYS | often | prepared(killed)
    for stage in ("knowledge", "transition"):
        process = start(killed, launcher(tmp_path, accelerate=False), "tpad", keys)
        deadline = time.monotonic() + 300
        while not any(killed.glob(f"{NAME}/stages/{stage}-*.checkpoint/progress.json")):
            assert process.poll() is None, process.communicate()[0][-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        kill(process)
    embed(killed, [], keys)
    assert_equal_runs(whole, killed, *STAGES)
