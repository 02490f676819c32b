"""Generators without training: untrained, sentence_transformer, clip, siglip, blip2, qwen2vl."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import write_bert, write_blip2, write_two_towers
from small_tpad import content, reopened, rewrite, run_record
from tiny_catalogue import WITHOUT_IMAGE, write_catalogue
from tiny_native import FAMILIES, write_native
from transformers import AutoModel, AutoTokenizer, Blip2ForConditionalGeneration, CLIPModel

from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.generators.blip2 import joint_pca
from recbole_tpad.generators.embed import embed, plan_embedding
from recbole_tpad.store import ItemEmbeddings

KINDS = ("untrained", "sentence_transformer", "clip", "siglip", "blip2", "qwen2vl")


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    return write_catalogue(tmp_path / "data")


def settings_of(kind: str, models: Path, dataset: DatasetFolder) -> dict[str, Any]:
    """Overrides that point a preset to a small local model, written on the first call."""
    made = models / kind
    there = made.exists()
    if kind == "qwen2vl":
        if not there:
            write_native(made, "qwen2_vl", dataset.items)
        return {"backbone": {"model": str(made), "dtype": "float32", "lora": {"rank": 2}}}
    if kind in ("clip", "siglip"):
        return {"model": str(made if there else write_two_towers(made, kind, dataset.items))}
    if kind == "blip2":
        vision = made / "vision" if there else write_blip2(made, dataset.items)
        return {"model": str(vision), "dimension": 10}
    if kind == "untrained":
        return {"model": str(made if there else write_bert(made, dataset.items))}
    if not there:
        library = pytest.importorskip("sentence_transformers")
        modules = library.sentence_transformer.modules
        bert = write_bert(models / "bert", dataset.items)
        transformer = modules.Transformer(str(bert), max_seq_length=32)
        pooling = modules.Pooling(16, pooling_mode="mean")
        library.SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(made))
    return {"model": str(made)}


def made(kind: str, models: Path, dataset: DatasetFolder, **changes: Any) -> ItemEmbeddings:
    overrides = {**settings_of(kind, models, dataset), **changes}
    return embed(dataset.path.parent, dataset.name, kind, overrides=overrides)


WIDTHS: dict[str, dict[str, int]] = {
    "untrained": {"text": 16},
    "sentence_transformer": {"text": 16},
    "clip": {"text": 12, "visual": 12},
    "siglip": {"text": 24, "visual": 24},
    "blip2": {"multimodal": 10},
    "qwen2vl": {"multimodal": 32},
}


@pytest.mark.parametrize("kind", KINDS)
def test_from_items_to_a_store(kind: str, folder: DatasetFolder, tmp_path: Path) -> None:
    store = made(kind, tmp_path, folder)
    assert store.manifest.modalities == WIDTHS[kind]
    assert store.manifest.role == "other"
    # Only BLIP-2's PCA looks at which items occur in training.
    learned = folder.split_fingerprint if kind == "blip2" else None
    assert store.manifest.split_fingerprint == learned
    table = store.rows(folder.item_ids)
    assert np.isfinite(table).all()
    assert len(np.unique(table.round(3), axis=0)) > 20  # the items are told apart
    first = content(store)
    (store.path / "run.json").unlink()
    assert content(made(kind, tmp_path, folder)) == first
    summary = run_record(store)["stages"][0]["summary"]
    if "visual" in WIDTHS[kind] or kind in ("blip2", "qwen2vl"):
        assert summary["items_without_image"] == len(WITHOUT_IMAGE)
    rewrite(folder, "keywords.jsonl", lambda line: line.update(keywords=["other"]))
    assert content(made(kind, tmp_path, reopened(folder))) == first
    rewrite(folder, "items.jsonl", lambda line: line.update(title=line["title"] + " blue"))
    assert content(made(kind, tmp_path, reopened(folder))) != first


@pytest.mark.parametrize("kind", ["clip", "blip2", "qwen2vl"])
def test_a_changed_image_changes_its_item(kind: str, folder: DatasetFolder, tmp_path: Path) -> None:
    before = made(kind, tmp_path, folder).rows(folder.item_ids)
    Image.new("RGB", (16, 16), "white").save(folder.path / "images" / "i05.png")
    after = made(kind, tmp_path, reopened(folder)).rows(folder.item_ids)
    moved = np.abs(after - before).max(axis=1)
    assert moved[5] > 0.01
    if kind != "blip2":  # its PCA is fitted on all of them
        others = [k for k in range(24) if k != 5 and f"i{k:02d}" not in WITHOUT_IMAGE]
        assert moved[others].max() < 5e-3


@pytest.mark.parametrize("kind", ["clip", "siglip", "blip2", "qwen2vl"])
def test_no_images_at_all_is_refused_before_any_work(
    kind: str, folder: DatasetFolder, tmp_path: Path
) -> None:
    overrides = settings_of(kind, tmp_path, folder)
    absent: dict[str, Any] = {"model": "/nowhere"}
    overrides |= {"backbone": overrides["backbone"] | absent} if kind == "qwen2vl" else absent
    for file in (folder.path / "images").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"'shop' has no item with an image file.*images --data"):
        embed(folder.path.parent, folder.name, kind, overrides=overrides)
    assert not (folder.path / "stages").exists()
    if kind != "blip2":
        store = made(kind, tmp_path, folder, use_images=False)
        assert "visual" not in store.manifest.modalities


@pytest.mark.parametrize("kind", KINDS)
def test_no_texts_at_all_is_refused_before_any_work(
    kind: str, folder: DatasetFolder, tmp_path: Path
) -> None:
    overrides = settings_of(kind, tmp_path, folder)
    rewrite(folder, "items.jsonl", lambda line: line.update(title="", brand=" "))
    with pytest.raises(InputError, match=r"'shop' has no item with a text \(\{title\}, \{brand"):
        embed(folder.path.parent, folder.name, kind, overrides=overrides)
    assert not (folder.path / "stages").exists()


def test_untrained_is_the_mean_of_word_vectors(folder: DatasetFolder, tmp_path: Path) -> None:
    store = made("untrained", tmp_path, folder)
    model = AutoModel.from_pretrained(tmp_path / "untrained")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "untrained")
    item = folder.items[7]
    ids = tokenizer(f"{item.title}, {item.brand}", add_special_tokens=False)["input_ids"]
    wanted = model.get_input_embeddings().weight[ids].mean(0).detach().numpy()
    np.testing.assert_allclose(store.rows([item.item_id])[0], wanted, atol=2e-3)


def test_an_item_without_a_text_gets_the_mean(folder: DatasetFolder, tmp_path: Path) -> None:
    def empty(line: dict[str, Any]) -> None:
        if line["item_id"] == "i02":
            line.update(title="", brand="")

    rewrite(folder, "items.jsonl", empty)
    changed = reopened(folder)
    for kind in ("untrained", "clip"):
        store = made(kind, tmp_path, changed)
        table = np.asarray(store.array("text"), dtype=np.float32)
        others = np.delete(table, 2, axis=0)
        np.testing.assert_allclose(table[2], others.mean(axis=0), atol=2e-3)


def test_clip_vectors_are_the_models_own(folder: DatasetFolder, tmp_path: Path) -> None:
    store = made("clip", tmp_path, folder)
    model = CLIPModel.from_pretrained(tmp_path / "clip").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "clip")
    item = folder.items[9]
    with torch.no_grad():
        ids = tokenizer(f"{item.title}, {item.brand}", return_tensors="pt")["input_ids"]
        text = model.get_text_features(ids).pooler_output[0]
    wanted = (text / text.norm()).numpy()
    row = np.asarray(store.array("text"))[9]
    np.testing.assert_allclose(row.astype(np.float32), wanted, atol=2e-3)
    visual = np.asarray(store.array("visual"), dtype=np.float32)
    shown = [k for k, i in enumerate(folder.item_ids) if i not in WITHOUT_IMAGE]
    np.testing.assert_allclose(np.linalg.norm(visual[shown], axis=1), 1, atol=2e-3)


def test_clip_reads_no_image_twice(folder: DatasetFolder, tmp_path: Path) -> None:
    first = content(made("clip", tmp_path, folder))
    (cache,) = (folder.path / "stages").glob("clip-*")
    times = {f.name: f.stat().st_mtime_ns for f in cache.iterdir()}
    (folder.path / "embeddings" / "clip" / "run.json").unlink()
    assert content(made("clip", tmp_path, folder)) == first
    assert {f.name: f.stat().st_mtime_ns for f in cache.iterdir()} == times


def test_unreadable_images_are_named(folder: DatasetFolder, tmp_path: Path) -> None:
    (folder.path / "images" / "i01.png").write_bytes(b"no image")
    for kind in ("clip", "qwen2vl"):
        (warning,) = run_record(made(kind, tmp_path, folder))["warnings"]
        assert warning.startswith("1 images cannot be read and count as absent: i01.png")
    for file in (folder.path / "images").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(InputError, match="None of the images can be read: "):
        made("clip", tmp_path, folder)


def test_blip2_before_the_pca(folder: DatasetFolder, tmp_path: Path) -> None:
    # With as many dimensions as there are, PCA keeps all distances of the standardised blocks.
    store = made("blip2", tmp_path, folder, dimension=64)
    model = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "blip2" / "vision").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "blip2" / "vision")
    decoder = model.language_model.get_decoder()
    text = []
    with torch.no_grad():
        for item in folder.items:
            ids = tokenizer(f"{item.title}, {item.brand}", add_special_tokens=False)["input_ids"]
            states = decoder(torch.tensor([[1, *ids]])).last_hidden_state[0, 1:]
            text.append(states.mean(0).numpy())
    block = np.stack(text)
    scale = np.sqrt(block.var(axis=0).sum())
    table = store.rows(folder.item_ids)
    for a, b in ((0, 1), (3, 11)):  # i03 and i11 have no image: they differ by their text alone
        found = ((table[a] - table[b]) ** 2).sum()
        wanted = (((block[a] - block[b]) / scale) ** 2).sum()
        if a == 3:
            assert found == pytest.approx(wanted, rel=0.02)
        else:
            assert found > wanted * 1.005


def test_pca_is_fitted_on_training_items_only() -> None:
    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=(30, 6)).astype(np.float32), rng.normal(size=(30, 3)) * 50]
    fit = np.arange(20)
    table, explained = joint_pca(blocks, fit, 4)
    assert table.shape == (30, 4)
    assert 0.4 < explained < 1
    moved = [b.copy() for b in blocks]
    for block in moved:
        block[20:] += 9
    again, _ = joint_pca(moved, fit, 4)
    np.testing.assert_allclose(again[:20], table[:20])
    assert np.abs(again[20:] - table[20:]).max() > 0.1
    np.testing.assert_allclose(table[:20].mean(axis=0), 0, atol=1e-5)
    with pytest.raises(InputError, match="at least two items"):
        joint_pca(blocks, fit[:1], 4)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "qwen2_vl"])
def test_any_native_backbone(family: str, folder: DatasetFolder, tmp_path: Path) -> None:
    model = write_native(tmp_path / family, family, folder.items)
    backbone = {"model": str(model), "dtype": "float32", "lora": {"rank": 2}}
    store = made("qwen2vl", tmp_path, folder, backbone=backbone, batch_size=5)
    table = store.rows(folder.item_ids)
    assert len(np.unique(table.round(3), axis=0)) == 24
    one = made("qwen2vl", tmp_path, folder, backbone=backbone, batch_size=1)
    np.testing.assert_allclose(one.rows(folder.item_ids), table, atol=0.02)


def test_other_backbones_and_models_are_refused(folder: DatasetFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"of kind 'composed'.*'native'"):
        made("qwen2vl", tmp_path, folder, backbone={"kind": "composed"})
    with pytest.raises(InputError, match="'end' is empty, so that no token"):
        made("qwen2vl", tmp_path, folder, prompt={"end": " "})
    with pytest.raises(InputError, match=r"'\{price\}' is not one of"):
        made("qwen2vl", tmp_path, folder, prompt={"item_text": "{price}"})
    bert = write_bert(tmp_path / "text-only", folder.items)
    with pytest.raises(InputError, match=r"its model_type is 'bert', not one of clip, siglip"):
        made("clip", tmp_path, folder, model=str(bert))
    vision = write_blip2(tmp_path / "no-lm", folder.items)
    config = (vision / "config.json").read_text()
    (vision / "config.json").write_text(config.replace("Blip2ForCond", "Blip2ForImageText"))
    with pytest.raises(InputError, match="BLIP-2 without a language model; give one"):
        made("blip2", tmp_path, folder, model=str(vision))
    with pytest.raises(InputError, match="use_images and use_text are both false"):
        made("clip", tmp_path, folder, use_images=False, use_text=False)


def test_blip2_with_another_language_model(folder: DatasetFolder, tmp_path: Path) -> None:
    made_by = settings_of("blip2", tmp_path, folder)
    other = str(tmp_path / "blip2" / "language_model")
    store = embed(
        folder.path.parent,
        folder.name,
        "blip2",
        overrides=made_by | {"language_model": other, "dimension": 5},
    )
    assert store.manifest.modalities == {"multimodal": 5}


def test_sentence_transformer_prompts_and_absence(
    folder: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = made("sentence_transformer", tmp_path, folder)
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(tmp_path / "sentence_transformer"), device="cpu")
    item = folder.items[4]
    wanted = model.encode([f"{item.title}, {item.brand}"], show_progress_bar=False)[0]
    np.testing.assert_allclose(plain.rows([item.item_id])[0], wanted, atol=2e-3)
    first = content(plain)
    asked = made("sentence_transformer", tmp_path, folder, prompt="classic mug: ")
    assert content(asked) != first
    with pytest.raises(InputError, match="no prompt 'passage'"):
        made("sentence_transformer", tmp_path, folder, prompt_name="passage")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"pip install 'recbole-tpad\[sentence-transformers\]'"):
        made("sentence_transformer", tmp_path, folder)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "untrained"])
def test_a_dry_run_loads_nothing(kind: str, folder: DatasetFolder, tmp_path: Path) -> None:
    overrides = settings_of(kind, tmp_path, folder)
    lines = plan_embedding(folder.path.parent, folder.name, kind, overrides=overrides)
    assert lines[0].startswith("Items: 24, 22 with an image")
    assert "GB on disk" in lines[1]
    assert not (folder.path / "stages").exists()
