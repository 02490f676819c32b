"""The read-only view of a data set folder."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from dataset_converters.sequences import convert_sequences
from dataset_converters.split import split_sha256
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    rng = random.Random(1)
    records = {f"I{k}": {"title": f"Mug I{k}", "categories": "Home,Mugs"} for k in range(9)}
    records["I3"]["price"] = "$12.99"
    sequences = {f"U{k}": rng.choices(list(records), k=rng.randint(2, 9)) for k in range(40)}
    sequences["U7"] = [*records]
    (tmp_path / "items.json").write_text(json.dumps(records))
    (tmp_path / "sequences.json").write_text(json.dumps(sequences))
    convert_sequences("shop", tmp_path / "sequences.json", tmp_path / "items.json", tmp_path)
    return DatasetFolder.open(tmp_path, "shop")


def test_items_with_keywords(folder: DatasetFolder) -> None:
    record = {"item_id": "I3", "keywords": ["red", "round"], "annotator": "file"}
    (folder.path / "keywords.jsonl").write_text(json.dumps(record) + "\n")
    items = {item.item_id: item for item in folder.items}
    assert folder.item_ids == sorted(items)
    assert items["I3"].keywords == ("red", "round")
    assert items["I4"].keywords == ()
    assert (items["I3"].title, items["I3"].category) == ("Mug I3", "Mugs")
    assert items["I3"].price == 12.99
    assert items["I3"].image is None


def test_counts_are_those_of_the_training_sessions(folder: DatasetFolder) -> None:
    by_hand = Counter(i for _, items in folder.train_sessions() for i in items)
    counts = folder.train_item_counts()
    assert counts == by_hand
    split = json.loads((folder.path / "split.json").read_text())
    assert sum(counts.values()) == split["parts"]["train"]["interactions"]
    assert len(counts) == split["items_in_train"]
    assert counts["absent"] == 0


def test_verify_split_notices_any_change(folder: DatasetFolder) -> None:
    folder.verify_split()
    file = folder.path / "shop.train.inter"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(InputError, match=r"does not match split\.json"):
        folder.verify_split()


def test_fingerprint_is_independent_of_session_order_only() -> None:
    sessions = [("b", ["1", "2"]), ("a", ["3", "4"])]
    assert split_sha256(sessions) == split_sha256(sessions[::-1])
    assert split_sha256(sessions) != split_sha256([("b", ["2", "1"]), ("a", ["3", "4"])])
    # sha256 of "a\t3 4\nb\t1 2\n", by coreutils
    assert split_sha256(sessions).startswith("961514949574")


def test_wrong_folders_are_explained(folder: DatasetFolder) -> None:
    data_path = folder.path.parent
    with pytest.raises(InputError, match="Did you mean 'shop'"):
        DatasetFolder.open(data_path, "shpo")
    with pytest.raises(InputError, match="no part 'tests'"):
        list(folder.sessions("tests"))
    (folder.path / "shop.valid.inter").unlink()
    with pytest.raises(InputError, match=r"lacks shop\.valid\.inter"):
        DatasetFolder.open(data_path, "shop")
    split = folder.path / "split.json"
    split.write_text(split.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(InputError, match="has format 9"):
        DatasetFolder.open(data_path, "shop")
