"""Session rules, filters and splits of the Amazon conversion: slow readings and properties."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_amazon import (
    START,
    Review,
    random_reviews,
    raw_files,
    review,
    rows,
    sessions_by_hand,
    write_lines,
)

from dataset_converters.amazon import convert_amazon
from dataset_converters.errors import InputError
from recbole_tpad.cli import main
from recbole_tpad.data import DatasetFolder

GIVEN = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


def interactions(path: Path) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    for session, item, time in rows(path):
        found.setdefault(session, []).append((int(time), item))
    return found


def parts(path: Path) -> dict[str, dict[str, list[str]]]:
    folder = DatasetFolder.open(path.parent, path.name)
    folder.verify_split()
    return {name: dict(folder.sessions(name)) for name in ("train", "valid", "test")}


@pytest.mark.parametrize(
    ("rule", "by_hand", "gap"),
    [("gap:2h", "gap", 7200), ("gap:7199s", "gap", 7199), ("timestamp", "timestamp", 0)],
)
def test_rules_equal_a_slow_reading(tmp_path: Path, rule: str, by_hand: str, gap: int) -> None:
    # On whole hours a gap of two hours tells "more than" from "at least".
    reviews = random_reviews(31, users=8, n=500, hours=150)
    files = raw_files(tmp_path / "raw", reviews)
    made = convert_amazon("x", *files, tmp_path, sessions=rule, drop_repeats=False)
    expected = {s: v for s, v in sessions_by_hand(reviews, by_hand, gap).items() if len(v) >= 2}
    assert interactions(made.path / "x.inter") == expected
    assert json.loads((made.path / "split.json").read_text())["sessions"] == rule


@pytest.mark.parametrize("rule", ["gap", "gap:", "gap:30", "gap:0m", "gap:3w", "weekly", "days"])
def test_unknown_rules_are_named(tmp_path: Path, rule: str) -> None:
    with pytest.raises(InputError, match=f"Unknown sessions '{rule}'"):
        convert_amazon("x", tmp_path, tmp_path, tmp_path, sessions=rule)


def test_the_k_core_is_iterated_on_request(tmp_path: Path) -> None:
    # "rare" goes, so V is too short, so "g" is rare, which only a second round sees.
    sequences = {f"U{k:02}": "abcdef" + "g" * (k < 6) for k in range(12)}
    words = {**{u: list(s) for u, s in sequences.items()}, "V": ["a", "b", "c", "g", "rare"]}
    reviews = [(u, i, START + k) for u, s in words.items() for k, i in enumerate(s)]
    files = raw_files(tmp_path / "raw", reviews)
    options: dict[str, Any] = {
        "sessions": "user",
        "min_session_length": 5,
        "min_item_count": 7,
        "drop_repeats": False,
    }
    found = {}
    for name, iterate in (("once", False), ("core", True)):
        made = convert_amazon(name, *files, tmp_path, iterate_filters=iterate, **options)
        kept = interactions(made.path / f"{name}.inter")
        found[name] = {s: [i for _, i in v] for s, v in kept.items()}
    table = {s: [i for _, i in v] for s, v in sessions_by_hand(reviews, "user").items()}
    table = {s: v for s, v in table.items() if len(v) >= 5}
    seen = []
    while not seen or seen[-1] != table:
        seen.append(table)
        counts = Counter(i for v in table.values() for i in v)
        table = {s: [i for i in v if counts[i] >= 7] for s, v in table.items()}
        table = {s: v for s, v in table.items() if len(v) >= 5}
    assert len(seen) > 2
    assert found == {"once": seen[1], "core": table}


def test_consecutive_duplicates_go_also_where_a_filter_made_them(tmp_path: Path) -> None:
    sequences = {f"U{k}": "aabba" for k in range(12)} | {"V": "axabb", "W": "aaaaa"}
    reviews = [(u, i, START + k) for u, s in sequences.items() for k, i in enumerate(s)]
    files = raw_files(tmp_path / "raw", reviews)
    made = convert_amazon("x", *files, tmp_path, drop_consecutive=True, min_item_count=2)
    kept = {s: "".join(i for _, i in v) for s, v in interactions(made.path / "x.inter").items()}
    assert kept == {f"U{k}": "aba" for k in range(12)} | {"V": "ab"}
    made = convert_amazon("y", *files, tmp_path, min_item_count=2)
    assert interactions(made.path / "y.inter")["U1"][0][1] == "a"
    assert made.counts["interactions"] == 12 * 5 + 4 + 5


@pytest.mark.parametrize("order", ["shuffled", "session_id"])
def test_ratio_split(tmp_path: Path, order: str) -> None:
    reviews = random_reviews(33, users=80)
    files = raw_files(tmp_path / "raw", reviews)
    made = convert_amazon(
        "x", *files, tmp_path, split="ratio", ratio="6:3:1", ratio_order=order, seed=4
    )
    everything = interactions(made.path / "x.inter")

    def place(session: str) -> str:
        return hashlib.md5(f"4:{session}".encode()).hexdigest() if order == "shuffled" else session

    ids = sorted(everything, key=place)
    a, b = len(ids) * 6 // 10, len(ids) * 9 // 10
    assert [list(part) for part in parts(made.path).values()] == [ids[:a], ids[a:b], ids[b:]]


@pytest.mark.parametrize("ratio", ["8:1", "8:1:0", "a:b:c", "1:-1:1"])
def test_a_bad_ratio_is_named(tmp_path: Path, ratio: str) -> None:
    with pytest.raises(InputError, match=f"ratio='{ratio}'"):
        convert_amazon("x", tmp_path, tmp_path, tmp_path, split="ratio", ratio=ratio)


def test_cold_slices_have_the_targets_that_training_never_saw(tmp_path: Path) -> None:
    reviews = random_reviews(34, users=150, items=120, n=600)
    files = raw_files(tmp_path / "raw", reviews)
    made = convert_amazon("x", *files, tmp_path, sessions="day")
    seen = {item for items in parts(made.path)["train"].values() for item in items}
    for part in ("valid", "test"):
        expected = [row for row in rows(made.path / f"x.{part}.inter") if row[2] not in seen]
        assert expected
        assert rows(made.path / f"x.{part}-cold.inter") == expected
        assert made.counts[f"rows_{part}_cold"] == len(expected)


TIMES = st.sampled_from([0, 1, 1799, 1800, 1801, 86_399, 86_400, 86_401, 200_000])
REVIEWS = st.lists(
    st.tuples(st.sampled_from(["A", "A_1", "B", "b", "C-"]), st.sampled_from("vwxyz"), TIMES),
    min_size=1,
    max_size=60,
)
OPTIONS = st.fixed_dictionaries(
    {
        "sessions": st.sampled_from(["first-day", "day", "gap:30m", "timestamp", "user"]),
        "split": st.sampled_from(["temporal", "dimo", "leave-one-out", "ratio"]),
        "drop_repeats": st.booleans(),
        "drop_consecutive": st.booleans(),
        "augment": st.booleans(),
        "min_item_count": st.sampled_from([1, 2]),
        "max_session_length": st.sampled_from([None, 3]),
        "max_len": st.sampled_from([2, 50]),
    }
)


@GIVEN
@given(REVIEWS, OPTIONS)
def test_any_conversion_partitions_in_order_without_leakage(
    drawn: list[Review], options: dict[str, Any]
) -> None:
    reviews = [(u, i, START + t) for u, i, t in drawn]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = raw_files(folder / "raw", reviews)
        shares: dict[str, Any] = {"train_share": 0.5, "valid_share": 0.25}
        try:
            made = convert_amazon("x", *files, folder, **options, **shares)
        except InputError as error:
            told = str(error)
            made = None
        if made is None:
            assert "Too few sessions" in told or "No interaction is left" in told
            assert not (folder / "x").exists()
            return
        again = convert_amazon("x", *files, folder / "again", exact=True, **options, **shares)
        for file in made.path.iterdir():
            assert file.read_bytes() == (again.path / file.name).read_bytes(), file.name
        check_sessions(made.path, reviews, options)
        check_parts(made.path, options)


def check_sessions(path: Path, reviews: list[Review], options: dict[str, Any]) -> None:
    """Every session is a subsequence, in order, of the session the rule says."""
    rule, _, _ = options["sessions"].partition(":")
    allowed = sessions_by_hand(reviews, rule, 1800)
    found = interactions(path / "x.inter")
    assert found.keys() <= allowed.keys()
    for session, events in found.items():
        rest = iter(allowed[session])
        assert all(event in rest for event in events)
        assert 2 <= len(events) <= (options["max_session_length"] or len(reviews))
        if options["drop_repeats"]:
            assert len(set(events)) == len(events)
        if options["drop_consecutive"] and options["split"] != "dimo":
            # Under dimo the last step takes the items unseen in training out of test sessions.
            assert all(a[1] != b[1] for a, b in pairwise(events))


def check_parts(path: Path, options: dict[str, Any]) -> None:
    """The parts partition the sessions (or each sequence), and nothing held out is in training."""
    everything = {s: [i for _, i in v] for s, v in interactions(path / "x.inter").items()}
    split = parts(path)
    cut = options["max_len"] + 1
    if options["split"] == "leave-one-out":
        for session, items in everything.items():
            train = split["train"][session]
            held = max(0, min(2, len(items) - 2))
            whole = items[: len(items) - held]
            assert train == (whole if options["augment"] else whole[-cut:])
            if len(items) >= 3:
                assert split["test"][session] == items[-cut:]
            if len(items) >= 4:
                assert split["valid"][session] == items[:-1][-cut:]
        return
    names = [set(split[part]) for part in ("train", "valid", "test")]
    assert sum(map(len, names)) == len(everything)
    assert set.union(*names) == everything.keys()
    for part, sessions in split.items():
        whole = part == "train" and options["augment"]
        for session, items in sessions.items():
            assert items == (everything[session] if whole else everything[session][-cut:])
    if options["split"] == "temporal":
        events = interactions(path / "x.inter")
        ends = [[events[s][-1][0] for s in split[part]] for part in ("train", "valid", "test")]
        assert max(ends[0]) <= min(ends[1])
        assert max(ends[1]) <= min(ends[2])


@pytest.mark.parametrize(
    ("bad", "told"), [([], None), (["x\n"], "1 line was"), (["x\n", "{}\n"], "2 lines were")]
)
def test_the_command_line_tells_how_many_lines_were_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: list[str], told: str | None
) -> None:
    _, metadata = raw_files(tmp_path / "raw", random_reviews(36))
    good = [review(*r) for r in random_reviews(36)]
    source = write_lines(tmp_path / "r.json.gz", [*good, *bad])
    call = ["convert", "amazon", "--dataset", "x", "--data_path", str(tmp_path)]
    assert main([*call, "--reviews", str(source), "--meta", str(metadata)]) == 0
    out = capsys.readouterr().out
    path = tmp_path / "x" / "rejected.jsonl"
    if told is None:
        assert "left out" not in out
    else:
        assert f"{told} left out: {path} says why" in out.splitlines()
        assert len(path.read_text().splitlines()) == len(bad)


def test_the_command_line_reaches_every_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, metadata = raw_files(tmp_path / "raw", random_reviews(35, n=900))
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) * 9 // 10])
    call = ["convert", "amazon", "--dataset", "x", "--data_path", str(tmp_path)]
    call += ["--reviews", str(source), "--meta", str(metadata), "--release", "2018"]
    call += ["--sessions", "gap:12h", "--split", "ratio", "--ratio", "2:1:1", "--seed", "3"]
    call += ["--ratio_order", "session_id", "--drop_consecutive", "--iterate_filters"]
    call += ["--min_item_count", "2", "--max_session_length", "9", "--no-drop_repeats"]
    call += ["--needs_text", "--no-needs_image", "--no-augment", "--max_rejected", "0.2"]
    assert main([*call, "--allow_truncated", "--memory", "300MB", "--exact"]) == 0
    assert "reviews.json.gz was cut" in capsys.readouterr().out
    options = json.loads((tmp_path / "x" / "dataset.json").read_text())["options"]
    expected: dict[str, Any] = {
        "release": "2018",
        "sessions": "gap:12h",
        "split": "ratio",
        "train_share": 0.5,
        "valid_share": 0.25,
        "ratio_order": "session_id",
        "seed": 3,
        "drop_repeats": False,
        "needs_text": True,
        "needs_image": False,
        "drop_consecutive": True,
        "iterate_filters": True,
        "min_session_length": 2,
        "min_item_count": 2,
        "max_session_length": 9,
        "augment": False,
        "max_len": 50,
        "allow_truncated": True,
        "max_rejected": 0.2,
    }
    assert options == expected
    assert main([*call, "--overwrite"]) == 2
    assert "truncated" in capsys.readouterr().err


def test_items_are_those_of_the_sessions(tmp_path: Path) -> None:
    """Some occur only where long sessions are cut, some only in dropped parts of test sessions."""
    reviews = [(f"U{u:02}", f"I{k}", START + 60 * k) for u in range(20) for k in range(6)]
    reviews += [("U05", "late", START + 900), ("U19", "cold", START - 1)] * 2
    files = raw_files(tmp_path / "raw", reviews)
    made = convert_amazon("x", *files, tmp_path, split="dimo", min_item_count=2)
    assert made.counts["items"] == 7
    cut = convert_amazon(
        "y", *files, tmp_path, split="dimo", min_item_count=2, max_session_length=5
    )
    for path, name, expected in ((made.path, "x", 7), (cut.path, "y", 5)):
        items = [json.loads(x)["item_id"] for x in (path / "items.jsonl").read_text().splitlines()]
        assert items == sorted({row[1] for row in rows(path / f"{name}.inter")})
        assert items == [row[0] for row in rows(path / f"{name}.item")]
        assert len(items) == expected
        counts = json.loads((path / "dataset.json").read_text())["counts"]
        assert counts["items_with_title"] == expected
