"""Kill -9 in the middle of `embed`, again and again; the end is that of an undisturbed run."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import Forked
from small_tpad import NAME, stages
from tiny_catalogue import TINY, write_catalogue

ROOT = Path(__file__).resolve().parents[2]
STEPS = 25
pytestmark = pytest.mark.slow


def arguments(data_path: Path) -> list[str]:
    keys = {f"backbone.tiny.{k}": v for k, v in TINY.items()}
    keys |= {"backbone.lora.dropout": 0.2, "knowledge.batch_size": 8, "alignment.batch_size": 8}
    keys |= {"transition.pairs_per_step": 12, "alignment.projection": 8}
    for stage in ("knowledge", "transition", "alignment"):
        keys |= {f"{stage}.loop.steps": STEPS, f"{stage}.loop.checkpoint_seconds": 0}
    found = ["embed", "--dataset", NAME, "--data_path", str(data_path), "--generator", "tpad-tiny"]
    return [*found, *(f"--{k}={v}" for k, v in keys.items())]


def store_files(data_path: Path) -> dict[str, bytes]:
    store = data_path / NAME / "embeddings" / "tpad-tiny"
    return {f.name: f.read_bytes() for f in store.iterdir() if f.name != "run.json"}


def kill_once(data_path: Path, pattern: str, delay: float) -> bool:
    """Kill the run some time after it wrote a path like `pattern`; False if it ended before."""
    started = time.time_ns()
    process = Forked(arguments(data_path), data_path / "log")
    while process.poll() is None and not written_since(data_path / NAME, pattern, started):
        time.sleep(0.001)
    time.sleep(delay)
    return process.kill()


def written_since(folder: Path, pattern: str, moment: int) -> bool:
    """Whether such a path was made or renewed after a moment in nanoseconds."""
    try:
        return any(p.stat().st_mtime_ns > moment for p in folder.glob(pattern))
    except FileNotFoundError:  # replaced between the look and the question
        return False


def test_killed_at_any_moment(tmp_path: Path) -> None:
    for place in ("whole", "killed"):
        write_catalogue(tmp_path / place)
    Forked(arguments(tmp_path / "whole"), tmp_path / "log").finish()
    wanted = store_files(tmp_path / "whole")
    rng = random.Random()  # other moments every time; the outcome must not depend on them
    kills = 0
    for pattern in (
        "stages/*tiny-*",
        "stages/knowledge-*.checkpoint/progress.json",
        "stages/transition-*.checkpoint/progress.json",
        "stages/alignment-*.checkpoint/progress.json",
    ):
        before = stages_done(tmp_path / "killed")
        kills += kill_once(tmp_path / "killed", pattern, rng.uniform(0, 0.3))
        after = stages_done(tmp_path / "killed")
        assert before.items() <= after.items()  # what was finished is never done again
    assert kills >= 3
    # The last one as a user starts it: in a process of its own from the beginning.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "recbole_tpad", *arguments(tmp_path / "killed")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert store_files(tmp_path / "killed") == wanted
    made = tmp_path / "killed" / NAME / "stages"
    assert not [p.name for p in made.iterdir() if p.name.endswith(".checkpoint")]


def stages_done(data_path: Path) -> dict[str, int]:
    from recbole_tpad.data import DatasetFolder

    return stages(DatasetFolder.open(data_path, NAME))
