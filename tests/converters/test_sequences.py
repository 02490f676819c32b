"""Sequences without time stamps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from raw_amazon import SHARED, rows

from dataset_converters.errors import InputError
from dataset_converters.sequences import convert_sequences
from recbole_tpad.data import DatasetFolder

ITEMS = {
    str(k): {"title": f"T{k}", "brand": "B", "categories": "Tools,Tapes, Glue & Co,Tape"}
    for k in range(6)
}


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_leave_one_out_without_time(tmp_path: Path) -> None:
    sequences = write(tmp_path / "s.json", {"u": [3, 1, 2, 0], "v": [5, 4, 1], "w": [2]})
    made = convert_sequences("x", sequences, write(tmp_path / "i.json", ITEMS), tmp_path)
    header = (made.path / "x.inter").read_text().splitlines()[0]
    assert header == "session_id:token\titem_id:token"
    assert rows(made.path / "x.test.inter") == [["u", "3 1 2", "0"], ["v", "5 4", "1"]]
    assert rows(made.path / "x.valid.inter") == [["u", "3 1", "2"]]
    item = DatasetFolder.open(tmp_path, "x").items[0]
    assert item.category == "Tape"
    path = json.loads((made.path / "items.jsonl").read_text().splitlines()[0])["category_path"]
    assert path == ["Tools", "Tapes, Glue & Co", "Tape"]


def test_bad_shapes_are_named(tmp_path: Path) -> None:
    items = write(tmp_path / "i.json", ITEMS)
    unknown = write(tmp_path / "s.json", {"u": [1, 2, 3, 77]})
    with pytest.raises(InputError, match="user 'u' has the item '77'"):
        convert_sequences("x", unknown, items, tmp_path)
    with pytest.raises(InputError, match="one JSON object"):
        convert_sequences("x", write(tmp_path / "l.json", [1]), items, tmp_path)
    with pytest.raises(InputError, match="Cannot read"):
        convert_sequences("x", tmp_path / "absent.json", items, tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared real data")
def test_scientific(tmp_path: Path) -> None:
    source = SHARED / "amazon2018_scientific"
    made = convert_sequences(
        "sci", source / "Scientific.inter.json", source / "Scientific.item.json", tmp_path
    )
    counts = made.counts
    assert (counts["sessions"], counts["items"], counts["interactions"]) == (8317, 4344, 58492)
    assert counts["rows_valid"] == counts["rows_test"] == 8317
    assert counts["rows_train"] == 58492 - 3 * 8317
    DatasetFolder.open(tmp_path, "sci").verify_split()
