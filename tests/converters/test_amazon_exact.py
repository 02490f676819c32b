"""The quick and the exact reading of raw files give the same bytes, whatever the lines are."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from raw_amazon import (
    meta,
    random_reviews,
    raw_files,
    review,
    rows,
    sessions_by_hand,
    write_lines,
)

from dataset_converters import item_rows, item_table, raw_file, review_table
from dataset_converters.amazon import convert_amazon
from dataset_converters.errors import InputError

GOOD = [json.dumps(review(*r)) for r in random_reviews(40, n=120, users=20)]
ITEMS = [json.dumps(meta(f"I{k}")) for k in range(25)]
ODD_REVIEWS = [
    "",
    "  ",
    "\f",
    "null",
    "5",
    "[1]",
    "{}",
    "nonsense",
    '{"reviewerID": "U1", "asin": "I1", "unixReviewTime": 1500000000,}',
    '{"reviewerID": "U1", "asin": "I1", "unixReviewTime": 1500000000, "x": nan}',
    '{"reviewerID": "U1", "asin": "I1", "unixReviewTime": 1500000000, "x": NaN}',
    '{"reviewerID": "U1", "asin": "I2", "asin": "I3", "unixReviewTime": 1500000000}',
    '{"reviewerID": "U1", "asin": "I2", "unixReviewTime": 1500000000, "x": 1, "x": 2}',
    '{"reviewerID": "U1", "asin": "I2", "unixReviewTime": 1500000000.0}',
    '{"reviewerID": "U1", "asin": "I2", "unixReviewTime": 15e8}',
    '{"reviewerID": "U1", "asin": "I2", "unixReviewTime": "1500000000"}',
    '{"reviewerID": "U1", "asin": "I2", "unixReviewTime": -0}',
    '{"reviewerID": "U1", "asin": "I2", "unixReviewTime": 99999999999999999999}',
    '{"reviewerID": "U1", "asin": "I2", "unixReviewTime": true}',
    '{"reviewerID": 7, "asin": "I2", "unixReviewTime": 1500000000}',
    '{"reviewerID": "", "asin": "I2", "unixReviewTime": 1500000000}',
    '{"reviewerID": null, "asin": "I2", "unixReviewTime": 1500000000}',
    '{"reviewerID": "\\u0055\\u0031", "asin": "I2", "unixReviewTime": 1500000000}',
    '{"reviewerID": "Ü\\\\1", "asin": "I2", "unixReviewTime": 1500000000}',
    '{"reviewerID": "U1", "asin": "I2", "unixReviewTime": 1500000000, "x": "\\ud83d"}',
    '{"style": {"reviewerID": "U2"}, "asin": "I2", "unixReviewTime": 1500000000}',
    '{"reviewerID": "U1", "asin": "I2", "unixReviewTime": 1500000000} {"a": 1}',
    "{'reviewerID': 'U1', 'asin': 'I2', 'unixReviewTime': 1500000000}",
    '{"reviewerID": "U1", "asin": "I2", "unixReviewTime": 1500000000, "x": '
    + "[" * 3000
    + "]" * 3000
    + "}",
]
ODD_ITEMS = [
    "",
    "[]",
    '{"asin": "I1"}',
    '{"asin": 5, "title": "x"}',
    '{"asin": "I1", "title": "A &amp; <b>B</b>", "price": NaN, "brand": {"x": 1}}',
    '{"asin": "I1", "title": "half \\ud83d", "price": 12, "brand": null}',
    '{"asin": "I1", "title": "x", "imageURLHighRes": null, "imageURL": ["u"],}',
    '{"asin": "I\\u0031", "title": "y", "description": "one", "description": "two"}',
    '{"asin": "\\ud83d", "title": "y"}',
    "{'asin': 'I2', 'title': \"it's\", 'price': 3}",
    "nonsense",
]


def small_blocks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Read files a few bytes at a time and handle them in blocks of at least `size` bytes."""
    monkeypatch.setattr(review_table, "BLOCK", size)
    monkeypatch.setattr(item_table, "BLOCK", size)
    monkeypatch.setattr(raw_file, "_READ", 20)


def convert_both_ways(reviews: list[str], items: list[str]) -> list[dict[str, bytes] | str]:
    """Return the files, or the message, of the quick and of the exact reading."""
    found: list[dict[str, bytes] | str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = (
            write_lines(folder / "r.json.gz", (line + "\n" for line in reviews)),
            write_lines(folder / "m.json.gz", (line + "\n" for line in items)),
        )
        for exact in (False, True):
            try:
                made = convert_amazon(
                    "x", *files, folder / "x", exact=exact, max_rejected=0.5, sessions="user"
                )
            except InputError as error:
                found.append(str(error))
            else:
                found.append({file.name: file.read_bytes() for file in made.path.iterdir()})
                shutil.rmtree(made.path)
    return found


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, 119), st.sampled_from(ODD_REVIEWS)), max_size=4),
    st.lists(st.tuples(st.integers(0, 24), st.sampled_from(ODD_ITEMS)), max_size=3),
)
@example([], [])
def test_odd_lines_are_read_the_same_way(
    odd_reviews: list[tuple[int, str]], odd_items: list[tuple[int, str]]
) -> None:
    reviews, items = list(GOOD), list(ITEMS)
    for place, line in odd_reviews:
        reviews.insert(place, line)
    for place, line in odd_items:
        items.insert(place, line)
    quick, exact = convert_both_ways(reviews, items)
    assert quick == exact


def test_each_odd_line_in_a_block_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 1)
    reviews = [line for odd in ODD_REVIEWS for line in (odd, GOOD[0])]
    items = [line for odd in ODD_ITEMS for line in (odd, ITEMS[0])]
    quick, exact = convert_both_ways([*GOOD, *reviews], [*ITEMS, *items])
    assert isinstance(quick, dict)
    assert quick == exact


def test_lines_longer_than_the_database_reads() -> None:
    long = json.dumps(review("U1", "I1", 1_500_000_000, reviewText="word " * 1_000_000))
    item = json.dumps(meta("I3", description=["word " * 1_000_000]))
    quick, exact = convert_both_ways([*GOOD[:50], long, *GOOD[50:]], [*ITEMS[4:], item])
    assert isinstance(quick, dict)
    assert quick == exact
    assert quick["items.jsonl"].count(b"word") == 1_000_000


@pytest.mark.parametrize("odd", ["\\u00dc1", "a\\\\b", "\u65e5\u672c", "\\u0041"])
@pytest.mark.parametrize("key", ["reviewerID", "asin"])
def test_odd_ids_among_plain_ones_are_read_the_same_way(key: str, odd: str) -> None:
    """Found among the names, after all reviews were read: they are read once more."""
    lines = []
    for item in ("I1", "I2"):
        record = review("U1", item, 1_500_000_000)
        record[key] = "PLACE"
        lines.append(json.dumps(record).replace("PLACE", odd))
    quick, exact = convert_both_ways([*GOOD, *lines], ITEMS)
    assert isinstance(quick, dict)
    assert quick == exact
    assert json.loads(f'"{odd}"').encode() in quick["x.inter"]


def test_rows_made_in_a_process_are_those_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = [line for line in ODD_ITEMS if line.startswith("{")]
    here, _ = convert_both_ways(GOOD, [*ITEMS, *odd])
    monkeypatch.setattr(item_rows, "_WORTH_A_PROCESS", 0)
    there, _ = convert_both_ways(GOOD, [*ITEMS, *odd])
    assert isinstance(here, dict)
    assert here == there


def test_many_blocks_keep_the_order_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small blocks and reads, a bad line in some: the lines' numbers and order stay."""
    small_blocks(monkeypatch, 5_000)
    lines = [line + "\n" for line in GOOD * 5]
    for place in (599, 300, 0):
        lines.insert(place, "bad\n")
    source = write_lines(tmp_path / "r.gz", lines)
    _, metadata = raw_files(tmp_path / "raw", random_reviews(40, n=400, users=20))
    options = {"sessions": "user", "drop_repeats": False}
    made = convert_amazon("x", source, metadata, tmp_path, **options)  # type: ignore[arg-type]
    rejected = [json.loads(x) for x in (made.path / "rejected.jsonl").read_text().splitlines()]
    assert [r["line"] for r in rejected] == [1, 302, 602]
    found: dict[str, list[tuple[int, str]]] = {}
    for session, item, time in rows(made.path / "x.inter"):
        found.setdefault(session, []).append((int(time), item))
    assert found == sessions_by_hand(random_reviews(40, n=120, users=20) * 5, "user")


def test_members_padding_and_damage_of_gzip(tmp_path: Path) -> None:
    source, metadata = raw_files(tmp_path / "raw", random_reviews(41))
    text = gzip.decompress(source.read_bytes())
    members = gzip.compress(text[:5000]) + gzip.compress(b"") + gzip.compress(text[5000:])
    expected = convert_amazon("x", source, metadata, tmp_path).path / "x.inter"
    source.write_bytes(members + b"\0" * 512)
    made = convert_amazon("y", source, metadata, tmp_path)
    assert (made.path / "y.inter").read_bytes() == expected.read_bytes()
    whole = gzip.compress(text)
    for place in (-6, -2):  # the checksum, the length
        damaged = bytearray(whole)
        damaged[place] ^= 1
        source.write_bytes(bytes(damaged))
        with pytest.raises(InputError, match=r"truncated or damaged.*incorrect"):
            convert_amazon("z", source, metadata, tmp_path)


@pytest.mark.parametrize("exact", [False, True])
def test_ids_of_one_hash_stay_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    files = raw_files(tmp_path / "raw", random_reviews(42))
    expected = convert_amazon("x", *files, tmp_path / "a", exact=exact).path
    monkeypatch.setattr(review_table, "_HASH", "(hash({}) % 7)")
    made = convert_amazon("x", *files, tmp_path / "b", exact=exact).path
    assert len({row[0] for row in rows(made / "x.inter")}) > 7
    for file in expected.iterdir():
        assert (made / file.name).read_bytes() == file.read_bytes()
