"""DIMO's data recipe against a slow reading of it, line by line, also on published files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from raw_amazon import (
    SHARED,
    START,
    Review,
    benchmark_lines,
    dimo_by_hand,
    raw_files,
    sessions_by_hand,
)

from dataset_converters.amazon import convert_amazon


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[1:-1]


def check_files(folder: Path, reviews: list[Review], min_item_count: int) -> None:
    """Every line of the four interaction files is that of the slow reading."""
    parts = dimo_by_hand(reviews, min_item_count)
    for part, sessions in parts.items():
        assert sessions
        assert lines(folder / f"x.{part}.inter") == benchmark_lines(sessions)
    seen = {item for items in parts["train"].values() for item in items}
    cold = {s: items for s, items in parts["test"].items() if items[-1] not in seen}
    assert lines(folder / "x.test-cold.inter") == benchmark_lines(cold)
    found = [line.split("\t") for line in lines(folder / "x.inter")]
    expected = [(s, i) for part in parts.values() for s, items in part.items() for i in items]
    assert [(s, i) for s, i, _ in found] == expected
    of_session = sessions_by_hand(reviews, "first-day")
    for session, item, time in found:
        assert (int(time), item) in of_session[session]


@pytest.mark.parametrize("offset", [86_399, 86_400])
def test_a_review_belongs_to_the_session_for_less_than_86400_seconds(
    tmp_path: Path, offset: int
) -> None:
    reviews = [(f"U{k:02}", item, START + k) for k in range(30) for item in "ab"]
    reviews += [("U07", "c", START + 7 + offset), ("U08", "c", START + 8), ("U09", "c", START + 9)]
    made = convert_amazon(
        "x", *raw_files(tmp_path / "raw", reviews), tmp_path, split="dimo", min_item_count=1
    )
    check_files(made.path, reviews, 1)
    row = next(line for line in lines(made.path / "x.train.inter") if line.startswith("U07"))
    assert row == ("U07\ta b\tc" if offset < 86_400 else "U07\ta\tb")


def test_sessions_are_numbered_before_the_item_filter(tmp_path: Path) -> None:
    # The first 30 of 60 users only have items that the filter drops: numbered after it, the border
    # would lie at another user.
    reviews = [(f"U{k:02}", f"rare{k}{j}", START + k) for k in range(30) for j in range(2)]
    reviews += [(f"U{k:02}", item, START + k) for k in range(30, 60) for item in "ab"]
    assert dimo_by_hand(reviews, 5) != dimo_by_hand(reviews, 5, number_last=True)
    made = convert_amazon("x", *raw_files(tmp_path / "raw", reviews), tmp_path, split="dimo")
    check_files(made.path, reviews, 5)


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


PUBLISHED = {
    "gift": ("amazon2018_gift_cards", "Gift_Cards_5.json.gz", "meta_Gift_Cards.json.gz"),
    "magazine": (
        "amazon2018_magazine",
        "Magazine_Subscriptions_5.json.gz",
        "meta_v2_Magazine_Subscriptions.json.gz",
    ),
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared real data")
@pytest.mark.parametrize(("name", "needs_text"), [("gift", True), ("magazine", False)])
def test_published_files(tmp_path: Path, name: str, needs_text: bool) -> None:
    """Magazine has no usable titles at all: there only the image is asked for."""
    folder, source, metadata = PUBLISHED[name]
    best: dict[str, dict[str, Any]] = {}
    for item in read(SHARED / folder / metadata):
        best.setdefault(item["asin"], item)
    kept = {
        asin
        for asin, item in best.items()
        if (item["imageURLHighRes"] if "imageURLHighRes" in item else item["image"])
        and (not needs_text or (item["title"] and item["brand"] and item["category"]))
    }
    reviews = [
        (r["reviewerID"], r["asin"], r["unixReviewTime"])
        for r in read(SHARED / folder / source)
        if r["asin"] in kept
    ]
    made = convert_amazon(
        "x",
        SHARED / folder / source,
        SHARED / folder / metadata,
        tmp_path,
        split="dimo",
        needs_text=needs_text,
    )
    check_files(made.path, reviews, 5)
