"""What the annotator `openai` asks, what it does not ask, and what that costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from asking import KEY, ask, expected, got, raw
from chat_server import ChatServer, keywords_of, picture, write_shop
from tiny_catalogue import read_lines, write_lines

from recbole_tpad.cli import main
from recbole_tpad.data import DatasetFolder
from recbole_tpad.keywords.dispatch import BUDGET_REACHED, Patience
from recbole_tpad.keywords.pricing import Prices
from recbole_tpad.keywords.prompt import KeywordPrompt
from recbole_tpad.keywords.questions import ImageLimits


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
