"""Full disks, folders that cannot be written to, and two writers on one store."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_tpad.errors import InputError
from recbole_tpad.store import ItemEmbeddings, open_store, write_store
from recbole_tpad.store.lock import recover, writing
from recbole_tpad.store.shards import ShardFolder

ROOT = Path(__file__).resolve().parents[2]
IDS = [f"i{k:03d}" for k in range(100)]


def write(path: Path, fill: float, shard_items: int = 10) -> ItemEmbeddings:
    return write_store(
        path,
        IDS,
        {"text": np.full((100, 64), fill)},
        role="other",
        generator="x",
        dataset="shop",
        split_fingerprint=None,
        inputs={},
        shard_items=shard_items,
    )


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Files cannot grow beyond so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_without_space_the_old_store_stays(tmp_path: Path) -> None:
    write(tmp_path / "s", 1.0)
    with (
        file_size_limit(3000),
        pytest.raises(InputError, match=r"cannot be written \(File too large\).*run the same"),
    ):
        write(tmp_path / "s", 2.0, shard_items=50)
    store = open_store(tmp_path / "s")
    store.verify()
    assert (np.asarray(store.array("text")) == 1).all()
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert (np.asarray(write(tmp_path / "s", 2.0).array("text")) == 2).all()


def test_without_space_finished_shards_stay(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path / "e", IDS, {"text": 64}, 60)
    folder.write(1, {"text": np.ones((40, 64))})
    with (
        file_size_limit(6000),
        pytest.raises(InputError, match=r"text\.00000\.npy cannot be written"),
    ):
        folder.write(0, {"text": np.ones((60, 64))})
    assert folder.missing() == [0]
    assert [p.name for p in (tmp_path / "e").iterdir()] == ["text.00001.npy"]


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EROFS", "EACCES"])
def test_each_way_of_failing_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    import errno

    number = getattr(errno, error)

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match=r"cannot be written .*: (free|choose|get) "):
        ShardFolder(tmp_path / "e", IDS, {"text": 2}, 60).write(1, {"text": np.ones((40, 2))})
    assert list((tmp_path / "e").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "ro").mkdir()
    (tmp_path / "ro").chmod(0o555)
    with pytest.raises(InputError, match=r"ro/s cannot be written \(Permission denied\)"):
        write(tmp_path / "ro" / "s", 1.0)


def test_a_read_only_folder_can_be_read(tmp_path: Path) -> None:
    store = write(tmp_path / "s", 1.0)
    for file in store.path.iterdir():
        file.chmod(0o444)
    store.path.chmod(0o555)
    try:
        open_store(store.path).verify()
        assert store.rows(IDS[:2]).sum() == 128
    finally:
        store.path.chmod(0o755)


HOLD = """
import sys, time
from pathlib import Path
from recbole_tpad.store.lock import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path, 1.0)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"Another process \(process {holder.pid} on .*\)"):
            write(path, 2.0)
        assert (np.asarray(open_store(path).array("text")) == 1).all()
        other = write(tmp_path / "other", 3.0)  # another store is nobody's business
        assert other.manifest.items == 100
        leftover = tmp_path / ".s.0123abcd.tmp"
        leftover.mkdir()
        stranger = tmp_path / ".s.2.0123abcd.tmp"  # of the store 's.2'
        stranger.mkdir()
    finally:
        holder.kill()
        holder.wait()
    assert (np.asarray(write(path, 2.0).array("text")) == 2).all()
    assert not leftover.exists()
    assert stranger.exists()
    assert not (tmp_path / ".s.lock").exists()


def test_the_lock_may_be_entered_again(tmp_path: Path) -> None:
    with writing(tmp_path / "s"):
        write(tmp_path / "s", 1.0)
        assert (tmp_path / ".s.lock").exists()
    assert not (tmp_path / ".s.lock").exists()


def test_a_store_whose_writer_died_between_two_renames_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "s", 1.0)
    (tmp_path / "s").rename(tmp_path / ".s.0123abcd.old")
    (tmp_path / ".s.4567abcd.tmp").mkdir()
    recover(tmp_path / "s")
    assert (np.asarray(open_store(tmp_path / "s").array("text")) == 1).all()
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


RACE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_writers as t
from recbole_tpad.errors import InputError
done = 0
for turn in range(8):
    try:
        t.write(Path(sys.argv[2]), float(sys.argv[3]))
        done += 1
    except InputError as error:
        assert "Another process" in str(error), error
print(done)
"""


def test_writers_that_race_leave_one_whole_store(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, here, str(tmp_path / "s"), str(fill)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for fill in (1.0, 2.0)
    ]
    results = [p.communicate(timeout=120) for p in started]
    assert all(p.returncode == 0 for p in started), results
    assert sum(int(out) for out, _ in results) >= 1
    store = open_store(tmp_path / "s")
    store.verify()
    values = np.unique(np.asarray(store.array("text")))
    assert values.tolist() in ([1.0], [2.0])
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.slow
def test_killed_at_any_moment_a_store_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    """A child writes a store over and over with rising numbers; kills at random moments."""
    rng = np.random.default_rng()
    path = tmp_path / "s"
    write(path, 0.0)
    kills = 0
    seen = []
    for _ in range(30):
        child = os.fork()
        if child == 0:
            try:
                last = float(np.asarray(open_store(path).array("text"))[0, 0])
                while True:
                    last += 1
                    write(path, last)
            finally:
                os._exit(1)
        time.sleep(float(rng.uniform(0.0, 0.15)))
        os.kill(child, signal.SIGKILL)
        kills += os.waitpid(child, 0)[1] == signal.SIGKILL
        recover(path)  # as `find_store` does: a kill may come between two renames
        store = open_store(path)
        store.verify()
        values = np.unique(np.asarray(store.array("text")))
        assert len(values) == 1
        seen.append(float(values[0]))
    assert kills == 30
    assert len(set(seen)) > 3  # it did write in between
