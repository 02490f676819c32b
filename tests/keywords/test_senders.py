"""Requests from several processes: the same as from one, and nothing is left of them."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import ChatServer, chatting, keywords_of, reread, write_shop

from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.keywords.annotate import AnnotationReport, annotate
from recbole_tpad.keywords.cache import AnswerCache
from recbole_tpad.keywords.dispatch import Patience, Reply
from recbole_tpad.keywords.endpoint import Connection, EndpointSettings
from recbole_tpad.keywords.openai import OpenAIAnnotator
from recbole_tpad.keywords.questions import Question
from recbole_tpad.keywords.senders import Senders

pytest.importorskip("openai")
KEY = "sk-do-not-show-77aa"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with chatting() as running:
        yield running


def ask(shop: DatasetFolder, server: ChatServer, **settings: object) -> AnnotationReport:
    chosen = {"model": "seer-large", "base_url": server.url, "processes": 2, **settings}
    with AnswerCache(shop.path / "keywords") as cache:
        patience = Patience(concurrency=4, retries=3, backoff=0.01, max_wait=5)
        asking = OpenAIAnnotator(
            shop.path,
            cache,
            EndpointSettings(**chosen),  # type: ignore[arg-type]
            patience=patience,
        )
        return annotate(reread(shop), asking)


def senders() -> list[int]:
    """Process ids of this user's senders."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if "recbole_tpad.keywords.senders" in command and state != "Z":
                assert KEY not in command
                found.append(int(entry.name))
    return found


def mine(before: list[int]) -> list[int]:
    return [pid for pid in senders() if pid not in before]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Nothing is asked before all processes are there; counts what this one asks by title."""
    asked: Counter[str] = Counter()
    real, alone = Senders.ask, Connection.ask

    async def ask(self: Senders, question: Question, wrong: str) -> Reply:
        if self._starting is None:
            self._starting = asyncio.create_task(self._start_all())
        await self._starting
        while not all(s.ready for s in self._senders):
            await asyncio.sleep(0.02)
        return await real(self, question, wrong)

    async def count(self: Connection, question: Question, wrong: str) -> Reply:
        asked[question.item.title] += 1
        return await alone(self, question, wrong)

    monkeypatch.setattr(Senders, "ask", ask)
    monkeypatch.setattr(Connection, "ask", count)
    return asked


needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")


def test_answers_and_troubles_come_through(
    tmp_path: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch, own: Counter[str]
) -> None:
    left_over: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", left_over.append)
    shop = write_shop(tmp_path)
    server.slow = 0.05
    server.key = KEY
    server.script = {
        "thing 1": ["busy 0.05"],
        "thing 2": ["status 500"],
        "thing 3": ["drop", "chinese"],
        "thing 4": ["status 422"],
        "thing 5": ["prose"],
    }
    report = ask(shop, server)
    assert dict(report.statuses) == {"ok": 11, "refused": 1}
    found = {item.item_id: item.keywords for item in reread(shop).items if item.keywords}
    assert found == {f"i{k:02d}": tuple(keywords_of(k)) for k in range(12) if k != 4}
    assert server.most_at_a_time <= 4
    assert 0 < sum(own.values()) < sum(server.asked.values())
    assert server.asked["thing 3"] == 3
    assert len({seen.headers["user-agent"] for seen in server.seen}) == 1
    usage = report.usage
    assert usage is not None
    assert usage.prompt_tokens == 100 * (len(server.answered) + 2)  # Chinese and prose, too
    gc.collect()
    assert not left_over  # such as pipes that outlive their event loop


def test_a_wrong_model_and_no_key_end_at_once(
    tmp_path: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = write_shop(tmp_path)
    with pytest.raises(InputError, match="Did you mean 'seer-large'"):
        ask(shop, server, model="seer-larg")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="No key"):
        ask(shop, server)
    with pytest.raises(InputError, match="processes must be at least 1"):
        ask(shop, server, processes=0)


def test_a_run_waits_for_no_process(
    tmp_path: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = write_shop(tmp_path)
    idle = tmp_path / "python"
    idle.write_text("#!/bin/sh\nexec sleep 60\n")
    idle.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(idle))
    started = time.monotonic()
    assert dict(ask(shop, server, processes=3).statuses) == {"ok": 12}
    assert time.monotonic() - started < 30


@pytest.mark.slow
@needs_proc
def test_a_sender_that_is_killed_costs_nothing(
    tmp_path: Path, server: ChatServer, own: Counter[str]
) -> None:
    shop = write_shop(tmp_path)
    before = senders()
    server.slow = 0.1

    def kill() -> None:
        while not server.seen:
            time.sleep(0.01)
        os.kill(mine(before)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    report = ask(shop, server)
    killer.join()
    assert dict(report.statuses) == {"ok": 12}
    assert sum(own.values()) > 6  # it went on alone
    assert not mine(before)


@pytest.mark.slow
@needs_proc
def test_senders_end_with_the_first_process(tmp_path: Path, server: ChatServer) -> None:
    write_shop(tmp_path)
    before = senders()
    server.default = "late 20"
    command = [sys.executable, "-m", "recbole_tpad", "keywords", "--dataset", "shop"]
    command += ["--data_path", str(tmp_path), "--annotator", "openai", "--base-url", server.url]
    run = subprocess.Popen(
        [*command, "--model", "seer-large", "--processes", "2"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not server.seen:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        while len(mine(before)) != 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        run.kill()
        run.wait()
    while mine(before):
        assert time.monotonic() < deadline
        time.sleep(0.02)
