"""Benchmark files of session ids: nothing is lost, and RecBole and the runner read the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_amazon import SHARED

from dataset_converters.errors import InputError
from dataset_converters.session_ids import convert_session_ids
from recbole_tpad.bridge.runner import run
from recbole_tpad.data import DatasetFolder

HEADER = "session_id:token\titem_id_list:token_seq\titem_id:token\n"
Sessions = Sequence[tuple[str, Sequence[str]]]


def write(path: Path, sessions: Sessions, *, augment: bool = False, header: str = HEADER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header]
    for session, items in sessions:
        for target in range(1 if augment else len(items) - 1, len(items)):
            lines.append(f"{session}\t{' '.join(items[:target])}\t{items[target]}\n")
    path.write_text("".join(lines))
    return path


def read(path: Path) -> list[tuple[str, list[str]]]:
    cells = (line.split("\t") for line in path.read_text().splitlines()[1:])
    return [(session, [*context.split(" "), target]) for session, context, target in cells]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcdefg"), min_size=2, max_size=7), min_size=4, max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[list[str]], rows: bool, augment: bool
) -> None:
    folder = tmp_path_factory.mktemp("x")
    sessions = [(f"s{k}", items) for k, items in enumerate(drawn)]
    train, test = sessions[:-1], sessions[-1:]
    made = convert_session_ids(
        "x",
        write(folder / "raw" / "a.inter", train, augment=rows),
        write(folder / "raw" / "b.inter", test),
        folder,
        valid_share=0.4,
        augment=augment,
    )
    opened = DatasetFolder.open(folder, "x")
    opened.verify_split()
    first = len(train) - int(len(train) * 0.4)
    assert list(opened.train_sessions()) == train[:first]
    assert list(opened.sessions("valid")) == train[first:]
    assert list(opened.sessions("test")) == test
    assert made.counts["interactions"] == sum(len(items) for items in drawn)


def test_a_validation_file_is_used(tmp_path: Path) -> None:
    parts = [write(tmp_path / "raw" / p, [(p, "ab")]) for p in ("train", "test", "valid")]
    convert_session_ids("x", parts[0], parts[1], tmp_path, valid=parts[2])
    assert list(DatasetFolder.open(tmp_path, "x").sessions("valid")) == [("valid", ["a", "b"])]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "the header must have one id, one list and one item column"),
        ("session_id\titem_id_list\titem_id\n1\t2\t3\n", "the header must have"),
        ("a:token\tb:token\tc:token\n", "the header must have"),
        (HEADER, "has no session in it"),
        (HEADER + "1\t2\n", "line 2: 2 cells, but the header has 3"),
        (HEADER + "1\t2 3\t4\n2\t3\t4\n1\t2 3\t5\n", "line 4: the session '1' is twice"),
        (HEADER + "1\t2 3\t4\n1\t2 9\t5\n", "line 3: the session '1' goes on with a list"),
        (HEADER + "1\t2  3\t4\n", "line 2: the item id '' is empty"),
        (HEADER + "1\t2 nan\t4\n", "line 2: the item id 'nan' is read as a missing value"),
        (HEADER + "9\t2 3\t4\n", "the session '9' is in .*raw/a.inter and in this file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, match: str) -> None:
    good = write(tmp_path / "raw" / "a.inter", [(str(k), "ab") for k in range(9, 30)])
    bad = tmp_path / "raw" / "b.inter"
    bad.write_text(text)
    with pytest.raises(InputError, match=match):
        convert_session_ids("x", good, bad, tmp_path)
    assert not (tmp_path / "x").exists()


def test_absent_files_and_wrong_options_are_named(tmp_path: Path) -> None:
    good = write(tmp_path / "raw" / "a.inter", [(str(k), "ab") for k in range(9)])
    other = write(tmp_path / "raw" / "b.inter", [("t", "ab")])
    with pytest.raises(InputError, match=r"Cannot read .*absent\.inter"):
        convert_session_ids("x", good, tmp_path / "absent.inter", tmp_path)
    with pytest.raises(InputError, match="valid_share=1"):
        convert_session_ids("x", good, other, tmp_path, valid_share=1)
    with pytest.raises(InputError, match="leaves a part without sessions: train 9, valid 0"):
        convert_session_ids("x", good, other, tmp_path, valid_share=0.1)
    latin = tmp_path / "raw" / "latin.inter"
    latin.write_bytes((HEADER + "é\ta\tb\n").encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8"):
        convert_session_ids("x", latin, other, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared real data")
def test_real_sessions_in_recbole_and_in_the_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SHARED / "session_ids" / "cellphones"
    train, test = (source / f"cellphones.{part}.inter" for part in ("train", "test"))
    made = convert_session_ids("cellphones", train, test, tmp_path)
    folder = DatasetFolder.open(tmp_path, "cellphones")
    together = [*folder.train_sessions(), *folder.sessions("valid")]
    assert together == read(train)
    assert list(folder.sessions("test")) == read(test)
    assert made.counts["items"] == 10213
    split = json.loads((made.path / "split.json").read_text())
    assert split["rule"] == "given"
    assert [part["sessions"] for part in split["parts"].values()] == [37454, 4161, 4644]

    result = run({"model": "Popularity", "dataset": "cellphones", "data_path": str(tmp_path)})
    assert len(result.ranks) == 4644

    for name, value in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        monkeypatch.setattr(np, name, value, raising=False)
    from recbole.config import Config
    from recbole.data import create_dataset

    monkeypatch.setattr("sys.argv", ["recbole"])
    monkeypatch.chdir(tmp_path)
    config = Config(
        model="SASRec",
        dataset="cellphones",
        config_dict={
            "data_path": str(tmp_path),
            "USER_ID_FIELD": "session_id",
            "load_col": {"inter": ["session_id", "item_id_list", "item_id"]},
            "alias_of_item_id": ["item_id_list"],
            "benchmark_filename": ["train", "valid", "test"],
            "train_neg_sample_args": None,
        },
    )
    parts = create_dataset(config).build()
    assert [len(part) for part in parts] == [37454, 4161, 4644]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared real data")
def test_grocery_counts(tmp_path: Path) -> None:
    source = SHARED / "session_ids" / "grocery"
    train, test = (source / f"grocery.{part}.inter" for part in ("train", "test"))
    counts = convert_session_ids("grocery", train, test, tmp_path).counts
    assert counts["sessions_train"] + counts["sessions_valid"] == 43_270
    assert (counts["sessions_test"], counts["items"]) == (4_770, 7_877)
