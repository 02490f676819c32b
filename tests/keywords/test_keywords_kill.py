"""Kill -9 at any moment, and two processes at a time: no answer is lost or asked for again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import ChatServer, chatting, keywords_of, reread, write_shop

from recbole_tpad.data import DatasetFolder

ROOT = Path(__file__).resolve().parents[2]
CONCURRENCY = 4


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chatting() as running:
        running.slow = 0.03
        yield running


def start(shop: DatasetFolder, server: ChatServer) -> subprocess.Popen[bytes]:
    """Start the command as a user would."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "recbole_tpad",
        "keywords",
        "--dataset",
        "shop",
    ]
    command += ["--data_path", str(shop.path.parent), "--annotator", "openai"]
    command += ["--base-url", server.url, "--model", "seer-large"]
    return subprocess.Popen(
        [*command, "--concurrency", str(CONCURRENCY)],
        cwd=ROOT,
        env={**os.environ, "OPENAI_API_KEY": "any"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()[-2000:]


def recorded(shop: DatasetFolder) -> list[str]:
    """Titles with a complete answer in the cache; a line that was cut is none."""
    path = shop.path / "keywords" / "answers.jsonl"
    titles = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            titles.append(f"thing {int(json.loads(line)['item_id'][1:])}")
        except ValueError:
            continue
    return titles


def assert_complete(shop: DatasetFolder, count: int) -> None:
    found = {item.item_id: item.keywords for item in reread(shop).items}
    assert found == {f"i{k:02d}": tuple(keywords_of(k)) for k in range(count)}
    assert sorted(recorded(shop)) == sorted(f"thing {k}" for k in range(count))


def test_two_processes_share_the_work(tmp_path: Path, server: ChatServer) -> None:
    shop = write_shop(tmp_path, n_items=48)
    processes = [start(shop, server) for _ in range(2)]
    for process in processes:
        finish(process)
    assert set(server.asked.values()) == {1}
    assert_complete(shop, 48)


@pytest.mark.slow
def test_killed_at_twenty_random_points(tmp_path: Path, server: ChatServer) -> None:
    shop = write_shop(tmp_path, n_items=64)
    server.slow = 0.1
    rng = random.Random()  # other moments every time; the outcome must not depend on them
    kills = 0
    for _ in range(20):
        before = server.asked
        done = recorded(shop)
        process = start(shop, server)
        try:
            wanted = len(server.seen) + rng.randint(0, 6)
            deadline = time.monotonic() + 60
            while process.poll() is None and len(server.seen) < wanted:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.12))
            kills += process.poll() is None
        finally:
            process.kill()
            process.communicate(timeout=60)
        time.sleep(2 * server.slow)  # the endpoint notices
        again = {title for title, count in server.asked.items() if count > before[title]}
        assert not again & set(done)  # what was recorded is not asked again
        assert set(done) <= set(recorded(shop))  # nor lost
    assert kills >= 10
    finish(start(shop, server))
    assert_complete(shop, 64)
    # Only what was in flight at a kill can have been asked again.
    assert sum(server.asked.values()) <= 64 + kills * CONCURRENCY


@pytest.mark.slow
def test_one_of_two_is_killed(tmp_path: Path, server: ChatServer) -> None:
    shop = write_shop(tmp_path, n_items=64)
    server.slow = 0.2
    first, second = start(shop, server), start(shop, server)
    try:
        deadline = time.monotonic() + 60
        while len(server.seen) < 24:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        first.kill()
        first.communicate(timeout=60)
    finish(second)
    assert_complete(shop, 64)
    assert sum(server.asked.values()) <= 64 + CONCURRENCY
