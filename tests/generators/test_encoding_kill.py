"""SIGKILL at random moments of an encoding, under changing numbers of processes, and with torchrun.

The tower is trained once; each run forks from a process that has it loaded, so a kill is cheap.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from small_tpad import NAME, run_tpad
from tiny_catalogue import TINY, read_lines, write_catalogue, write_lines
from tqdm import tqdm

from recbole_tpad.data import DatasetFolder
from recbole_tpad.generators import tpad_tower
from recbole_tpad.stages import encoding
from recbole_tpad.stages.processes import Processes
from recbole_tpad.store import open_store, write_store
from recbole_tpad.store.lock import recover

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
pytestmark = pytest.mark.slow


def in_child(work: Callable[[], object]) -> int:
    """Fork; the child's process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def files(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir() if p.name != "run.json"}


def test_fifty_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """During shards, between them, and while the store is put together; 1 to 3 writers."""
    folder = write_catalogue(tmp_path / "data")
    run_tpad(folder, {"encoding": {"shard_items": 2}})
    work = folder.path / "stages"
    (made,) = work.glob("tower-*")
    key = open_store(folder.path / "embeddings" / "small").manifest.inputs["tower"]
    assert made == tpad_tower.tower_folder(work, key)
    tower = tpad_tower.read_tower(work, key)
    backbone = tpad_tower.load_for_encoding(work, tower, CPU)
    items = tower.as_read(folder.items)
    content = tower.content_hashes(items)
    torch.set_num_threads(1)
    # tqdm's own lock is shared by forked processes: one killed inside it would block all others.
    monkeypatch.setattr(tqdm, "_lock", threading.RLock(), raising=False)

    def shards(scratch: Path, rank: int = 0, count: int = 1) -> Path:
        monkeypatch.setattr(encoding, "processes", lambda: Processes(rank, count))
        monkeypatch.setattr(Processes, "wait", lambda self: None)
        return tpad_tower.encode(backbone, tower, items, content, scratch, CPU)[0].path

    def whole(scratch: Path, path: Path) -> None:
        rows, _ = tpad_tower.encode(backbone, tower, items, content, scratch, CPU)
        write_store(
            path,
            [i.item_id for i in items],
            rows.arrays,
            role="K1",
            generator="x",
            dataset=NAME,
            split_fingerprint=None,
            inputs={},
            content=content,
            shard_items=rows.size,
        )

    started = time.perf_counter()
    whole(tmp_path / "scratch-whole", tmp_path / "whole")
    length = time.perf_counter() - started
    wanted = files(tmp_path / "whole")
    (name,) = (p.name for p in (tmp_path / "scratch-whole").iterdir())
    rng = random.Random()
    kills = unfinished = 0
    scratch, store = tmp_path / "scratch", tmp_path / "store"
    while kills < 50:
        before = times(scratch / name)
        count = rng.choice([1, 1, 2, 3])
        children = (
            [in_child(lambda: whole(scratch, store))]
            if count == 1
            else [in_child(partial(shards, scratch, r, count)) for r in range(count)]
        )
        time.sleep(rng.uniform(0, 1.2 * length))
        for child in children:
            os.kill(child, signal.SIGKILL)
        ends = [os.waitpid(child, 0)[1] for child in children]
        kills += sum(end == signal.SIGKILL for end in ends)
        after = times(scratch / name)
        assert before.items() <= after.items()  # a finished shard is never written again
        assert all(f.read_bytes() == wanted[f.name] for f in visible(scratch / name))
        unfinished += 0 < len(after) < 2 * 12
        recover(store)
        if store.exists():  # complete or not at all
            open_store(store).verify()
            assert files(store) == wanted
            shutil.rmtree(store)
            shutil.rmtree(scratch)
    assert unfinished > 3  # kills did fall between shards
    whole(scratch, store)
    assert files(store) == wanted


def visible(path: Path) -> list[Path]:
    return [p for p in path.iterdir() if p.suffix == ".npy"] if path.is_dir() else []


def times(path: Path) -> dict[str, int]:
    """When the files of whole shards were written: those with every modality."""
    found = visible(path)
    counts = Counter(p.name.partition(".")[2] for p in found)
    return {p.name: p.stat().st_mtime_ns for p in found if counts[p.name.partition(".")[2]] == 2}


def embed(data_path: Path, launcher: list[str]) -> subprocess.Popen[str]:
    keys = {f"backbone.tiny.{k}": v for k, v in TINY.items()}
    keys |= {"knowledge.loop.steps": 3, "knowledge.batch_size": 8, "no_alignment": "true"}
    keys |= {"encoding.shard_items": 2}
    command = [sys.executable, "-W", "ignore", *launcher, "-m", "recbole_tpad", "embed"]
    command += ["--dataset", NAME, "--data_path", str(data_path), "--generator", "tpad-tiny"]
    return subprocess.Popen(
        [*command, *(f"--{k}={v}" for k, v in keys.items())],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    try:
        _, errors = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors[-3000:]


def torchrun(*more: str) -> list[str]:
    port = str(20000 + os.getpid() % 20000)
    two = ["--nproc_per_node", "2", "--master_port", port]
    return ["-m", "torch.distributed.run", *two, *more]


def test_two_processes_equal_one_also_when_one_is_killed(tmp_path: Path) -> None:
    """With torch elastic's restart: the killed worker's group starts again and fills the rest."""
    folder = write_catalogue(tmp_path / "one")
    finish(embed(tmp_path / "one", []))
    store = folder.path / "embeddings" / "tpad-tiny"
    wanted = files(store)
    for place, more, kill in (
        ("two", (), False),
        ("restarted", ("--max_restarts", "3"), True),
        ("again", (), True),
    ):
        shutil.copytree(folder.path, tmp_path / place / NAME)
        made = tmp_path / place / NAME
        shutil.rmtree(made / "embeddings")
        # More to encode, so that there is a middle: the trained stages do not depend on it.
        process = embed(tmp_path / place, torchrun(*more))
        if kill:
            killed = kill_worker(process, made / "stages")
            if not more:
                process.communicate(timeout=300)
                if killed:
                    assert process.returncode != 0
                process = embed(tmp_path / place, torchrun())
        finish(process)
        assert files(made / "embeddings" / "tpad-tiny") == wanted, place


def kill_worker(process: subprocess.Popen[str], stages: Path) -> bool:
    """Kill the second worker once the first shard is there; False if it had ended before."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if any(stages.glob("encoding-*/*.npy")):
            for worker in children(process.pid):
                environment = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
                if b"RANK=1" in environment:
                    os.kill(worker, signal.SIGKILL)
                    return True
        time.sleep(0.001)
    return False


def children(parent: int) -> list[int]:
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in listed]


def test_an_update_by_two_processes_equals_one(tmp_path: Path) -> None:
    folder = write_catalogue(tmp_path / "one")
    finish(embed(tmp_path / "one", []))
    lines = read_lines(folder.path / "items.jsonl")
    new = [{**line, "item_id": f"n{k}", "title": f"jug {k}"} for k, line in enumerate(lines)]
    write_lines(folder.path / "items.jsonl", sorted(lines + new, key=lambda x: x["item_id"]))
    shutil.copytree(folder.path, tmp_path / "two" / NAME)
    for place, launcher in (("one", []), ("two", torchrun())):
        command = [sys.executable, "-W", "ignore", *launcher, "-m", "recbole_tpad", "embed"]
        command += ["--dataset", NAME, "--data_path", str(tmp_path / place), "--update"]
        done = subprocess.run(
            [*command, "--generator", "tpad-tiny"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("24 new, 0 changed, 0 removed, 24 kept") == 1
    one, two = (
        DatasetFolder.open(tmp_path / p, NAME).path / "embeddings" / "tpad-tiny"
        for p in ("one", "two")
    )
    assert files(one) == files(two)
