"""Two processes train every stage to what one process trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_tpad import NAME, run_record
from tiny_catalogue import TINY, write_catalogue

from recbole_tpad.errors import InputError
from recbole_tpad.stages.processes import Processes, processes
from recbole_tpad.store import open_store

ROOT = Path(__file__).resolve().parents[2]
# Not `accelerate launch --cpu`, which starts a single process without a word.
LAUNCH = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]


def embed(
    data_path: Path, launcher: list[str], **changes: object
) -> subprocess.CompletedProcess[str]:
    keys = {f"backbone.tiny.{k}": v for k, v in TINY.items()}
    keys |= {"backbone.lora.dropout": 0.0, "knowledge.batch_size": 7}
    keys |= {"transition.pairs_per_step": 12, "transition.loop.steps": 6}
    keys |= {"alignment.batch_size": 8, "alignment.projection": 8, "alignment.loop.steps": 6}
    keys |= {"knowledge.loop.steps": 6, "knowledge.loop.learning_rate": 1e-3}
    keys |= {"knowledge.evaluate_every": 3, "encoding.shard_items": 5, **changes}
    command = [sys.executable, "-W", "ignore", *launcher, "-m", "recbole_tpad", "embed"]
    command += ["--dataset", NAME, "--data_path", str(data_path), "--generator", "tpad-tiny"]
    return subprocess.run(
        [*command, *(f"--{k}={v}" for k, v in keys.items())],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def result(data_path: Path, stage: str) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    (folder,) = (data_path / NAME / "stages").glob(f"{stage}-*")
    history = json.loads((folder / "stage.json").read_text())["history"]
    return load_file(folder / "weights.safetensors"), history


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    for place in ("one", "two"):
        write_catalogue(tmp_path / place)
    run = embed(tmp_path / "one", [])
    assert run.returncode == 0, run.stderr[-2000:]
    port = str(20000 + os.getpid() % 20000)
    run = embed(tmp_path / "two", [*LAUNCH, "--master_port", port])
    assert run.returncode == 0, run.stderr[-2000:]
    for stage in ("knowledge", "transition", "alignment"):
        (one, history), (two, other) = (result(tmp_path / p, stage) for p in ("one", "two"))
        assert set(one) == set(two)
        for name, tensor in one.items():
            assert torch.allclose(tensor, two[name], atol=1e-4), (stage, name)
        for left, right in zip(history, other, strict=True):
            assert set(left) == set(right)
            for key in ("loss", "gradient_norm"):
                assert right[key] == pytest.approx(left[key], rel=1e-3), (stage, key)
    record = run_record(open_store(tmp_path / "two" / NAME / "embeddings" / "tpad-tiny"))
    (encoding,) = (stage for stage in record["stages"] if stage["name"] == "encoding")
    assert encoding["summary"]["items"] == 14  # by the first one: three shards of five


@pytest.mark.parametrize("count", ["1", "2"])
def test_deepspeed_is_refused(count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", count)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    processes.cache_clear()
    with pytest.raises(InputError, match="DeepSpeed is asked for, but is not used here"):
        processes()
    processes.cache_clear()


def test_one_process_has_nothing_to_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    processes.cache_clear()
    assert processes() == Processes()
    processes.cache_clear()
