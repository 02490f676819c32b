"""The annotator `openai` against an endpoint that behaves well and badly."""

from __future__ import annotations

import gc
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from asking import KEY, ask, expected, got
from chat_server import ChatServer, picture, reread, write_shop
from tiny_catalogue import read_lines

from recbole_tpad.cli import main
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.keywords.cache import AnswerCache
from recbole_tpad.keywords.dispatch import Patience
from recbole_tpad.keywords.endpoint import EndpointSettings
from recbole_tpad.keywords.openai import OpenAIAnnotator
from recbole_tpad.keywords.questions import Question


def test_every_item_gets_the_keywords_of_its_own_picture(
    shop: DatasetFolder, server: ChatServer
) -> None:
    # Early questions answered last: an answer that went by order would be another item's.
    server.script = {f"thing {k}": [f"late {0.3 - 0.025 * k}"] for k in range(12)}
    report = ask(shop, server, patience=Patience(concurrency=12))
    assert got(shop) == expected()
    assert dict(report.statuses) == {"ok": 12}
    assert set(server.asked.values()) == {1}
    assert server.answered != [f"thing {k}" for k in range(12)]
    assert {line["annotator"] for line in read_lines(shop.path / "keywords.jsonl")} == {"openai"}


def test_images_are_read_only_a_little_ahead(
    tmp_path: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = write_shop(tmp_path, n_items=64)
    live: list[int] = []
    real = AnswerCache.add

    def add(cache: AnswerCache, record: dict[str, Any]) -> None:
        real(cache, record)
        if len(cache) % 16 == 0:
            live.append(sum(type(each) is Question for each in gc.get_objects()))

    monkeypatch.setattr(AnswerCache, "add", add)
    items = reread(shop).items * 6  # equal questions are followers, and hold nothing either
    settings = EndpointSettings("seer-large", base_url=server.url)
    with AnswerCache(shop.path / "keywords") as cache:
        patience = Patience(concurrency=1)
        OpenAIAnnotator(shop.path, cache, settings, patience=patience).annotate(items)
    assert len(live) == 4
    assert 1 <= max(live) <= 50  # chunks of 16 in two threads, and one being admitted


@pytest.mark.parametrize("concurrency", [1, 3])
def test_requests_in_flight_stay_at_the_limit(
    shop: DatasetFolder, server: ChatServer, concurrency: int
) -> None:
    server.slow = 0.02
    ask(shop, server, patience=Patience(concurrency=concurrency))
    assert server.most_at_a_time == concurrency


@pytest.mark.parametrize(
    "steps",
    [
        ["busy 0.05"],
        ["busy 0.05", "busy"],
        ["status 500"],
        ["status 503", "status 500"],
        ["status 408"],
        ["half"],
        ["half", "half_body"],
        ["half_later"],
        ["prose"],
        ["chinese"],
        ["german", "chinese"],
        ["drop"],
        ["drop", "drop"],
        ["html"],
        ["nothing"],
        ["no_choice"],
        ["no_usage"],
    ],
    ids="-".join,
)
def test_a_bad_answer_is_asked_again_or_repaired(
    shop: DatasetFolder, server: ChatServer, steps: list[str]
) -> None:
    server.script = {"thing 3": list(steps), "thing 7": list(steps)}
    report = ask(shop, server)
    assert dict(report.statuses) == {"ok": 12}
    found = got(shop)
    assert {i: k[:3] for i, k in found.items()} == expected()
    taken = {"half_later", "prose", "no_usage"} & set(steps)
    assert server.asked["thing 3"] == (len(steps) if taken else len(steps) + 1)
    assert server.asked["thing 0"] == 1


def test_a_bad_answer_is_told_what_was_wrong(shop: DatasetFolder, server: ChatServer) -> None:
    server.script = {"thing 3": ["chinese"]}
    ask(shop, server)
    first, second = (s.body["messages"][0]["content"] for s in server.seen if s.title == "thing 3")
    assert first[0] == second[0]
    assert "not in English" not in first[1]["text"]
    assert "not in English" in second[1]["text"]


def test_what_stays_bad_is_named_and_counted_and_asked_again_next_time(
    shop: DatasetFolder, server: ChatServer
) -> None:
    server.script = {
        "thing 0": ["half"] * 3,
        "thing 1": ["german"] * 3,
        "thing 2": ["status 500"] * 3,
        "thing 3": ["status 413"],
        "thing 4": ["empty"],
        "thing 5": ["drop"] * 3,
    }
    report = ask(shop, server)
    assert dict(report.statuses) == {
        "ok": 6,
        "empty": 1,
        "refused": 1,
        "malformed": 2,
        "failed": 2,
    }
    problems = {
        line["item_id"]: (line["status"], line["reason"])
        for line in read_lines(shop.path / "keywords" / "openai.problems.jsonl")
    }
    assert problems["i00"] == ("malformed", "broken JSON")
    assert problems["i01"] == ("malformed", "not in English")
    assert problems["i02"] == ("failed", "status 500: something is wrong")
    assert problems["i03"] == ("refused", "status 413: something is wrong")
    assert problems["i04"] == ("empty", "an empty list")
    assert problems["i05"][1].startswith("no connection")
    for item_id, (status, reason) in problems.items():
        assert f"  {status} " in str(report)
        assert f"    {item_id}: {reason}" in str(report)
    before = server.asked
    assert dict(ask(shop, server).statuses) == {"ok": 11, "empty": 1}
    again = {title for title, count in server.asked.items() if count > before[title]}
    assert again == {f"thing {k}" for k in (0, 1, 2, 3, 5)}
    assert got(shop) == {i: k for i, k in expected().items() if i != "i04"}


def test_retry_after_is_obeyed_by_everybody(shop: DatasetFolder, server: ChatServer) -> None:
    server.script = {"thing 0": ["busy 1"]}
    started = time.monotonic()
    ask(shop, server, patience=Patience(concurrency=2))
    told = next(s.moment for s in server.seen if s.title == "thing 0")
    later = [s.moment for s in server.seen if s.moment > told + 0.2]
    assert later
    assert min(later) >= told + 0.95
    assert time.monotonic() - started < 10
    assert set(got(shop)) == set(expected())


def test_an_endpoint_that_stays_busy_ends_the_run(shop: DatasetFolder, server: ChatServer) -> None:
    server.default = "busy"
    with pytest.raises(InputError, match=r"stays busy.*slow down.*later"):
        ask(shop, server)
    server.default = "busy 3600"
    with pytest.raises(InputError, match="asking for 3600 s"):
        ask(shop, server)


def test_an_endpoint_that_dies_midway_ends_the_run_and_keeps_what_there_is(
    tmp_path: Path, server: ChatServer
) -> None:
    shop = write_shop(tmp_path, n_items=60)
    server.script = {f"thing {k}": ["status 503"] * 9 for k in range(20, 60)}
    report = ask(shop, server, patience=Patience(concurrency=2, retries=3, backoff=0.001))
    assert "requests in a row failed" in report.stopped
    assert report.annotated == 20
    assert report.statuses["not asked"] > 20
    assert got(shop) == expected(20)
    server.script = {}
    asked = server.asked
    assert ask(shop, server).annotated == 60
    assert all(server.asked[f"thing {k}"] == asked[f"thing {k}"] == 1 for k in range(20))


def test_a_stalled_request_is_given_up_in_time(shop: DatasetFolder, server: ChatServer) -> None:
    server.script = {"thing 5": ["stall"]}
    started = time.monotonic()
    report = ask(shop, server, timeout=0.5)
    assert time.monotonic() - started < 10
    assert dict(report.statuses) == {"ok": 12}


def test_an_endpoint_without_the_newer_parameters(shop: DatasetFolder, server: ChatServer) -> None:
    server.default = "plain_only"
    assert dict(ask(shop, server).statuses) == {"ok": 12}
    assert got(shop) == expected()
    last = server.seen[-1].body
    assert not {"response_format", "temperature", "max_tokens"} & set(last)
    assert last["max_completion_tokens"] == 200


@pytest.mark.parametrize(
    ("default", "settings", "message"),
    [
        ("good", {"model": "seer-larg"}, r"no model 'seer-larg'.* Did you mean 'seer-large'"),
        ("no_images", {}, r"refuses what it is asked: status 400: .*does not support image"),
        ("no_quota", {}, r"nothing left: .*current quota"),
        ("status 402", {}, r"wants to be paid"),
        ("status 403", {}, r"does not accept the key in OPENAI_API_KEY"),
        ("good", {"base_url": "http://127.0.0.1:1/v1"}, r"in a row failed.*no connection.*up\?"),
        ("good", {"base_url": "ftp://x/v1"}, r"must look like https://host/v1"),
        ("good", {"base_url": "http://x:port/v1"}, r"must look like https://host/v1"),
        ("good", {"base_url": "http://me:pass@x/v1"}, r"must not hold a user name, a password"),
        ("good", {"key_env": "NO_SUCH_KEY"}, r"set the environment variable NO_SUCH_KEY"),
        ("good", {"model": ""}, r"needs a model"),
        ("good", {"budget": 1.0}, r"A budget needs prices"),
        ("good", {"timeout": 0}, r"timeout must be above 0"),
        ("good", {"max_tokens": 0}, r"max_tokens must be at least 1"),
    ],
)
def test_what_cannot_work_ends_at_once_with_the_remedy(
    tmp_path: Path,
    server: ChatServer,
    default: str,
    settings: dict[str, Any],
    message: str,
) -> None:
    shop = write_shop(tmp_path, n_items=40)
    (shop.path / "keywords.jsonl").write_text('{"item_id": "i00", "keywords": ["old"]}\n')
    server.default = default
    patience = Patience(concurrency=2, retries=20, backoff=0.001)
    with pytest.raises(InputError, match=message) as told:
        ask(shop, server, patience=patience, **settings)
    assert "pass@" not in str(told.value)
    assert len(server.seen) <= 12
    assert got(shop) == {"i00": ("old",)}


def test_the_key_is_never_shown(
    shop: DatasetFolder,
    server: ChatServer,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    arguments = ["keywords", "--dataset", "shop", "--data_path", str(shop.path.parent)]
    arguments += ["--annotator", "openai", "--base-url", server.url, "--model", "seer-large"]
    assert main(arguments) == 0
    assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"
    # This endpoint quotes the key it does not accept; --debug prints the traceback.
    server.key = "another"
    (shop.path / "images" / "i00.png").write_bytes(picture(1))
    (shop.path / "keywords" / "answers.jsonl").unlink()
    assert main(["--debug", *arguments]) == 2
    said = capfd.readouterr()
    assert "Incorrect API key: Bearer ***" in said.err
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\u00e9")
    assert main(["--debug", *arguments]) == 2
    last = capfd.readouterr()
    assert "characters that no key has" in last.err
    written = [p.read_bytes() for p in shop.path.rglob("*") if p.is_file()]
    assert not any(KEY.encode() in content for content in written)
    for text in (said.out, said.err, last.out, last.err, caplog.text):
        assert KEY not in text


def test_without_the_package_the_remedy_is_named(
    shop: DatasetFolder, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(InputError, match=r"pip install 'recbole-tpad\[openai\]'"):
        ask(shop, server)
