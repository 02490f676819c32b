"""TPAD's whole line on a native and on a SigLIP backbone, from folders in Hugging Face format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from small_tpad import SMALL, content, kinds, run_record, stages
from tiny_catalogue import write_backbone, write_catalogue
from tiny_native import write_native
from tiny_vision import write_encoder

from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.generators.embed import embed
from recbole_tpad.generators.registry import merge
from recbole_tpad.store import ItemEmbeddings

KEYS: dict[str, Any] = {k: v for k, v in SMALL.items() if k != "backbone"}
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}


def backbone_of(kind: str, folder: Path, dataset: DatasetFolder) -> dict[str, Any]:
    if kind == "native":
        model = write_native(folder / "native", "qwen2_vl", dataset.items)
        return {"kind": "native", "model": str(model), "dtype": "float32", "lora": LORA}
    made = write_backbone(folder / "composed", dataset.items)
    shutil.rmtree(made / "vision")
    write_encoder(made / "vision", "siglip")
    return {
        "vision": str(made / "vision"),
        "visual_grid": 2,
        "language_model": str(made / "language_model"),
        "dtype": "float32",
        "lora": LORA,
    }


def run(dataset: DatasetFolder, backbone: dict[str, Any]) -> ItemEmbeddings:
    overrides = merge(KEYS, {"backbone": backbone})
    overrides = merge(overrides, {"knowledge": {"evaluate_every": 2, "patience": 1}})
    path = dataset.path
    return embed(path.parent, dataset.name, "tpad", name="made", overrides=overrides)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["native", "siglip"])
def test_the_whole_line(kind: str, tmp_path: Path) -> None:
    dataset = write_catalogue(tmp_path / "data")
    backbone = backbone_of(kind, tmp_path, dataset)
    (dataset.path / "images" / "i01.png").write_bytes(b"no image any more")
    (dataset.path / "images" / "i02.png").unlink()
    store = run(dataset, backbone)
    assert store.manifest.role == "K1"
    assert store.manifest.modalities == {"text": 32, "visual": 32}
    assert kinds(set(stages(dataset))) == ["alignment", "knowledge", "transition"]
    record = run_record(store)
    (warning,) = (w for w in record["warnings"] if "cannot be read" in w)
    assert warning.startswith("1 images cannot be read and count as absent: i01.png: ")
    knowledge = next(s for s in record["stages"] if "items_without_image" in s["summary"])
    assert knowledge["summary"]["items_without_image"] == 4
    assert any("held_out_loss" in m for m in knowledge["history"])
    # Another run with the same images reads none: their features lie beside the stages.
    wanted = content(store)
    (features,) = (dataset.path / "stages").glob("vision-*")
    before = {f.name: f.stat().st_mtime_ns for f in features.iterdir()}
    for made in stages(dataset):
        shutil.rmtree(dataset.path / "stages" / made)
    shutil.rmtree(store.path)
    assert content(run(dataset, backbone)) == wanted
    assert {f.name: f.stat().st_mtime_ns for f in features.iterdir()} == before


@pytest.mark.slow
def test_weights_of_another_base_are_refused(tmp_path: Path) -> None:
    dataset = write_catalogue(tmp_path / "data")
    backbone = backbone_of("siglip", tmp_path, dataset)
    run(dataset, backbone)
    ours = {n for n in stages(dataset) if n.startswith("knowledge-")}
    run(dataset, {**backbone, "visual_grid": 1})
    (theirs,) = (n for n in stages(dataset) if n.startswith("knowledge-") and n not in ours)
    folder = dataset.path / "stages"
    shutil.copy(folder / ours.pop() / "weights.safetensors", folder / theirs)
    shutil.rmtree(dataset.path / "embeddings")
    with pytest.raises(InputError, match="belongs to another base model or prompt"):
        run(dataset, {**backbone, "visual_grid": 1})
