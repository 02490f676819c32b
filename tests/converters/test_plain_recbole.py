"""Folders of converters load, train and are evaluated in RecBole without this package."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from raw_amazon import SHARED, random_reviews, raw_files
from test_movielens import write_layout

from dataset_converters.amazon import convert_amazon
from dataset_converters.folder import ConversionSummary
from dataset_converters.movielens import convert_movielens
from dataset_converters.table import convert_table
from dataset_converters.table_options import TableOptions
from recbole_tpad.data import DatasetFolder


def amazon(folder: Path) -> ConversionSummary:
    return convert_amazon("x", *raw_files(folder / "raw", random_reviews(60)), folder)


def table(folder: Path) -> ConversionSummary:
    """A shop's own tables, with ids and names that try the files' separators."""
    rows = [
        (f"c-{user}", f"p/{item}", f"2024-03-{day + 1:02}T10:00:00")
        for user in range(30)
        for day, item in enumerate((user % 7, user % 5 + 7, user % 3, user % 11 + 3))
    ]
    with (folder / "sales.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("customer_id", "product_id", "timestamp"), *rows])
    with (folder / "products.csv").open("w", newline="") as out:
        items = sorted({item for _, item, _ in rows})
        named = [(item, f'Mug "{item}",\tred', "1,5" if k else "") for k, item in enumerate(items)]
        csv.writer(out).writerows([("product_id", "title", "brand"), *named])
    return convert_table("x", folder / "sales.csv", folder, items=folder / "products.csv")


def movielens(folder: Path) -> ConversionSummary:
    return convert_movielens("x", write_layout(folder / "raw", "100k"), folder)


def check(made: ConversionSummary, data_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train an epoch; every row and item arrives, and the metrics are those of some ranking."""
    for name, value in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        monkeypatch.setattr(np, name, value, raising=False)
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import GRU4Rec
    from recbole.trainer import Trainer

    monkeypatch.setattr("sys.argv", ["recbole"])
    monkeypatch.chdir(data_path)
    config = Config(
        model="GRU4Rec",
        dataset=made.name,
        config_dict={
            "data_path": str(data_path),
            "USER_ID_FIELD": "session_id",
            "load_col": {
                "inter": ["session_id", "item_id_list", "item_id"],
                "item": ["item_id", "title", "brand", "category", "price"],
            },
            "alias_of_item_id": ["item_id_list"],
            "benchmark_filename": ["train", "valid", "test"],
            "train_neg_sample_args": None,
            "normalize_field": None,
            "epochs": 1,
            "topk": [3],
            "valid_metric": "MRR@3",
            "embedding_size": 8,
            "hidden_size": 8,
            "train_batch_size": 64,
            "show_progress": False,
            "save_dataset": False,
        },
    )
    dataset = create_dataset(config)
    assert dataset.item_num == made.counts["items"] + 1
    train, valid, test = data_preparation(config, dataset)
    for part, loader in (("train", train), ("valid", valid), ("test", test)):
        assert len(loader.dataset) == made.counts[f"rows_{part}"]
    row = test.dataset.inter_feat
    length = int(row["item_length"][0])
    ids = [*row["item_id_list"][0][:length].tolist(), int(row["item_id"][0])]
    first = next(iter(DatasetFolder.open(data_path, made.name).sessions("test")))[1]
    assert dataset.id2token("item_id", ids).tolist() == first
    model = GRU4Rec(config, train.dataset)
    before = model.item_embedding.weight.detach().clone()
    trainer = Trainer(config, model)
    trainer.fit(train, valid, saved=False, show_progress=False)
    assert not model.item_embedding.weight.equal(before)
    result = trainer.evaluate(test, load_best_model=False)
    assert 0 <= result["mrr@3"] <= 1


@pytest.mark.parametrize("convert", [amazon, table, movielens])
def test_a_folder_trains_in_plain_recbole(
    convert: Callable[[Path], ConversionSummary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(convert(tmp_path), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared real data")
def test_the_real_movies_train_in_plain_recbole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TableOptions(augment=False)
    made = convert_movielens("x", SHARED / "movie_posters", tmp_path, options=options)
    check(made, tmp_path, monkeypatch)
