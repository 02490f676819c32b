"""The report card against plain counting, and the warnings it gives."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_server import picture
from raw_amazon import SHARED, random_reviews, raw_files

from dataset_converters import describe_sessions
from dataset_converters.amazon import convert_amazon
from dataset_converters.describe import describe
from dataset_converters.describe_sessions import (
    Sequences,
    edge_overlap,
    order_of_pairs,
    repeated_sessions,
    target_statistics,
)
from dataset_converters.describe_text import card_text
from dataset_converters.errors import InputError
from dataset_converters.images import attach_images
from dataset_converters.session_ids import convert_session_ids
from recbole_tpad.cli import main
from recbole_tpad.data import DatasetFolder

Lists = list[list[int]]
SESSIONS = st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=6), min_size=1, max_size=12)


def sequences(lists: Lists) -> Sequences:
    offsets = np.cumsum([0, *map(len, lists)])
    return Sequences(offsets, np.array([item for items in lists for item in items], dtype=np.int64))


@given(SESSIONS)
def test_order_of_pairs_is_that_of_counting(lists: Lists) -> None:
    seen: dict[frozenset[int], Counter[int]] = defaultdict(Counter)
    for items in lists:
        once = list(dict.fromkeys(items))
        for a, b in itertools.combinations(once, 2):
            seen[frozenset((a, b))][a] += 1
    often = [c for c in seen.values() if c.total() >= 2]
    found = order_of_pairs(sequences(lists))
    assert (found["pairs"], found["pairs_seen_twice"]) == (len(seen), len(often))
    for key, some in (("one_order_all", list(seen.values())), ("one_order", often)):
        expected = sum(len(c) == 1 for c in some) / len(some) if some else None
        assert found[key] == (None if expected is None else pytest.approx(expected, abs=1e-6))
    if often:
        chance = sum(2.0 ** (1 - c.total()) for c in often) / len(often)
        assert found["by_chance"] == pytest.approx(chance, abs=1e-6)


@given(SESSIONS, SESSIONS)
def test_overlap_and_targets_are_those_of_counting(train: Lists, test: Lists) -> None:
    def edges(lists: Lists) -> set[frozenset[int]]:
        return {frozenset(p) for s in lists for p in itertools.combinations(s, 2) if p[0] != p[1]}

    known = edges(train)
    linked = [any(frozenset((c, s[-1])) in known for c in s[:-1] if c != s[-1]) for s in test]
    found = edge_overlap(sequences(train), sequences(test))
    assert found["edges"] == len(edges(test))
    if edges(test):
        share = len(edges(test) & known) / len(edges(test))
        assert found["edges_in_train"] == pytest.approx(share, abs=1e-6)
    assert found["targets_linked"] == pytest.approx(sum(linked) / len(test), abs=1e-6)
    copies = sum(s in train for s in test) / len(test)
    assert repeated_sessions(sequences(train), sequences(test)) == pytest.approx(copies, abs=1e-6)

    in_train = np.isin(np.arange(7), [i for s in train for i in s])
    counted = target_statistics(sequences(test), in_train)
    for key, flags in (
        ("target_repeats_last", [s[-1] == s[-2] for s in test]),
        ("target_in_context", [s[-1] in s[:-1] for s in test]),
        ("sessions_with_repeated_item", [len(set(s)) < len(s) for s in test]),
        ("target_unseen_in_train", [not in_train[s[-1]] for s in test]),
    ):
        assert counted[key] == pytest.approx(sum(flags) / len(test), abs=1e-6), key


def test_random_order_is_like_chance_and_a_fixed_one_is_not() -> None:
    rng = np.random.default_rng(0)
    lists = [rng.choice(12, 5, replace=False).tolist() for _ in range(400)]
    found = order_of_pairs(sequences(lists))
    assert found["one_order"] == pytest.approx(found["by_chance"], abs=0.03)
    assert order_of_pairs(sequences([sorted(s) for s in lists]))["one_order"] == 1


def test_large_data_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [[k % 50, k % 7 + 50, k % 11 + 60] for k in range(3000)]
    whole = sequences(lists)
    part = whole.sampled(900)
    assert len(part) == 300
    assert part.items.tolist() == [i for s in lists[::10] for i in s]
    assert whole.sampled() is whole
    monkeypatch.setattr(describe_sessions, "WINDOW", 1)
    assert len(whole.pairs()[0]) == 6000


@pytest.fixture
def gift(tmp_path: Path) -> Path:
    """Whole days only, each user's items in one fixed order: what file order looks like."""
    reviews = [
        (u, i, 1_500_000_000 // 86_400 * 86_400 + 86_400 * (k // 12))
        for k, (u, i, _) in enumerate(sorted(random_reviews(3, users=40), key=lambda r: r[1]))
    ]
    made = convert_amazon("gift", *raw_files(tmp_path / "raw", reviews), tmp_path, sessions="day")
    (tmp_path / "pictures").mkdir()
    first, second, third, *_ = DatasetFolder.open(tmp_path, "gift").item_ids
    (tmp_path / "pictures" / f"{first}.jpg").write_bytes(picture())
    attach_images(made.path, tmp_path / "pictures")
    annotated = [{"item_id": second, "keywords": ["red"]}, {"item_id": third, "keywords": []}]
    lines = [json.dumps(record | {"annotator": "file"}) + "\n" for record in annotated]
    (made.path / "keywords.jsonl").write_text("".join(lines))
    return made.path


def test_a_card_and_its_warnings(gift: Path) -> None:
    card = describe(gift)
    counts = json.loads((gift / "dataset.json").read_text())["counts"]
    assert card["counts"]["sessions"] == counts["sessions"]
    assert card["counts"]["interactions"] == counts["interactions"]
    assert card["counts"]["items"] == counts["items"]
    unseen = counts["items"] - counts["items_in_train"]
    assert card["counts"]["items_unseen_in_train"] == unseen
    assert sum(card["session_length"]["histogram"].values()) == counts["sessions"]
    assert card["time"]["at_midnight_utc"] == card["time"]["sessions_with_one_time"] == 1
    assert card["order"]["one_order"] == 1
    repeats = counts["target_repeats_last_test"] / counts["rows_test"]
    assert card["parts"]["test"]["target_repeats_last"] == pytest.approx(repeats, abs=1e-6)
    items = counts["items"]
    covered = card["coverage"]["items"]
    assert covered["title"] == covered["price"] == 1
    assert covered["image"] == covered["keywords"] == pytest.approx(1 / items, abs=1e-6)
    assert card["coverage"]["image_statuses"] == {"missing": items - 1, "ok": 1}
    rows = [line.split("\t") for line in (gift / "gift.inter").read_text().splitlines()[1:]]
    first = DatasetFolder.open(gift.parent, "gift").item_ids[0]
    mine = sum(row[1] == first for row in rows) / len(rows)
    assert card["coverage"]["interactions"]["image"] == pytest.approx(mine, abs=1e-6)
    codes = {warning["code"] for warning in card["warnings"]}
    expected = {"file-order", "day-resolution", "order-of-the-source", "few-images"}
    assert codes >= expected | {"few-test-sessions"}
    assert not codes & {"no-time", "not-chronological", "few-titles", "order-like-chance"}
    assert json.loads((gift / "describe.json").read_text()) == card
    text = card_text(card)
    for warning in card["warnings"]:
        assert f"! {warning['code']}:" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_command(gift: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["describe", "--dataset", "gift", "--data_path", str(gift.parent)]
    assert main(asked) == 0
    assert capsys.readouterr().out.startswith("gift (2018): ")
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "gift"
    with (gift / "gift.test.inter").open("a") as out:
        out.write("one\n")
    assert main(asked) == 2
    assert "gift.test.inter, line" in capsys.readouterr().err


def test_damaged_folders_are_named(gift: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Cannot read .*split\.json"):
        describe(tmp_path)
    rows = (gift / "gift.inter").read_text()
    for text, match in (
        (rows + "a\tb\tsoon\n", "time stamp is no number"),
        (rows + "a\tb\n", r"gift\.inter, line \d+: 2 cells"),
        ("x\ty\n", "header must start with"),
        (rows.splitlines()[0] + "\n", "part without sessions"),
    ):
        (gift / "gift.inter").write_text(text)
        with pytest.raises(InputError, match=match):
            describe(gift)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared real data")
@pytest.mark.parametrize(
    ("name", "repeats", "doubles", "once", "all_pairs"),
    [("cellphones", 0.029, 0.044, 0.392, 0.957), ("grocery", 0.176, 0.361, 0.389, 0.938)],
)
def test_real_sessions(
    tmp_path: Path, name: str, repeats: float, doubles: float, once: float, all_pairs: float
) -> None:
    """Nearly all pairs keep one order because most are seen once: the others are like chance."""
    train, test = (SHARED / "session_ids" / name / f"{name}.{p}.inter" for p in ("train", "test"))
    convert_session_ids(name, train, test, tmp_path)
    card: dict[str, Any] = describe(tmp_path / name)
    part = card["parts"]["test"]
    assert part["target_repeats_last"] == pytest.approx(repeats, abs=5e-4)
    assert part["sessions_with_repeated_item"] == pytest.approx(doubles, abs=5e-4)
    assert card["order"]["one_order"] == pytest.approx(once, abs=5e-4)
    assert card["order"]["one_order_all"] == pytest.approx(all_pairs, abs=5e-4)
    assert abs(card["order"]["one_order"] - card["order"]["by_chance"]) < 0.015
    assert "order-like-chance" in {warning["code"] for warning in card["warnings"]}
