"""TF-IDF and random vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tpad import content, reopened, rewrite
from tiny_catalogue import KINDS, write_catalogue

from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.generators.embed import embed
from recbole_tpad.generators.registry import make_generator
from recbole_tpad.store import ItemEmbeddings


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    return write_catalogue(tmp_path)


def made(folder: DatasetFolder, generator: str, **overrides: Any) -> ItemEmbeddings:
    return embed(folder.path.parent, folder.name, generator, overrides=overrides)


def test_tfidf_puts_like_with_like(folder: DatasetFolder) -> None:
    store = made(folder, "tfidf", dimension=6)
    assert store.path == folder.path / "embeddings" / "tfidf"
    assert (store.manifest.role, store.manifest.split_fingerprint) == ("other", None)
    assert store.manifest.modalities == {"text": 6}
    table = store.rows(folder.item_ids)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    similarity = unit @ unit.T
    kind = np.arange(len(table)) % len(KINDS)
    same = kind[:, None] == kind[None, :]
    others = ~np.eye(len(table), dtype=bool)
    assert similarity[same & others].mean() > similarity[~same].mean() + 0.2


def test_tfidf_depends_on_text_and_settings_only(folder: DatasetFolder) -> None:
    generator = make_generator("tfidf")
    before = generator.fingerprint(folder)
    assert make_generator("tfidf", {"dimension": 5}).fingerprint(folder) != before
    rewrite(folder, "keywords.jsonl", lambda line: line.update(keywords=["other"]))
    assert generator.fingerprint(reopened(folder)) == before
    rewrite(folder, "items.jsonl", lambda line: line.update(title=line["title"] + " blue"))
    assert generator.fingerprint(reopened(folder)) != before


def test_tfidf_is_made_again_when_a_text_changes(folder: DatasetFolder) -> None:
    first = content(made(folder, "tfidf", dimension=6))
    assert content(made(folder, "tfidf", dimension=6)) == first

    def change(line: dict[str, Any]) -> None:
        if line["item_id"] == "i03":
            line["title"] = "classic plate number 3"

    rewrite(folder, "items.jsonl", change)
    assert content(made(folder, "tfidf", dimension=6)) != first


def test_tfidf_never_asks_for_more_than_there_is(folder: DatasetFolder) -> None:
    store = made(folder, "tfidf", dimension=4096)
    assert 1 <= store.manifest.modalities["text"] < len(folder.items)


def test_tfidf_without_words(folder: DatasetFolder) -> None:
    empty = {"title": "the", "brand": "", "category": "", "description": "and"}
    rewrite(folder, "items.jsonl", lambda line: line.update(empty))
    with pytest.raises(InputError, match="'shop' has no words"):
        made(folder, "tfidf")
    rewrite(folder, "items.jsonl", lambda line: line.update(title="mug"))
    with pytest.raises(InputError, match="1 usable words"):
        made(folder, "tfidf")


def test_random_is_reproducible_and_random(folder: DatasetFolder) -> None:
    first = content(made(folder, "random", dimension=64))
    (folder.path / "embeddings" / "random" / "manifest.json").unlink()
    assert content(made(folder, "random", dimension=64)) == first
    assert content(made(folder, "random", dimension=64, seed=1)) != first
    table = made(folder, "random", dimension=64).rows(folder.item_ids)
    assert table.shape == (24, 64)
    assert abs(table.mean()) < 0.1
    assert table.std() == pytest.approx(1, abs=0.1)
    rewrite(folder, "items.jsonl", lambda line: line.update(title="all the same"))
    assert content(made(folder, "random", dimension=64)) == first


def test_unknown_data_sets(folder: DatasetFolder) -> None:
    with pytest.raises(InputError, match=r"No data set 'shp'.*Did you mean 'shop'"):
        embed(folder.path.parent, "shp", "random")


def test_names_of_stores(folder: DatasetFolder) -> None:
    store = embed(folder.path.parent, folder.name, "random", name="control")
    assert store.path == folder.path / "embeddings" / "control"
    assert store.manifest.generator == "random"


@pytest.mark.parametrize("name", ["../elsewhere", "/absolute", "a/b", ".hidden", ".."])
def test_a_store_stays_in_its_folder(folder: DatasetFolder, name: str) -> None:
    with pytest.raises(InputError, match="cannot be a store's name"):
        embed(folder.path.parent, folder.name, "random", name=name)
