"""The preset `tpad-small`, with a small random BERT in MiniLM's place, from data set to store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tpad import content, kinds, run_record, stages
from tiny_catalogue import write_catalogue

from recbole_tpad.backbones import image_table
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.generators.embed import embed
from recbole_tpad.generators.registry import merge
from recbole_tpad.store import ItemEmbeddings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "backbones"))
from small_encoder import VISION_WIDTH, WIDTH, write_image_encoder, write_text_encoder

STEPS: dict[str, Any] = {
    "knowledge": {"batch_size": 8, "loop": {"steps": 3}},
    "transition": {"pairs_per_step": 12, "loop": {"steps": 3}},
    "alignment": {"batch_size": 8, "projection": 8, "loop": {"steps": 3}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    return write_catalogue(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory, folder: DatasetFolder) -> Path:
    made = tmp_path_factory.mktemp("encoders")
    words = " ".join(f"{i.title} {i.brand}" for i in folder.items).lower().split()
    write_text_encoder(made / "text", words)
    write_image_encoder(made / "image")
    return made


def run(folder: DatasetFolder, encoders: Path, name: str, **changes: Any) -> ItemEmbeddings:
    base = merge(STEPS, {"backbone": {"text_encoder": str(encoders / "text")}})
    overrides = merge(base, changes)
    return embed(folder.path.parent, folder.name, "tpad-small", name=name, overrides=overrides)


def test_texts_only(folder: DatasetFolder, encoders: Path) -> None:
    store = run(folder, encoders, "texts")
    store.verify()
    assert store.manifest.role == "K1"
    assert store.manifest.modalities == {"text": WIDTH}
    assert kinds(set(stages(folder))) == ["alignment", "knowledge", "transition"]
    record = run_record(store)
    assert record["generation_rate"] is not None  # heads answer, and are scored as generation is
    summary = record["stages"][2]["summary"]
    assert 0 <= summary["K1_neighbours_shared_with_T_text"] <= 1
    before, finished = content(store), stages(folder)
    (store.path / "manifest.json").unlink()
    assert content(run(folder, encoders, "texts")) == before  # from the finished stages
    assert stages(folder) == finished


def test_without_training_it_is_the_frozen_encoder(folder: DatasetFolder, encoders: Path) -> None:
    frozen = run(folder, encoders, "frozen", no_knowledge=True, no_alignment=True)
    other = run(folder, encoders, "other", no_knowledge=True, no_alignment=True, seed=4)
    assert np.array_equal(frozen.array("text"), other.array("text"))
    trained = run(folder, encoders, "k0", no_alignment=True)
    assert not np.array_equal(frozen.array("text"), trained.array("text"))


def test_images_too(folder: DatasetFolder, encoders: Path) -> None:
    images = {"image_encoder": str(encoders / "image")}
    store = run(folder, encoders, "images", backbone=images)
    assert store.manifest.modalities == {"visual": VISION_WIDTH, "text": WIDTH}
    history = run_record(store)["stages"][1]["history"]
    assert {"loss_contrastive_visual", "loss_contrastive_text"} <= set(history[0])


def test_another_run_decodes_no_image_again(
    tmp_path: Path, encoders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {"image_encoder": str(encoders / "image")}
    stores = []
    for place in ("first", "fresh"):
        folder = write_catalogue(tmp_path / place)
        if place == "first":
            run(folder, encoders, "other", backbone=images, seed=5, no_alignment=True)
            assert list((folder.path / "stages").glob("vision-*/*.safetensors"))

            def refuse(path: Path) -> Any:
                raise AssertionError(f"{path} was decoded again")

            monkeypatch.setattr(image_table, "read_image", refuse)
        stores.append(run(folder, encoders, "again", backbone=images))
        monkeypatch.undo()
    first, fresh = (np.asarray(store.array("visual")) for store in stores)
    np.testing.assert_array_equal(first, fresh)
    assert content(stores[0]) == content(stores[1])


def test_features_of_another_image_encoder_are_not_taken(tmp_path: Path, encoders: Path) -> None:
    folder = write_catalogue(tmp_path)
    plain = {"no_knowledge": True, "no_alignment": True}
    image = {"image_encoder": str(encoders / "image")}
    before = run(folder, encoders, "one", backbone=image, **plain)
    write_image_encoder(tmp_path / "other", seed=3)
    other = {"image_encoder": str(tmp_path / "other")}
    after = run(folder, encoders, "two", backbone=other, **plain)
    assert len(list((folder.path / "stages").glob("vision-*"))) == 2
    assert not np.array_equal(before.array("visual"), after.array("visual"))


def test_a_wrong_folder_is_named(folder: DatasetFolder, encoders: Path) -> None:
    with pytest.raises(InputError, match="neither a local folder"):
        run(folder, encoders, "x", backbone={"text_encoder": str(encoders / "nowhere")})
