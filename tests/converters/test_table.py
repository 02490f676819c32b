"""A user's own tables: every kind of file, which column is what, times, and refusals."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_server import picture
from raw_amazon import random_reviews, rows, sessions_by_hand

from dataset_converters.errors import InputError
from dataset_converters.table import convert_table
from dataset_converters.table_columns import INTERACTION_COLUMNS, choose_columns
from dataset_converters.table_options import ColumnNames, TableOptions
from recbole_tpad.cli import main
from recbole_tpad.data import DatasetFolder

Rows = Sequence[Mapping[str, Any]]
KINDS = ["x.csv", "x;.csv", "x.tsv", "x.inter", "x.jsonl", "x.json", "x.parquet", "x.csv.gz"]


def write(path: Path, table: Rows) -> Path:
    """Write rows in the kind that the name says; `x;.csv` has semicolons."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.removesuffix(".gz")
    columns = list(table[0])
    if name.endswith("jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in table)
    elif name.endswith("json"):
        text = json.dumps(table)
    elif name.endswith("parquet"):
        source = path.with_suffix(".jsonl.tmp")
        source.write_text("".join(json.dumps(row) + "\n" for row in table))
        with duckdb.connect() as connection:
            rows_of = f"SELECT * FROM read_json('{source}', sample_size=-1)"
            connection.execute(f"COPY ({rows_of}) TO '{path}'")
        return path
    else:
        delimiter = ";" if ";" in name else "," if name.endswith("csv") else "\t"
        with (path.parent / "text").open("w", newline="") as out:
            writer = csv.writer(out, delimiter=delimiter)
            types = {"user_id": ":token", "item_id": ":token", "timestamp": ":float"}
            atomic = name.endswith("inter")
            writer.writerow([c + types.get(c, ":token") * atomic for c in columns])
            writer.writerows([row[c] for c in columns] for row in table)
        text = (path.parent / "text").read_text()
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def interactions(seed: int = 1, **more: int) -> tuple[Rows, list[tuple[str, str, int]]]:
    reviews = random_reviews(seed, **more)
    return [{"user_id": u, "item_id": i, "timestamp": t} for u, i, t in reviews], reviews


def sessions_written(folder: Path, name: str = "x") -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    for session, item, time in rows(folder / f"{name}.inter"):
        found.setdefault(session, []).append((int(time), item))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["user", "day", "first-day"])
def test_every_kind_of_file_gives_the_same_sessions(tmp_path: Path, kind: str, rule: Any) -> None:
    table, reviews = interactions()
    path = write(tmp_path / "raw" / kind, table)
    made = convert_table("x", path, tmp_path, options=TableOptions(sessions=rule))
    by_hand = {s: r for s, r in sessions_by_hand(reviews, rule).items() if len(r) >= 2}
    assert sessions_written(made.path) == by_hand
    folder = DatasetFolder.open(tmp_path, "x")
    folder.verify_split()
    ordered = sorted(by_hand, key=lambda s: (by_hand[s][-1][0], s))
    train = [session for session, _ in folder.train_sessions()]
    assert train == ordered[: int(len(ordered) * 0.8)]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "raw" / "x.csv", interactions()[0])
    first = convert_table("x", path, tmp_path / "a")
    second = convert_table("x", path, tmp_path / "b")
    files = {f.name: f.read_bytes() for f in first.path.iterdir()}
    assert files == {f.name: f.read_bytes() for f in second.path.iterdir()}


SPELLINGS = {
    "seconds": lambda t: int(t.timestamp()),
    "text": lambda t: str(int(t.timestamp())),
    "milliseconds": lambda t: int(t.timestamp() * 1000),
    "microseconds": lambda t: round(t.timestamp() * 1_000_000),
    "fractions": lambda t: t.timestamp(),
    "iso": lambda t: t.replace(tzinfo=None).isoformat(),
    "zulu": lambda t: t.isoformat().replace("+00:00", "Z"),
    "zone": lambda t: t.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat(sep=" "),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kind", ["x.csv", "x.parquet"])
def test_times(tmp_path: Path, kind: str, spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    start = datetime(2001, 3, 4, 5, 6, 7, 250_000, tzinfo=UTC)
    # Later rows are earlier, a half second apart: whole seconds alone would not order them.
    moments = [start - timedelta(milliseconds=500 * k) for k in range(60)]
    made = [
        {"user": f"u{k % 6}", "item": f"i{k}", "time": SPELLINGS[spelling](moment)}
        for k, moment in enumerate(moments)
    ]
    folder = convert_table("x", write(tmp_path / "raw" / kind, made), tmp_path).path
    found = sessions_written(folder)
    for k in range(6):
        mine = [(int(moments[j].timestamp()), f"i{j}") for j in range(k, 60, 6)]
        if spelling in ("seconds", "text"):
            mine.sort()
            assert found[f"u{k}"] == sorted(mine, key=lambda row: (row[0], int(row[1][1:])))
        else:
            assert found[f"u{k}"] == mine[::-1]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xyzw"), st.integers(0, 2**31)),
        min_size=20,
        max_size=40,
    )
)
def test_leave_one_out_is_that_of_plain_lists(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("x")
    table = [{"user_id": u, "item_id": i, "timestamp": t} for u, i, t in drawn]
    path = write(folder / "raw" / "x.csv", table)
    options = TableOptions(split="leave-one-out", time_unit="s")
    made = convert_table("x", path, folder, options=options)
    expected = {}
    for user in "abc":
        mine = [(t, k, i) for k, (u, i, t) in enumerate(drawn) if u == user]
        expected[user] = [i for _, _, i in sorted(mine)]
    found = dict(DatasetFolder.open(folder, "x").sessions("test"))
    assert found == {u: items for u, items in expected.items() if len(items) >= 3}
    assert made.counts["interactions"] == sum(len(v) for v in expected.values() if len(v) >= 2)


def test_items_images_and_prices(tmp_path: Path) -> None:
    table = [{"uid": u, "product": f"p{k}"} for u in range(5) for k in range(4)]
    items = [
        {"sku": "p0", "name": "Mug &amp; Co", "maker": "A", "genres": ["Home", "Mugs"], "price": 3},
        {"sku": "p0", "name": "", "maker": None, "genres": [], "price": None},
        {"sku": "p1", "name": "<b>Cup</b>", "maker": "B", "genres": ["Cups"], "price": 2.5},
        {"sku": "p9", "name": "never bought", "maker": "B", "genres": [], "price": 1},
    ]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "p1.png").write_bytes(picture(kind="PNG"))
    (tmp_path / "pictures" / "p2.png").write_bytes(b"<html>")
    made = convert_table(
        "x",
        write(tmp_path / "raw" / "x.csv", table),
        tmp_path,
        items=write(tmp_path / "raw" / "i.parquet", items),
        images=tmp_path / "pictures",
        columns=ColumnNames(brand="maker"),
    )
    assert made.counts["metadata_duplicates"] == 1
    assert made.counts["items_without_metadata"] == 2
    found = {item.item_id: item for item in DatasetFolder.open(tmp_path, "x").items}
    assert list(found) == ["p0", "p1", "p2", "p3"]
    assert (found["p0"].title, found["p0"].brand, found["p0"].category) == ("Mug & Co", "A", "Mugs")
    assert (found["p1"].title, found["p1"].price) == ("Cup", 2.5)
    assert [item.image is not None for item in found.values()] == [False, True, False, False]
    # No time: the rows' order, and leave-one-out.
    assert rows(made.path / "x.test.inter")[0] == ["0", "p0 p1 p2", "p3"]
    assert json.loads((made.path / "split.json").read_text())["rule"] == "leave-one-out"


def test_category_paths_and_image_addresses_as_text(tmp_path: Path) -> None:
    table = [{"user": f"u{k}", "item": i} for k in range(3) for i in "abcd"]
    items = [
        {
            "item": "a",
            "category": "Home > Kitchen|Mugs",
            "image": "https://x/1.jpg https://x/2.jpg",
        },
        {"item": "b", "category": "Salt, pepper & co", "image": ""},
    ]
    files = [write(tmp_path / "raw" / n, t) for n, t in (("x.tsv", table), ("i.csv", items))]
    made = convert_table("x", files[0], tmp_path, items=files[1])
    records = [json.loads(line) for line in (made.path / "items.jsonl").open()]
    assert records[0]["category_path"] == ["Home", "Kitchen", "Mugs"]
    assert records[0]["image_urls"] == ["https://x/1.jpg", "https://x/2.jpg"]
    assert records[1]["category_path"] == ["Salt, pepper & co"]


@pytest.mark.parametrize("head", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_line_ends_and_byte_order_marks(tmp_path: Path, kind: str, end: str, head: str) -> None:
    """A first line unlike the others is a header, not a preamble; row numbers have no name."""
    (tmp_path / "raw").mkdir()
    quote, between = ('"', ",") if kind == "csv" else ("", "\t")
    cells = [
        ["", "user", "item"],
        *([str(k), str(k % 3), f"{quote}i,{k}{quote}"] for k in range(12)),
    ]
    path = tmp_path / "raw" / f"x.{kind}"
    path.write_bytes((head + end.join(map(between.join, cells))).encode())
    made = convert_table("x", path, tmp_path)
    assert made.counts["rows_read"] == 12
    assert rows(made.path / "x.inter")[0] == ["0", "i,0"]


def test_lists_in_lists(tmp_path: Path) -> None:
    """Several category paths, as some sources have them: the first counts."""
    table = [{"user": f"u{k}", "item": i} for k in range(3) for i in "abcd"]
    items = [{"item": "a", "categories": [["Home", "Mugs"], ["Gifts"]], "images": ["https://x/1"]}]
    files = [write(tmp_path / "raw" / n, t) for n, t in (("x.csv", table), ("i.jsonl", items))]
    made = convert_table("x", files[0], tmp_path, items=files[1])
    record = json.loads((made.path / "items.jsonl").read_text().splitlines()[0])
    assert record["category_path"] == ["Home", "Mugs"]
    assert record["image_urls"] == ["https://x/1"]


def test_ids_keep_their_zeros_and_lose_the_fraction_of_a_gap(tmp_path: Path) -> None:
    text = write(
        tmp_path / "raw" / "x.csv",
        [{"user": f"{k // 4:03}", "item": f"{k % 4:02}"} for k in range(12)],
    )
    found = rows(convert_table("x", text, tmp_path).path / "x.inter")
    assert found[0] == ["000", "00"]
    numbers = [{"user": k // 4, "item": float(k % 4)} for k in range(12)]
    parquet = write(tmp_path / "raw" / "y.parquet", numbers)
    assert rows(convert_table("y", parquet, tmp_path).path / "y.inter")[1] == ["0", "1"]


def test_session_columns_and_given_splits(tmp_path: Path) -> None:
    words = ["train"] * 6 + ["dev", "test"]
    table = [
        {"session_id": f"s{k}", "user_id": "u", "item_id": f"i{j}", "set": words[k]}
        for k in range(8)
        for j in range(3)
    ]
    path = write(tmp_path / "raw" / "x.csv", table)
    named = ColumnNames(split="set")
    convert_table("x", path, tmp_path, columns=named, options=TableOptions(augment=False))
    folder = DatasetFolder.open(tmp_path, "x")
    assert [s for s, _ in folder.sessions("valid")] == ["s6"]
    assert list(folder.sessions("test")) == [("s7", ["i0", "i1", "i2"])]
    assert len(list(folder.train_sessions())) == 6
    # Without a validation part, the last of training becomes one.
    for row in table:
        row["set"] = "test" if row["set"] == "test" else "train"
    path = write(tmp_path / "raw" / "y.csv", table)
    convert_table("y", path, tmp_path, columns=named, options=TableOptions(valid_share=0.3))
    folder = DatasetFolder.open(tmp_path, "y")
    assert [s for s, _ in folder.sessions("valid")] == ["s5", "s6"]
    users = ColumnNames(user="user_id", split="set")
    with pytest.raises(InputError, match="'u' has rows in several parts of 'set'"):
        convert_table("z", path, tmp_path, columns=users)


def test_low_ratings_repeats_and_rare_items_are_left_out(tmp_path: Path) -> None:
    table = [
        {"user": f"u{k}", "item": i, "stars": s, "time": 100 + t}
        for k in range(10)
        for t, (i, s) in enumerate([("a", 5), ("b", 4), ("c", 1), ("d", 5)])
    ]
    table += [dict(table[0]), {"user": "u0", "item": "rare", "stars": 5, "time": 200}]
    path = write(tmp_path / "raw" / "x.csv", table)
    options = TableOptions(min_rating=3, drop_repeats=True, min_item_count=2)
    made = convert_table("x", path, tmp_path, options=options)
    assert [(s.filter, s.interactions_removed) for s in made.filters] == [
        ("min_rating=3", 10),
        ("drop_repeats", 1),
        ("sessions=user", 0),
        ("min_session_length=2", 0),
        ("min_item_count=2", 1),
        ("min_session_length=2", 0),
    ]
    with pytest.raises(InputError, match="no row with stars of at least 9"):
        convert_table("y", path, tmp_path, options=TableOptions(min_rating=9))


GOOD = [{"user": f"u{k % 3}", "item": f"i{k}", "time": 10 + k} for k in range(30)]


def refuse(
    tmp_path: Path, table: Rows | str | bytes, match: str, name: str = "x.csv", **more: Any
) -> None:
    path = tmp_path / "raw" / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(table, str | bytes):
        path.write_bytes(table.encode() if isinstance(table, str) else table)
    else:
        write(path, table)
    with pytest.raises(InputError, match=match):
        convert_table("x", path, tmp_path, **more)
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".x*"))


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    other = [{"client": "u", "item": "i"}]
    refuse(tmp_path, other, "--user_column.*Columns found: client, item")
    refuse(tmp_path, [{"user": "u", "thing": "i"}], "--item_column.*Columns found: user, thing")
    named = ColumnNames(item="iten")
    refuse(tmp_path, GOOD, "no column 'iten'. Did you mean 'item'", columns=named)
    two = [{"user_id": "u", "userId": "v", "item": "i"}]
    refuse(tmp_path, two, "user_id and userId could both be the user column")
    timeless = [{k: v for k, v in row.items() if k != "time"} for row in GOOD]
    refuse(tmp_path, timeless, "--time_column", options=TableOptions(split="temporal"))
    refuse(tmp_path, timeless, "--time_column", options=TableOptions(sessions="day"))
    refuse(tmp_path, timeless, "--drop_repeats", options=TableOptions(drop_repeats=True))
    refuse(tmp_path, GOOD, "--split_column", options=TableOptions(split="given"))
    refuse(tmp_path, GOOD, "'rating'|--rating_column", options=TableOptions(min_rating=3))
    refuse(tmp_path, GOOD, "no column 'set'", columns=ColumnNames(split="set"))
    words = [row | {"set": "x"} for row in GOOD]
    refuse(tmp_path, words, "the column 'set' says 'x'; known", columns=ColumnNames(split="set"))
    session = [row | {"session": "s"} for row in GOOD]
    refuse(tmp_path, session, "--sessions day does not apply", options=TableOptions(sessions="day"))
    items = write(tmp_path / "raw" / "others.csv", [{"id": "7", "title": "t"}])
    refuse(tmp_path, GOOD, "others.csv: the column 'id' has none of the items", items=items)
    items = write(tmp_path / "raw" / "items.csv", [{"thing": "i", "title": "t"}])
    refuse(tmp_path, GOOD, "items.csv: .*--items_id_column", items=items)


def test_broken_files_are_named(tmp_path: Path) -> None:
    refuse(tmp_path, b"", r"x\.xlsx is of no known kind", name="x.xlsx")
    refuse(tmp_path, b"", "must name the columns, but it is empty")
    refuse(tmp_path, "user,,,item\n1,2,3\n", r"cannot be read: .*Line: 2")
    refuse(tmp_path, "user,item,User\n1,2,3\n", "'user' is there twice")
    refuse(tmp_path, "usér,item\n".encode("latin-1"), "first line is not UTF-8")
    refuse(tmp_path, "user,item\né,1\n".encode("latin-1"), "cannot be read: .*utf-8")
    refuse(tmp_path, "user,item\n", "has no row in it")
    refuse(tmp_path, b"PAR1 not really", "cannot be read", name="x.parquet")
    refuse(tmp_path, '{"user": 1, "item":\n', "cannot be read", name="x.jsonl")
    refuse(tmp_path, "user,item\n1,2\n1,2,3\n", "cannot be read: .*Line: 3", name="y.csv")
    refuse(
        tmp_path, gzip.compress(b"user,item\n" + b"1,2\n" * 999)[:-20], "x.csv.gz", name="x.csv.gz"
    )
    with pytest.raises(InputError, match="no such file"):
        convert_table("x", tmp_path / "absent.csv", tmp_path)
    path = write(tmp_path / "raw" / "good.csv", GOOD)
    with pytest.raises(InputError, match="absent is not a folder"):
        convert_table("x", path, tmp_path, images=tmp_path / "absent")
    with pytest.raises(InputError, match=r"Cannot read .*items\.csv: no such file"):
        convert_table("x", path, tmp_path, items=tmp_path / "items.csv")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"user": ""}, "1 rows have no value in the column 'user', the first is row 4"),
        ({"item": None}, "no value in the column 'item', the first is row 4"),
        ({"user": "a b"}, "row 4: the user 'a b' is empty or has white space"),
        ({"item": " i"}, "row 4: the item ' i' is empty or has white space"),
        ({"item": "NA"}, "row 4: the item 'NA' is read as a missing value"),
        ({"item": 'say "x"'}, "row 4: .*double quote"),
        ({"time": "soon"}, "no readable time in the column 'time', the first is row 4"),
        ({"time": ""}, "no readable time in the column 'time', the first is row 4"),
        ({"time": -5}, "no readable time in the column 'time', the first is row 4"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    table = [dict(row) for row in GOOD]
    table[3] |= change
    refuse(tmp_path, table, match)


def test_lists_and_objects_are_no_ids(tmp_path: Path) -> None:
    refuse(tmp_path, [{"user": {"a": 1}, "item": 1}], "holds STRUCT.*not ids", name="x.jsonl")
    refuse(tmp_path, [{"user": 1, "item": [1]}], r"holds BIGINT\[\], not ids", name="x.jsonl")


def test_names_are_never_commands(tmp_path: Path) -> None:
    """Quotes in paths, column names and values are characters; patterns are not expanded."""
    nasty = "it\"em'; DROP TABLE picked; --"
    table = [{"user": f"u'{k % 10}", nasty: f"i*{k}", "time": k} for k in range(30)]
    path = write(tmp_path / "it's [here]*" / "x?.jsonl", table)
    write(tmp_path / "it's [here]*" / "xy.jsonl", [{"user": 1}])
    made = convert_table("x", path, tmp_path, columns=ColumnNames(item=nasty))
    assert made.counts["items_read"] == 30


@given(st.lists(st.text(max_size=12), unique=True, max_size=8))
def test_columns_are_chosen_or_refused(columns: list[str]) -> None:
    try:
        chosen = choose_columns(Path("x"), columns, INTERACTION_COLUMNS, {}, required=["item"])
    except InputError:
        return
    assert set(chosen.values()) <= set(columns)
    assert len(set(chosen.values())) == len(chosen)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = [{"client": f"c{k % 10}", "item": f"i{k % 7}", "when": 10 + k} for k in range(60)]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "i1.jpg").write_bytes(picture())
    (tmp_path / "pictures" / "i2.jpg").write_bytes(b"no")
    path = write(tmp_path / "raw" / "x.csv", table)
    given = ["convert", "table", "--dataset", "x", "--data_path", str(tmp_path), "--interactions"]
    given += [str(path), "--images", str(tmp_path / "pictures"), "--time_column", "when"]
    assert main(given) == 2
    assert "--user_column" in capsys.readouterr().err
    assert main([*given, "--user_column", "client", "--no-augment", "--max_len", "3"]) == 0
    said = capsys.readouterr().out
    assert "10 sessions, 60 interactions, 7 items" in said
    assert "1 items with an image, 1 unreadable" in said
    split = json.loads((tmp_path / "x" / "split.json").read_text())
    assert (split["rule"], split["augmented"], split["max_len"]) == ("temporal", False, 3)
    recorded = json.loads((tmp_path / "x" / "dataset.json").read_text())["options"]["columns"]
    assert recorded == {"user": "client", "item": "item", "time": "when"}
