"""Published Amazon files, and RecBole reading what the converter wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from raw_amazon import SHARED

from dataset_converters.amazon import convert_amazon
from dataset_converters.errors import InputError
from recbole_tpad.data import DatasetFolder

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared real data")
GIFT = SHARED / "amazon2018_gift_cards"
GIFT_FILES = (GIFT / "Gift_Cards_5.json.gz", GIFT / "meta_Gift_Cards.json.gz")
MAGAZINE = SHARED / "amazon2018_magazine"


def test_gift_cards_counts(tmp_path: Path) -> None:
    made = convert_amazon("gift", *GIFT_FILES, tmp_path, sessions="day")
    counts = made.counts
    assert (counts["users_read"], counts["items_read"], counts["reviews_read"]) == (458, 148, 2972)
    assert (counts["sessions"], counts["interactions"], counts["items"]) == (598, 2323, 148)
    assert counts["items_with_image_url"] == 116
    assert counts["items_with_title"] == 148
    # Day resolution: the order within these sessions is the file's.
    assert counts["sessions_with_one_time"] == 598
    DatasetFolder.open(tmp_path, "gift").verify_split()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_magazine_titles_are_page_source(tmp_path: Path, version: str) -> None:
    reviews = MAGAZINE / "Magazine_Subscriptions_5.json.gz"
    meta = MAGAZINE / f"meta_{version}_Magazine_Subscriptions.json.gz"
    made = convert_amazon("mag", reviews, meta, tmp_path, split="leave-one-out")
    counts = made.counts
    assert (counts["users_read"], counts["items_read"], counts["reviews_read"]) == (348, 157, 2375)
    assert counts["titles_of_page_source"] == 148
    assert counts["items_without_metadata"] == 6
    assert counts["items_with_price"] == 0
    assert counts["items_with_image_url"] == 130
    items = DatasetFolder.open(tmp_path, "mag").items
    assert not any("<" in i.title + i.brand + i.category + i.description for i in items)
    assert not any("&amp;" in i.category for i in items)
    with pytest.raises(InputError, match="needs_text: 2375 removed"):
        convert_amazon("dimo", reviews, meta, tmp_path, split="dimo")


def test_truncated_files_of_2014_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    folder = SHARED / "amazon2014_digital_music"
    files = folder / "reviews_Digital_Music_5.json.gz", folder / "meta_Digital_Music.json.gz"
    with pytest.raises(InputError, match=r"reviews_Digital.*is truncated.*: 6908 complete lines"):
        convert_amazon("x", *files, tmp_path)
    made = convert_amazon("x", *files, tmp_path, split="leave-one-out", allow_truncated=True)
    counts = made.counts
    assert (counts["users_read"], counts["items_read"]) == (2490, 382)
    assert (counts["reviews_read"], counts["metadata_records"]) == (6908, 7419)
    assert counts["lines_rejected"] == 0
    record = json.loads((made.path / "dataset.json").read_text())
    assert record["source"]["release"] == "2014"
    assert [f["truncated_after"] for f in record["source"]["files"]] == [6908, 7419]
    first = next(i for i in DatasetFolder.open(tmp_path, "x").items if i.item_id == "5555991584")
    assert first.title == "Memory of Trees"


def test_files_of_two_releases_are_refused(tmp_path: Path) -> None:
    folder = SHARED / "amazon2014_digital_music"
    with pytest.raises(InputError, match=r"different releases.*Music_5.*2014.*Gift.*2018"):
        convert_amazon("x", folder / "reviews_Digital_Music_5.json.gz", GIFT_FILES[1], tmp_path)
    with pytest.raises(InputError, match=r"Gift.*2018.*line 1: a Python dict literal.*2014"):
        convert_amazon("x", GIFT_FILES[0], folder / "meta_Digital_Music.json.gz", tmp_path)


def test_recbole_reads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain RecBole, but for numpy names it still uses, sees every session and item."""
    made = convert_amazon("gift", *GIFT_FILES, tmp_path, sessions="day")
    for name, value in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        monkeypatch.setattr(np, name, value, raising=False)
    from recbole.config import Config
    from recbole.data import create_dataset

    monkeypatch.setattr("sys.argv", ["recbole"])
    monkeypatch.chdir(tmp_path)
    config = Config(
        model="SASRec",
        dataset="gift",
        config_dict={
            "data_path": str(tmp_path),
            "USER_ID_FIELD": "session_id",
            "load_col": {
                "inter": ["session_id", "item_id_list", "item_id"],
                "item": ["item_id", "title", "brand", "category", "price"],
            },
            "alias_of_item_id": ["item_id_list"],
            "benchmark_filename": ["train", "valid", "test"],
            "train_neg_sample_args": None,
            "normalize_field": None,
        },
    )
    dataset = create_dataset(config)
    train, valid, test = dataset.build()
    counts = made.counts
    assert len(train) == counts["rows_train"]
    assert (len(valid), len(test)) == (counts["rows_valid"], counts["rows_test"])
    assert dataset.item_num == counts["items"] + 1
    folder = DatasetFolder.open(tmp_path, "gift")
    rows = test.inter_feat
    first = next(iter(folder.sessions("test")))[1]
    length = int(rows["item_length"][0])
    ids = [*rows["item_id_list"][0][:length].tolist(), int(rows["item_id"][0])]
    assert dataset.id2token("item_id", ids).tolist() == first
