"""SIGKILL at random moments of an encoding, under changing numbers of processes, and with torchrun.

The tower is trained once; each run forks from a process that has it loaded, so a kill is cheap.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
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
from forked import Forked
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


def arguments(data_path: Path) -> list[str]:
    keys = {f"backbone.tiny.{k}": v for k, v in TINY.items()}
    keys |= {"knowledge.loop.steps": 3, "knowledge.batch_size": 8, "no_alignment": "true"}
    keys |= {"encoding.shard_items": 2}
    found = ["embed", "--dataset", NAME, "--data_path", str(data_path), "--generator", "tpad-tiny"]
    return [*found, *(f"--{k}={v}" for k, v in keys.items())]


def launched(launcher: list[str], command: list[str]) -> subprocess.Popen[str]:
    """Start the command as a user would."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *launcher, "-m", "recbole_tpad", *command],
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


def pair(command: list[str], scratch: Path) -> list[Forked]:
    """Two processes as torchrun starts them, at no cost."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    ranks = ("0", "1")
    return [Forked(command, scratch / f"{port}-{r}", RANK=r, LOCAL_RANK=r, **group) for r in ranks]


@pytest.fixture
def one(tmp_path: Path) -> tuple[DatasetFolder, dict[str, bytes]]:
    """A data set whose stages are trained, and the store that one process makes of it."""
    folder = write_catalogue(tmp_path / "one")
    Forked(arguments(tmp_path / "one"), tmp_path / "log").finish()
    return folder, files(folder.path / "embeddings" / "tpad-tiny")


def without_store(folder: DatasetFolder, place: Path) -> Path:
    """A copy with nothing left to do but to encode."""
    made = place / NAME
    shutil.copytree(folder.path, made)
    shutil.rmtree(made / "embeddings")
    for scratch in made.glob("stages/encoding-*"):
        shutil.rmtree(scratch)
    return made


def test_two_processes_equal_one_also_when_one_is_killed(
    one: tuple[DatasetFolder, dict[str, bytes]], tmp_path: Path
) -> None:
    """A killed worker takes its group down; another run fills what is missing."""
    folder, wanted = one
    whole = without_store(folder, tmp_path / "whole")
    for process in pair(arguments(tmp_path / "whole"), tmp_path):
        process.finish()
    assert files(whole / "embeddings" / "tpad-tiny") == wanted
    for first in (0, 1):  # either may be the one that dies
        made = without_store(folder, tmp_path / f"killed-{first}")
        command = arguments(made.parent)
        group = pair(command, tmp_path)
        killed = kill_once_a_shard_is_there(group[first].pid, group[first].poll, made)
        if killed:
            assert group[first].wait() == -signal.SIGKILL
        for process in group:  # as torchrun does once one has died
            process.kill()
        for process in pair(command, tmp_path):
            process.finish()
        assert files(made / "embeddings" / "tpad-tiny") == wanted


def test_torch_elastic_starts_the_group_again_after_a_kill(
    one: tuple[DatasetFolder, dict[str, bytes]], tmp_path: Path
) -> None:
    folder, wanted = one
    made = without_store(folder, tmp_path / "restarted")
    process = launched(torchrun("--max_restarts", "3"), arguments(made.parent))
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        second = [pid for pid in children(process.pid) if b"RANK=1" in environment(pid)]
        if second and kill_once_a_shard_is_there(second[0], process.poll, made):
            break
    finish(process)
    assert files(made / "embeddings" / "tpad-tiny") == wanted


def kill_once_a_shard_is_there(worker: int, ended: Callable[[], int | None], made: Path) -> bool:
    """Kill a worker in the middle of encoding; False if that was over before."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and ended() is None:
        if any(made.glob("stages/encoding-*/*.npy")):
            os.kill(worker, signal.SIGKILL)
            return True
        time.sleep(0.0005)
    return False


def environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has just ended
        return []


def children(parent: int) -> list[int]:
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in listed]


def test_an_update_by_two_processes_equals_one(
    one: tuple[DatasetFolder, dict[str, bytes]], tmp_path: Path
) -> None:
    folder, _ = one
    lines = read_lines(folder.path / "items.jsonl")
    new = [{**line, "item_id": f"n{k}", "title": f"jug {k}"} for k, line in enumerate(lines)]
    write_lines(folder.path / "items.jsonl", sorted(lines + new, key=lambda x: x["item_id"]))
    shutil.copytree(folder.path, tmp_path / "two" / NAME)

    def command(place: str) -> list[str]:
        data = ["--dataset", NAME, "--data_path", str(tmp_path / place)]
        return ["embed", *data, "--update", "--generator", "tpad-tiny"]

    alone = Forked(command("one"), tmp_path / "alone")
    alone.finish()
    process = launched(torchrun(), command("two"))
    finish(process)
    assert alone.output.read_text().count("24 new, 0 changed, 0 removed, 24 kept") == 1
    stores = [
        DatasetFolder.open(tmp_path / p, NAME).path / "embeddings" / "tpad-tiny"
        for p in ("one", "two")
    ]
    assert files(stores[0]) == files(stores[1])
