"""NoteLLM-2 from a data set folder to a store, on every kind of backbone it takes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_tpad import content, kinds, reopened, resplit, rewrite, run_record, stages
from tiny_catalogue import TINY, write_backbone, write_catalogue
from tiny_native import write_native

from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.generators.base import RunRecord
from recbole_tpad.generators.embed import embed
from recbole_tpad.generators.notellm2 import NoteLlm2Generator
from recbole_tpad.generators.registry import make_generator, merge
from recbole_tpad.store import ItemEmbeddings

LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
STAGE = {"pairs_per_step": 12, "dimension": 8, "chunk": 5, "loop": {"steps": 3}}


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    return write_catalogue(tmp_path / "data")


def overrides_of(kind: str, models: Path, dataset: DatasetFolder) -> dict[str, Any]:
    backbone: dict[str, Any] = {"kind": kind, "dtype": "float32", "lora": LORA}
    if kind == "native":
        made = models / "native"
        if not made.exists():
            write_native(made, "qwen2_vl", dataset.items)
        backbone["model"] = str(made)
    if kind == "composed":
        made = models / "composed"
        if not made.exists():
            write_backbone(made, dataset.items)
        backbone |= {
            "vision": str(made / "vision"),
            "language_model": str(made / "language_model"),
        }
    if kind == "tiny":
        backbone = {"tiny": TINY}
    return {"backbone": backbone, "compression": STAGE}


def made(
    kind: str, models: Path, dataset: DatasetFolder, changes: dict[str, Any] | None = None
) -> ItemEmbeddings:
    preset = "notellm2-tiny" if kind == "tiny" else "notellm2"
    overrides = merge(overrides_of(kind, models, dataset), changes or {})
    return embed(dataset.path.parent, dataset.name, preset, name="note", overrides=overrides)


@pytest.mark.parametrize("kind", ["composed", "native", "tiny"])
def test_from_items_to_a_store(kind: str, folder: DatasetFolder, tmp_path: Path) -> None:
    store = made(kind, tmp_path, folder)
    assert store.manifest.modalities == {"multimodal": 8}
    assert store.manifest.role == "other"
    assert store.manifest.split_fingerprint == folder.split_fingerprint
    assert kinds(set(stages(folder))) == ["notellm2"]
    table = store.rows(folder.item_ids)
    assert len(np.unique(table.round(3), axis=0)) > 20
    stage, encoding = run_record(store)["stages"]
    assert [stage["name"], encoding["name"]] == ["compression", "encoding"]
    wanted = {"loss_contrastive_multimodal", "loss_contrastive_visual", "norm_visual"}
    assert len(stage["history"]) == 3
    assert wanted <= set(stage["history"][0])
    # Encoding again from the kept stage gives the same bytes.
    first, times = content(store), stages(folder)
    (store.path / "run.json").unlink()
    assert content(made(kind, tmp_path, folder)) == first
    assert stages(folder) == times


def test_what_it_depends_on(folder: DatasetFolder, tmp_path: Path) -> None:
    first = content(made("composed", tmp_path, folder))
    rewrite(folder, "keywords.jsonl", lambda line: line.update(keywords=["other"]))
    same = reopened(folder)
    assert content(made("composed", tmp_path, same)) == first
    assert content(made("composed", tmp_path, same, {"export": ["visual"]})) != first
    assert len(stages(folder)) == 1  # the export is no part of training
    # Test targets turned round: the same. Other training sessions: another model.
    turned = resplit(folder, turn=3)
    before = make_generator("notellm2", overrides_of("composed", tmp_path, turned))
    assert before.fingerprint(turned) == before.fingerprint(resplit(folder))
    assert before.fingerprint(resplit(folder, seed=5)) != before.fingerprint(turned)


def test_the_visual_state_knows_nothing_of_the_text(folder: DatasetFolder, tmp_path: Path) -> None:
    generator = make_generator("notellm2", overrides_of("composed", tmp_path, folder))
    assert isinstance(generator, NoteLlm2Generator)

    def states(dataset: DatasetFolder) -> dict[str, torch.Tensor]:
        work = tmp_path / "work"
        prints = generator.fingerprint(dataset)
        trained = generator.restore(dataset, work, RunRecord(), prints)
        rows = torch.tensor([0, 5])
        return trained.backbone.encode(trained.inputs.batch(rows)).summaries

    before = states(folder)
    shutil.rmtree(tmp_path / "work")
    rewrite(folder, "items.jsonl", lambda line: line.update(title="plain jug"))
    generator = make_generator(
        "notellm2",
        merge(overrides_of("composed", tmp_path, folder), {"compression": {"loop": {"steps": 1}}}),
    )
    assert isinstance(generator, NoteLlm2Generator)
    # One step of another text moves little; untrained towers agree exactly but for that step.
    after = states(reopened(folder))
    near = (before["visual"] - after["visual"]).abs().max()
    far = (before["text"] - after["text"]).abs().max()
    assert near < 0.05 * far


def test_restoring_without_training_is_refused(folder: DatasetFolder, tmp_path: Path) -> None:
    generator = make_generator("notellm2", overrides_of("composed", tmp_path, folder))
    assert isinstance(generator, NoteLlm2Generator)
    prints = generator.fingerprint(folder)
    with pytest.raises(InputError, match="no trained NoteLLM-2 for data set 'shop'"):
        generator.restore(folder, tmp_path / "work", RunRecord(), prints, train=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {"kind": "encoder"}}, "has no places for <IMG_EMB>"),
        ({"backbone": {"readout": "at"}}, "set backbone.readout to 'before'"),
        ({"export": ["text"]}, r"export is a list of multimodal, visual, not \['text'\]"),
        ({"compression": {"orders": [0]}}, "orders must be positive"),
    ],
)
def test_refused_before_any_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_generator("notellm2", changes)


def test_no_images_or_no_texts(folder: DatasetFolder, tmp_path: Path) -> None:
    overrides = overrides_of("composed", tmp_path, folder)
    overrides["backbone"]["vision"] = "/nowhere"
    generator = make_generator("notellm2", overrides)
    empty = {"title": "", "brand": "", "description": ""}
    rewrite(folder, "items.jsonl", lambda line: line.update(empty))
    with pytest.raises(InputError, match="no item with a text"):
        generator.fingerprint(reopened(folder))
    for file in (folder.path / "images").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="no item with an image file"):
        generator.fingerprint(reopened(folder))
