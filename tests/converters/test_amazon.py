"""Amazon conversion: sessions and splits against slow readings of the rules, and bad input."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from raw_amazon import (
    START,
    dimo_by_hand,
    meta,
    random_reviews,
    raw_files,
    review,
    rows,
    sessions_by_hand,
    write_lines,
)

from dataset_converters.amazon import convert_amazon
from dataset_converters.errors import InputError
from recbole_tpad.data import DatasetFolder


def interactions(path: Path) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    for session, item, time in rows(path):
        found.setdefault(session, []).append((int(time), item))
    return found


def parts(folder: DatasetFolder) -> dict[str, dict[str, list[str]]]:
    return {name: dict(folder.sessions(name)) for name in ("train", "valid", "test")}


@pytest.mark.parametrize("rule", ["first-day", "day", "user"])
def test_sessions_equal_a_slow_reading_of_the_rule(tmp_path: Path, rule: str) -> None:
    reviews = random_reviews(1)
    files = raw_files(tmp_path / "raw", reviews)
    made = convert_amazon("x", *files, tmp_path, sessions=rule, drop_repeats=False)  # type: ignore[arg-type]
    expected = {s: v for s, v in sessions_by_hand(reviews, rule).items() if len(v) >= 2}
    assert interactions(made.path / "x.inter") == expected


def test_the_first_day_ends_before_86400_seconds(tmp_path: Path) -> None:
    reviews = [(f"U{k}", item, START + 9 * k) for k in range(12) for item in "ab"]
    reviews += [("U3", "in", START + 27 + 86_399), ("U3", "out", START + 27 + 86_400)]
    made = convert_amazon("x", *raw_files(tmp_path / "raw", reviews), tmp_path)
    assert [i for _, i in interactions(made.path / "x.inter")["U3"]] == ["a", "b", "in"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("min_item_count", [1, 5])
def test_dimo_split_equals_a_slow_reading_of_the_recipe(
    tmp_path: Path, seed: int, min_item_count: int
) -> None:
    reviews = random_reviews(seed, n=500, users=90, items=70, hours=60)
    files = raw_files(tmp_path / "raw", reviews)
    convert_amazon("x", *files, tmp_path, split="dimo", min_item_count=min_item_count)
    assert parts(DatasetFolder.open(tmp_path, "x")) == dimo_by_hand(reviews, min_item_count)


def test_temporal_split_is_in_time_order_and_keeps_cold_items(tmp_path: Path) -> None:
    reviews = random_reviews(2, users=100)
    reviews += [("late", "cold1", START + 10**6), ("late", "cold2", START + 10**6 + 5)]
    files = raw_files(tmp_path / "raw", reviews)
    convert_amazon("x", *files, tmp_path, sessions="day", drop_repeats=False)
    table = {s: v for s, v in sessions_by_hand(reviews, "day").items() if len(v) >= 2}
    order = sorted(table, key=lambda s: (table[s][-1][0], s))
    a, b = len(order) * 8 // 10, len(order) * 9 // 10
    expected = {"train": order[:a], "valid": order[a:b], "test": order[b:]}
    found = parts(DatasetFolder.open(tmp_path, "x"))
    assert {part: list(sessions) for part, sessions in found.items()} == expected
    assert all(s[i] == [x for _, x in table[i]] for s in found.values() for i in s)
    split = json.loads((tmp_path / "x" / "split.json").read_text())
    assert split["items_in_train"] < split["items"]


def test_leave_one_out_by_length(tmp_path: Path) -> None:
    reviews = [("U2", i, START + k) for k, i in enumerate("ab")]
    reviews += [("U3", i, START + k) for k, i in enumerate("abc")]
    reviews += [("U5", i, START + k) for k, i in enumerate("abcde")]
    files = raw_files(tmp_path / "raw", reviews)
    made = convert_amazon("x", *files, tmp_path, split="leave-one-out")
    assert rows(made.path / "x.train.inter") == [
        ["U2", "a", "b"],
        ["U3", "a", "b"],
        ["U5", "a", "b"],
        ["U5", "a b", "c"],
    ]
    assert rows(made.path / "x.valid.inter") == [["U5", "a b c", "d"]]
    assert rows(made.path / "x.test.inter") == [["U3", "a b", "c"], ["U5", "a b c d", "e"]]


@pytest.mark.parametrize("split", ["temporal", "leave-one-out", "dimo"])
def test_training_part_ignores_held_out_targets(tmp_path: Path, split: str) -> None:
    """Permuting the targets of valid and test changes no byte of the training file."""
    drawn = random_reviews(3, users=120, n=700, hours=48)
    once = {(user, item): time for user, item, time in drawn}
    reviews = sorted(((u, i, t) for (u, i), t in once.items()), key=lambda r: (r[0], r[2], r[1]))
    files = raw_files(tmp_path / "raw", reviews)
    options = {"split": split, "drop_repeats": False}
    made = convert_amazon("x", *files, tmp_path, **options)  # type: ignore[arg-type]
    held_out: set[tuple[str, str]] = set()
    for part in ("valid", "test"):
        held_out |= {(s, row[-1]) for s, *row in rows(made.path / f"x.{part}.inter")}
    places = [k for k, (user, item, _) in enumerate(reviews) if (user, item) in held_out]
    shuffled = [reviews[k][1] for k in places]
    random.Random(0).shuffle(shuffled)
    changed = list(reviews)
    for k, item in zip(places, shuffled, strict=True):
        changed[k] = (reviews[k][0], item, reviews[k][2])
    assert changed != reviews
    other = convert_amazon("y", *raw_files(tmp_path / "raw", changed), tmp_path, **options)  # type: ignore[arg-type]
    train = (made.path / "x.train.inter").read_bytes()
    assert train == (other.path / "y.train.inter").read_bytes()
    fingerprints = {DatasetFolder.open(tmp_path, n).split_fingerprint for n in "xy"}
    assert len(fingerprints) == 1


def test_rows_are_prefixes_cut_to_their_last_items(tmp_path: Path) -> None:
    reviews = [(f"U{k}", f"I{j}", START + k * 99_999 + j) for k in range(10) for j in range(6)]
    files = raw_files(tmp_path / "raw", reviews)
    convert_amazon("x", *files, tmp_path, max_len=3)
    convert_amazon("y", *files, tmp_path, max_len=3, augment=False)
    mine = [r for r in rows(tmp_path / "x" / "x.train.inter") if r[0] == "U0"]
    lists = ["I0", "I0 I1", "I0 I1 I2", "I1 I2 I3", "I2 I3 I4"]
    assert mine == [["U0", c, f"I{k + 1}"] for k, c in enumerate(lists)]
    assert rows(tmp_path / "y" / "y.train.inter")[0] == ["U0", "I2 I3 I4", "I5"]
    convert_amazon("z", *files, tmp_path)
    for name, longest in (("x", 3), ("y", 3), ("z", 5)):
        split = json.loads((tmp_path / name / "split.json").read_text())
        assert split["max_len"] == longest  # no longer than the longest list there is
    for name, length in (("x", 6), ("y", 4)):
        folder = DatasetFolder.open(tmp_path, name)
        folder.verify_split()
        assert {len(items) for _, items in folder.train_sessions()} == {length}


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    files = raw_files(tmp_path / "raw", random_reviews(5))
    first = convert_amazon("x", *files, tmp_path / "a").path
    second = convert_amazon("x", *files, tmp_path / "b").path
    names = sorted(p.name for p in first.iterdir())
    assert names == sorted(p.name for p in second.iterdir())
    assert all((first / n).read_bytes() == (second / n).read_bytes() for n in names)


def test_repeated_reviews_are_dropped_once_each(tmp_path: Path) -> None:
    base = random_reviews(6, n=300)
    made = convert_amazon(
        "x", *raw_files(tmp_path / "raw", base + base[:50]), tmp_path, sessions="user"
    )
    found = Counter((s, i, t) for s, v in interactions(made.path / "x.inter").items() for t, i in v)
    assert set(found.values()) == {1}
    assert made.filters[0].interactions_left == len(set(base))


def test_plain_text_with_a_gz_name_and_gzip_without(tmp_path: Path) -> None:
    reviews = random_reviews(7)
    plain = write_lines(tmp_path / "r.json.gz", (review(*r) for r in reviews), gz=False)
    gz = write_lines(tmp_path / "m.json", (meta(i) for i in sorted({r[1] for r in reviews})))
    counts = convert_amazon("x", plain, gz, tmp_path).counts
    assert counts["reviews_read"] == 500
    assert counts["items_with_title"] == counts["items"]


def test_the_most_complete_of_duplicate_records_is_kept(tmp_path: Path) -> None:
    reviews = random_reviews(8)
    source, _ = raw_files(tmp_path / "raw", reviews)
    records = [meta("I0", title="poor", brand="", price=""), meta("I0", title="first")]
    records += [meta("I0", title="second"), *(meta(f"I{k}") for k in range(1, 25))]
    made = convert_amazon("x", source, write_lines(tmp_path / "m.gz", records), tmp_path)
    assert DatasetFolder.open(tmp_path, "x").items[0].title == "first"
    assert made.counts["metadata_duplicates"] == 2


def test_truncated_gzip_is_refused_or_read_as_far_as_it_goes(tmp_path: Path) -> None:
    source, metadata = raw_files(tmp_path / "raw", random_reviews(9, n=3000))
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"reviews.json.gz is truncated.*complete lines"):
        convert_amazon("x", source, metadata, tmp_path)
    made = convert_amazon("x", source, metadata, tmp_path, allow_truncated=True)
    assert 100 < made.counts["reviews_read"] < 3000
    complete = gzip.decompress(whole).split(b"\n")[: made.counts["review_lines"]]
    assert all(json.loads(line) for line in complete)


def test_swapped_and_foreign_files_are_named(tmp_path: Path) -> None:
    source, metadata = raw_files(tmp_path / "raw", random_reviews(10))
    with pytest.raises(InputError, match=r"meta.json.gz, line 1: not reviews.*swapped"):
        convert_amazon("x", metadata, source, tmp_path)
    with pytest.raises(InputError, match=r"reviews.json.gz, line 1: not metadata.*swapped"):
        convert_amazon("x", source, source, tmp_path)
    new = write_lines(tmp_path / "n", [{"user_id": "u", "parent_asin": "p", "timestamp": 1}])
    with pytest.raises(InputError, match=r"keys parent_asin, timestamp, user_id.*2023"):
        convert_amazon("x", new, metadata, tmp_path)
    literal = write_lines(tmp_path / "l", ["{'asin': '1', 'title': 'x'}\n"])
    with pytest.raises(InputError, match=r"line 1: a Python dict literal.*2014"):
        convert_amazon("x", source, literal, tmp_path)
    with pytest.raises(InputError, match=r"Cannot read .*absent.gz: No such file"):
        convert_amazon("x", tmp_path / "absent.gz", metadata, tmp_path)
    assert not (tmp_path / "x").exists()


def test_bad_lines_are_kept_apart_up_to_a_share(tmp_path: Path) -> None:
    good = [review(*r) for r in random_reviews(11)]
    bad = ['{"asin": \n', review("U1", "I1", "soon")]  # type: ignore[arg-type]
    _, metadata = raw_files(tmp_path / "raw", random_reviews(11))
    source = write_lines(tmp_path / "r.gz", [*good[:100], *bad, *good[100:]])
    made = convert_amazon("x", source, metadata, tmp_path)
    rejected = [json.loads(x) for x in (made.path / "rejected.jsonl").read_text().splitlines()]
    assert [(r["file"], r["line"]) for r in rejected] == [("r.gz", 101), ("r.gz", 102)]
    assert "unixReviewTime" in rejected[1]["reason"]
    with pytest.raises(InputError, match=r"2 of the 502 lines.*line 101"):
        convert_amazon("y", source, metadata, tmp_path, max_rejected=0.001)


def test_an_empty_result_tells_which_filter_took_what(tmp_path: Path) -> None:
    files = raw_files(tmp_path / "raw", random_reviews(12), title='<span class="a-size-medium"')
    with pytest.raises(InputError, match=r"drop_repeats: \d+ removed.*needs_text: \d+ removed, 0"):
        convert_amazon("x", *files, tmp_path, needs_text=True)
    few = raw_files(tmp_path / "few", random_reviews(12, n=6, users=2))
    with pytest.raises(InputError, match="Too few sessions"):
        convert_amazon("x", *few, tmp_path, sessions="user")


@pytest.mark.parametrize("bad", ["a b", 'a"b', "NA", "a\u2028b", "a\ud83d"])
def test_ids_recbole_cannot_read_are_refused_by_name(tmp_path: Path, bad: str) -> None:
    records = [review(*r) for r in random_reviews(13)]
    records[40]["asin"] = bad
    _, metadata = raw_files(tmp_path / "raw", random_reviews(13))
    with pytest.raises(InputError, match=r"r.gz, line 41: the asin"):
        convert_amazon("x", write_lines(tmp_path / "r.gz", records), metadata, tmp_path)


def test_unknown_options_suggest_the_nearest(tmp_path: Path) -> None:
    files = raw_files(tmp_path / "raw", random_reviews(14))
    with pytest.raises(InputError, match="Did you mean 'temporal'"):
        convert_amazon("x", *files, tmp_path, split="temporl")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Unknown release '2015'.*Known: 2014, 2018"):
        convert_amazon("x", *files, tmp_path, release="2015")
    with pytest.raises(InputError, match="data set name"):
        convert_amazon("../x", *files, tmp_path)


def test_an_existing_folder_is_replaced_only_on_request(tmp_path: Path) -> None:
    files = raw_files(tmp_path / "raw", random_reviews(15))
    made = convert_amazon("x", *files, tmp_path)
    (made.path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="--overwrite"):
        convert_amazon("x", *files, tmp_path)
    assert (made.path / "mine.txt").exists()
    convert_amazon("x", *files, tmp_path, overwrite=True)
    assert not (made.path / "mine.txt").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
