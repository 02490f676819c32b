"""The annotator `openai` against an endpoint that behaves well and badly."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, chatting, keywords_of, picture, reread, write_shop
from tiny_catalogue import read_lines, write_lines

from recbole_tpad.cli import main
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.keywords.annotate import AnnotationReport, annotate
from recbole_tpad.keywords.annotator import Outcome
from recbole_tpad.keywords.cache import AnswerCache
from recbole_tpad.keywords.dispatch import BUDGET_REACHED, Patience
from recbole_tpad.keywords.endpoint import EndpointSettings
from recbole_tpad.keywords.openai import OpenAIAnnotator
from recbole_tpad.keywords.pricing import Prices
from recbole_tpad.keywords.prompt import KeywordPrompt
from recbole_tpad.keywords.questions import ImageLimits, Question

KEY = "sk-do-not-show-5e1f"
QUICK = Patience(concurrency=4, retries=2, repairs=2, backoff=0.01, max_wait=5)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with chatting() as running:
        yield running


@pytest.fixture
def shop(tmp_path: Path) -> DatasetFolder:
    return write_shop(tmp_path)


def ask(
    shop: DatasetFolder,
    server: ChatServer,
    *,
    patience: Patience = QUICK,
    limits: ImageLimits | None = None,
    prompt: KeywordPrompt | None = None,
    **settings: Any,
) -> AnnotationReport:
    """One run, as the command does it."""
    chosen = EndpointSettings(**{"model": "seer-large", "base_url": server.url, **settings})
    with AnswerCache(shop.path / "keywords") as cache:
        asking = OpenAIAnnotator(
            shop.path, cache, chosen, patience=patience, limits=limits, prompt=prompt
        )
        return annotate(reread(shop), asking)


def raw(shop: DatasetFolder, server: ChatServer, **settings: Any) -> Outcome:
    """The annotator's own outcome."""
    chosen = EndpointSettings(**{"model": "seer-large", "base_url": server.url, **settings})
    with AnswerCache(shop.path / "keywords") as cache:
        asking = OpenAIAnnotator(shop.path, cache, chosen, patience=QUICK)
        return asking.annotate(reread(shop).items)


def expected(count: int = 12) -> dict[str, tuple[str, ...]]:
    return {f"i{k:02d}": tuple(keywords_of(k)) for k in range(count)}


def got(shop: DatasetFolder) -> dict[str, tuple[str, ...]]:
    return {item.item_id: item.keywords for item in reread(shop).items if item.keywords}


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


def test_nothing_is_asked_twice(shop: DatasetFolder, server: ChatServer) -> None:
    assert ask(shop, server).usage is not None
    second = ask(shop, server)
    assert second.usage is not None
    assert (second.usage.asked, second.usage.reused) == (0, 12)
    assert len(server.seen) == 12
    # Another spelling of the result costs nothing, another image only itself.
    (shop.path / "images" / "i05.png").write_bytes(picture(40))
    third = ask(shop, server)
    assert third.usage is not None
    assert (third.usage.asked, third.usage.reused) == (1, 11)
    assert got(shop) == {**expected(), "i05": tuple(keywords_of(40))}
    # The old image again: its answer is still there.
    (shop.path / "images" / "i05.png").write_bytes(picture(5))
    ask(shop, server)
    assert len(server.seen) == 13
    assert got(shop) == expected()


@pytest.mark.parametrize(
    "change",
    [
        {"model": "seer-small"},
        {"prompt": KeywordPrompt(count=2)},
        {"limits": ImageLimits(size=8)},
        {"temperature": 0.5},
    ],
    ids=["model", "prompt", "image size", "temperature"],
)
def test_what_changes_the_answer_is_asked_anew(
    shop: DatasetFolder, server: ChatServer, change: dict[str, Any]
) -> None:
    ask(shop, server)
    ask(shop, server, **change)
    assert set(server.asked.values()) == {2}


def test_items_of_equal_content_are_asked_once(shop: DatasetFolder, server: ChatServer) -> None:
    items = read_lines(shop.path / "items.jsonl")
    for item in items:
        item["title"] = "thing"
    write_lines(shop.path / "items.jsonl", items)
    for k in range(12):
        (shop.path / "images" / f"i{k:02d}.png").write_bytes(picture(k % 2))
    report = ask(shop, server)
    assert len(server.seen) == 2
    assert dict(report.statuses) == {"ok": 12}
    assert got(shop) == {f"i{k:02d}": tuple(keywords_of(k % 2)) for k in range(12)}


def test_tokens_and_cost(shop: DatasetFolder, server: ChatServer) -> None:
    server.script = {"thing 2": ["half"]}
    prices = Prices(prompt=2.0, completion=10.0)
    report = ask(shop, server, prices=prices)
    usage = report.usage
    assert usage is not None
    assert (usage.asked, usage.prompt_tokens, usage.completion_tokens) == (13, 1300, 130)
    assert usage.cost == pytest.approx((1300 * 2 + 130 * 10) / 1e6)
    record = json.loads((shop.path / "keywords.json").read_text())
    assert record["usage"]["cost"] == pytest.approx(usage.cost)
    (shop.path / "images" / "i05.png").write_bytes(picture(40))
    usage = ask(shop, server, prices=prices).usage
    assert usage is not None
    assert usage.cost == pytest.approx((100 * 2 + 10 * 10) / 1e6)
    assert usage.in_all["cost"] == pytest.approx((1400 * 2 + 140 * 10) / 1e6)


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("tokens", [100, 5000])
def test_a_budget_is_never_passed(
    tmp_path: Path, server: ChatServer, concurrency: int, tokens: int
) -> None:
    shop = write_shop(tmp_path, n_items=40)
    server.default = f"bill {tokens}"
    prices = Prices(1.0, 1.0)
    cost = (tokens + 20) / 1e6
    # Room for the longest answer (200 tokens) that each request in flight could give.
    budget = 20.5 * cost + 200e-6 * concurrency
    patience = Patience(concurrency=concurrency)
    settings: dict[str, Any] = {"prices": prices, "budget": budget}
    report = ask(shop, server, patience=patience, **settings)
    assert report.stopped == BUDGET_REACHED
    assert report.usage is not None
    assert report.usage.cost is not None
    assert report.usage.cost <= budget
    assert report.annotated >= 20
    assert report.statuses["not asked"] == 40 - report.annotated
    # What earlier runs spent counts; their answers stay.
    asked = len(server.seen)
    again = ask(shop, server, patience=patience, **settings)
    assert again.annotated == report.annotated
    assert len(server.seen) == asked
    more = ask(shop, server, patience=patience, prices=prices, budget=1.0)
    assert more.annotated == 40
    assert set(server.asked.values()) == {1}


def test_a_dry_run_sends_nothing_and_needs_no_key(
    shop: DatasetFolder,
    server: ChatServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_lines(shop.path / "images.jsonl", read_lines(shop.path / "images.jsonl")[1:])
    arguments = ["keywords", "--dataset", "shop", "--data_path", str(shop.path.parent)]
    arguments += ["--annotator", "openai", "--base-url", server.url, "--model", "seer-large"]
    prices = ["--price_input", "1", "--price_output", "2"]
    monkeypatch.delenv("OPENAI_API_KEY")
    assert main([*arguments, *prices, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "11 questions to ask, 0 items answered before\n1 items: no image" in said
    assert "by assumed sizes" in said
    assert main([*arguments, "--dry-run"]) == 0
    assert "no cost: give --price_input" in capsys.readouterr().out
    assert not server.seen
    assert not (shop.path / "keywords.jsonl").exists()
    # With answers of this model, their token counts are the estimate.
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert main([*arguments, *prices, "--limit", "5"]) == 0
    capsys.readouterr()
    assert main([*arguments, *prices, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "7 questions to ask, 4 items answered before" in said
    assert "about 700 prompt and 70 completion tokens, by the mean of 4 answers" in said
    assert "about 0.0008 at these prices; 0.0005 spent before" in said
    assert len(server.seen) == 4


def test_hostile_and_broken_images_are_named_and_nothing_of_them_is_sent(
    shop: DatasetFolder, server: ChatServer, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(50))
    images = shop.path / "images"
    (images / "i03.png").unlink()
    (images / "i03.png").symlink_to(secret)
    (images / "i04.png").write_bytes(b"<html>")
    (images / "i05.png").write_bytes(picture(5)[:40])
    with (images / "i06.png").open("wb") as large:
        large.truncate(200 * 1024 * 1024)  # a 200 MB file that takes no space
    (images / "i07.png").unlink()
    (images / "i08.png").unlink()
    (images / "i08.png").mkdir()
    records = read_lines(shop.path / "images.jsonl")
    for number, file in enumerate(["../../secret.png", str(secret), "images/../../../secret.png"]):
        records[number]["file"] = file
    records[9] |= {"file": None, "status": "missing"}
    records[10]["file"] = "images/\0.png"
    write_lines(shop.path / "images.jsonl", records)
    report = ask(shop, server)
    assert dict(report.statuses) == {
        "ok": 1,
        "no image": 2,
        "unreadable": 4,
        "too large": 1,
        "outside": 4,
    }
    assert [seen.number for seen in server.seen] == [11]
    problems = read_lines(shop.path / "keywords" / "openai.problems.jsonl")
    statuses = {p["item_id"]: p["status"] for p in problems}
    assert {i for i, s in statuses.items() if s == "outside"} == {"i00", "i01", "i02", "i03"}
    assert statuses["i06"] == "too large"
    assert "209,715,200 bytes, more than 50,000,000" in str(report)


def test_a_linked_images_folder_is_inside(
    shop: DatasetFolder, server: ChatServer, tmp_path: Path
) -> None:
    (shop.path / "images").rename(tmp_path / "elsewhere")
    (shop.path / "images").symlink_to(tmp_path / "elsewhere")
    assert ask(shop, server).annotated == 12


def test_images_are_scaled_down(shop: DatasetFolder, server: ChatServer) -> None:
    (shop.path / "images" / "i00.png").write_bytes(picture(0, size=700))
    ask(shop, server, limits=ImageLimits(size=64))
    assert got(shop) == expected()
    lengths = {s.title: len(json.dumps(s.body)) for s in server.seen}
    assert lengths["thing 0"] < 4000


def test_answers_are_normalised_on_the_way_out_only(
    shop: DatasetFolder, server: ChatServer
) -> None:
    outcome = raw(shop, server)
    assert all(answer.status == "ok" for answer in outcome.answers)
    cached = read_lines(shop.path / "keywords" / "answers.jsonl")
    assert {tuple(line["keywords"]) for line in cached} == set(expected().values())
    assert {line["model"] for line in cached} == {"seer-large"}


def test_without_the_package_the_remedy_is_named(
    shop: DatasetFolder, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(InputError, match=r"pip install 'recbole-tpad\[openai\]'"):
        ask(shop, server)
