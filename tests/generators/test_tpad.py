"""TPAD from data set folder to store: caching, controls, provenance, no leak."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_tpad import (
    SMALL,
    content,
    kinds,
    reopened,
    resplit,
    rewrite,
    run_record,
    run_tpad,
    stages,
)
from tiny_catalogue import WITHOUT_IMAGE, draw, write_backbone, write_catalogue
from tiny_data import write_data_set

from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.generators.embed import read_run
from recbole_tpad.generators.registry import make_generator, merge
from recbole_tpad.stages.fresh_probes import neighbour_overlap
from recbole_tpad.store import ItemEmbeddings


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetFolder, ItemEmbeddings]:
    folder = write_catalogue(tmp_path_factory.mktemp("finished"))
    return folder, run_tpad(folder)


@pytest.fixture
def folder(finished: tuple[DatasetFolder, ItemEmbeddings], tmp_path: Path) -> DatasetFolder:
    """A copy of the finished run's data set with its stages and store."""
    source, _ = finished
    shutil.copytree(source.path, tmp_path / source.name)
    return DatasetFolder.open(tmp_path, source.name)


@pytest.fixture
def fresh(tmp_path: Path) -> DatasetFolder:
    return write_catalogue(tmp_path)


def fingerprints(folder: DatasetFolder, changes: dict[str, Any] | None = None) -> dict[str, str]:
    generator = make_generator("tpad-tiny", merge(SMALL, changes or {}))
    return generator.fingerprint(reopened(folder))


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    found = {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)}
    assert ("tower" in found) == bool(found & {"knowledge", "alignment"})  # the last one's name
    return found - {"tower"}


def test_the_store(finished: tuple[DatasetFolder, ItemEmbeddings]) -> None:
    folder, store = finished
    store.verify()
    assert store.item_ids == folder.item_ids
    assert store.manifest.role == "K1"
    assert store.manifest.generator == "tpad-tiny"
    assert store.manifest.split_fingerprint == folder.split_fingerprint
    assert store.manifest.modalities == {"visual": 32, "text": 32}
    assert store.manifest.inputs == fingerprints(folder)
    for modality in ("visual", "text"):
        table = store.array(modality).astype(np.float32)
        assert len(np.unique(table.round(4), axis=0)) >= len(table) - len(WITHOUT_IMAGE) + 1


def test_the_record_of_the_run(finished: tuple[DatasetFolder, ItemEmbeddings]) -> None:
    _, store = finished
    run = run_record(store)
    assert run == read_run(store)
    names = [s["name"] for s in run["stages"]]
    assert names == ["knowledge", "transition", "alignment", "encoding"]
    assert all(len(s["history"]) == 3 for s in run["stages"][:3])
    assert {"recall", "chance", "shuffled_images"} <= set(run["generation_rate"])
    # Three steps teach nothing, and the record says so.
    assert any("Generation Rate" in w for w in run["warnings"])
    shared = run["stages"][2]["summary"]
    assert all(0 <= shared[f"K1_neighbours_shared_with_T_{m}"] <= 1 for m in ("visual", "text"))


def test_unchanged_inputs_run_nothing(folder: DatasetFolder) -> None:
    before = stages(folder)
    written = (folder.path / "embeddings" / "small" / "manifest.json").stat().st_mtime_ns
    store = run_tpad(folder)
    assert stages(folder) == before
    assert (store.path / "manifest.json").stat().st_mtime_ns == written
    assert kinds(set(before)) == ["alignment", "knowledge", "transition"]


@pytest.mark.parametrize("lost", ["manifest.json", "visual.00000.npy", "run.json", ""])
def test_a_lost_store_is_encoded_again_from_the_stages(folder: DatasetFolder, lost: str) -> None:
    before, path = stages(folder), folder.path / "embeddings" / "small"
    wanted = {f.name: f.read_bytes() for f in path.iterdir() if f.name != "run.json"}
    if lost:
        (path / lost).unlink()
    else:
        shutil.rmtree(path)
    store = run_tpad(folder)
    assert content(store) == wanted
    assert stages(folder) == before
    assert [s["name"] for s in run_record(store)["stages"]][-1] == "encoding"


def test_a_damaged_store_is_made_again(folder: DatasetFolder) -> None:
    file = folder.path / "embeddings" / "small" / "text.00000.npy"
    wanted = file.read_bytes()
    file.write_bytes(wanted[:-1] + bytes([wanted[-1] ^ 1]))
    run_tpad(folder)
    assert file.read_bytes() == wanted


def test_a_new_transition_setting_keeps_knowledge(folder: DatasetFolder) -> None:
    before = stages(folder)
    run_tpad(folder, {"transition": {"log_scale": 1.5}})
    after = stages(folder)
    assert all(after[n] == t for n, t in before.items())
    assert kinds(set(after) - set(before)) == ["alignment", "transition"]


def test_a_new_alignment_setting_keeps_both(folder: DatasetFolder) -> None:
    before = stages(folder)
    wanted = content(run_tpad(folder))
    store = run_tpad(folder, {"alignment": {"gamma_lower": 0.2}})
    assert kinds(set(stages(folder)) - set(before)) == ["alignment"]
    assert content(store) != wanted
    # Back to the first setting: every stage is there, and so is the first result.
    again = stages(folder)
    assert content(run_tpad(folder)) == wanted
    assert stages(folder) == again


def test_a_new_keyword_trains_knowledge_again(folder: DatasetFolder) -> None:
    before = stages(folder)

    def change(line: dict[str, Any]) -> None:
        if line["item_id"] == "i05":
            line["keywords"] = ["striped"]

    rewrite(folder, "keywords.jsonl", change)
    run_tpad(folder)
    assert kinds(set(stages(folder)) - set(before)) == ["alignment", "knowledge", "transition"]


def test_what_each_setting_changes(fresh: DatasetFolder) -> None:
    before = fingerprints(fresh)
    later = {"knowledge", "transition", "alignment"}
    loop = {"loop": {"checkpoint_seconds": 1.0}}
    for changes, expected in (
        ({"knowledge": loop, "transition": loop, "alignment": loop}, set()),
        ({"backbone": {"gist_mask": False}}, later | {"backbone"}),
        ({"backbone": {"prompt": {"before_text": " Words:"}}}, later | {"backbone"}),
        ({"seed": 1}, later | {"backbone"}),
        ({"use_images": False}, later | {"items"}),
        ({"use_text": False}, later | {"items"}),
        ({"no_alignment": True}, {"split", "transition", "alignment"}),
        ({"no_transition": True}, {"split", "transition", "alignment"}),
        ({"no_knowledge": True}, later),
    ):
        assert changed(before, fingerprints(fresh, changes)) == expected, changes


def test_what_each_file_changes(fresh: DatasetFolder) -> None:
    before = fingerprints(fresh)
    later = {"knowledge", "transition", "alignment"}
    draw(fresh.path / "images" / "i00.png", (1, 2, 3), 0)
    painted = fingerprints(fresh)
    assert changed(before, painted) == later | {"items"}
    rewrite(fresh, "items.jsonl", lambda line: line.update(title=line["title"] + "!"))
    retitled = fingerprints(fresh)
    assert changed(painted, retitled) == later | {"items"}
    resplit(fresh, seed=8)
    assert changed(retitled, fingerprints(fresh)) == {"split", "transition", "alignment"}


def test_other_weights_at_the_same_path_are_another_backbone(
    fresh: DatasetFolder, tmp_path: Path
) -> None:
    made = write_backbone(tmp_path / "backbone", fresh.items)
    changes = {
        "backbone": {
            "kind": "composed",
            "vision": str(made / "vision"),
            "language_model": str(made / "language_model"),
        }
    }
    before = fingerprints(fresh, changes)
    assert fingerprints(fresh, changes) == before
    weights = made / "language_model" / "model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values())).add_(1)
    save_file(tensors, weights, metadata={"format": "pt"})
    later = {"backbone", "knowledge", "transition", "alignment"}
    assert changed(before, fingerprints(fresh, changes)) == later


def test_without_keywords_there_is_no_generation_rate(fresh: DatasetFolder) -> None:
    rewrite(fresh, "keywords.jsonl", lambda line: line.update(keywords=[]))
    run = read_run(run_tpad(reopened(fresh)))
    assert run["generation_rate"] is None
    assert any("No Generation Rate" in warning for warning in run["warnings"])


def test_no_leak_from_valid_and_test(fresh: DatasetFolder) -> None:
    before = fingerprints(fresh)
    files = {p: (fresh.path / f"shop.{p}.inter").read_bytes() for p in ("train", "valid", "test")}
    resplit(fresh, turn=2)
    after = {p: (fresh.path / f"shop.{p}.inter").read_bytes() for p in files}
    assert [p for p in files if files[p] != after[p]] == ["valid", "test"]
    assert fingerprints(fresh) == before
    for name in ("tfidf", "random"):
        generator = make_generator(name)
        assert generator.fingerprint(fresh) == generator.fingerprint(reopened(fresh))


def test_held_out_targets_change_no_vector(folder: DatasetFolder) -> None:
    wanted = content(run_tpad(folder))
    for made in ("stages", "embeddings"):
        shutil.rmtree(folder.path / made)
    assert content(run_tpad(resplit(folder, turn=3))) == wanted


def test_two_runs_give_equal_bytes(
    finished: tuple[DatasetFolder, ItemEmbeddings], fresh: DatasetFolder
) -> None:
    torch.manual_seed(12345)
    np.random.default_rng(1)
    assert content(run_tpad(fresh)) == content(finished[1])


def test_without_alignment_sessions_have_no_influence(fresh: DatasetFolder) -> None:
    store = run_tpad(fresh, {"no_alignment": True})
    assert store.manifest.role == "K0"
    assert store.manifest.split_fingerprint is None
    assert kinds(set(stages(fresh))) == ["knowledge"]
    wanted = content(store)
    other = resplit(fresh, seed=5)
    shutil.rmtree(other.path / "stages")
    shutil.rmtree(other.path / "embeddings")
    assert content(run_tpad(other, {"no_alignment": True})) == wanted


@pytest.mark.slow
def test_without_transition_k0_is_the_teacher_and_sessions_do_not_matter(
    fresh: DatasetFolder,
) -> None:
    changes = {"no_transition": True}
    store = run_tpad(fresh, changes)
    assert store.manifest.role == "K1"
    assert store.manifest.split_fingerprint is None
    assert kinds(set(stages(fresh))) == ["alignment", "knowledge"]
    summary = run_record(store)["stages"][1]["summary"]
    assert summary["K0_neighbours_shared_with_T_text"] == 1
    wanted = content(store)
    other = resplit(fresh, seed=5)
    assert again_without(other, changes) == wanted


@pytest.mark.slow
def test_without_knowledge_stage_1_is_skipped(fresh: DatasetFolder) -> None:
    store = run_tpad(fresh, {"no_knowledge": True})
    assert kinds(set(stages(fresh))) == ["alignment", "transition"]
    run = run_record(store)
    assert [s["name"] for s in run["stages"]] == ["transition", "alignment", "encoding"]
    assert run["generation_rate"] is None
    aligned = content(store)
    untrained = run_tpad(reopened(fresh), {"no_knowledge": True, "no_alignment": True})
    assert untrained.manifest.role == "K0"
    assert content(untrained)["text.00000.npy"] != aligned["text.00000.npy"]


@pytest.mark.parametrize("key", ["gamma_upper", "gamma_lower"])
def test_a_gamma_of_zero_takes_its_term_out(folder: DatasetFolder, key: str) -> None:
    store = run_tpad(folder, {"alignment": {key: 0.0}})
    for m in run_record(store)["stages"][2]["history"]:
        terms = m["loss_generation"]
        terms += 0 if key == "gamma_upper" else 0.1 * m["mi_upper"] + m["loss_labels"]
        terms += 0 if key == "gamma_lower" else m["divergence"]
        assert m["loss"] == pytest.approx(terms, abs=1e-4)


def test_what_the_alignment_is_judged_by(
    finished: tuple[DatasetFolder, ItemEmbeddings],
) -> None:
    folder, store = finished
    alignment = run_record(store)["stages"][2]
    summary = alignment["summary"]
    for m in ("visual", "text"):
        assert summary[f"variance_high_{m}"] > 0
        assert summary[f"variance_low_{m}"] > 0
        assert 1 < summary[f"rank_high_{m}"] <= 8
        assert {f"low_predicts_T_{m}", f"q_gain_held_out_{m}"} <= set(summary)
    for states in ("K0", "K1", "w_low"):
        assert 0 <= summary[f"{states}_category_accuracy"] <= 1
    assert alignment["seconds"] > 0
    expected = {"mi_upper", "mi_lower", "q_gain", "norm_text", "gradient_share_visual"}
    assert expected <= set(alignment["history"][-1])
    logs = next((folder.path / "stages" / "logs").glob("alignment-*"))
    lines = [json.loads(line) for line in (logs / "steps.jsonl").read_text().splitlines()]
    assert lines == alignment["history"]
    assert list(logs.glob("events.out.tfevents.*"))


def again_without(folder: DatasetFolder, changes: dict[str, Any]) -> dict[str, bytes]:
    for made in ("stages", "embeddings"):
        shutil.rmtree(folder.path / made)
    return content(run_tpad(reopened(folder), changes))


@pytest.mark.slow
def test_without_images_no_picture_matters(fresh: DatasetFolder) -> None:
    changes = {"use_images": False}
    wanted = content(run_tpad(fresh, changes))
    for k, item in enumerate(fresh.items):
        if item.image:
            draw(item.image, (10 * k, 255 - 10 * k, 90), 100 + k)
    assert again_without(fresh, changes) == wanted
    (fresh.path / "images.jsonl").unlink()
    assert again_without(fresh, changes) == wanted


@pytest.mark.slow
def test_without_text_no_word_matters(fresh: DatasetFolder) -> None:
    changes = {"use_text": False}
    wanted = content(run_tpad(fresh, changes))

    def change(line: dict[str, Any]) -> None:
        line.update(title=f"new {line['item_id']}", brand="none", description="unlike before")

    rewrite(fresh, "items.jsonl", change)
    assert again_without(fresh, changes) == wanted


def test_images_and_texts_matter_otherwise(fresh: DatasetFolder) -> None:
    wanted = content(run_tpad(fresh, {"no_alignment": True}))
    draw(fresh.path / "images" / "i00.png", (1, 2, 3), 0)
    after = content(run_tpad(reopened(fresh), {"no_alignment": True}))
    assert after["visual.00000.npy"] != wanted["visual.00000.npy"]


def test_a_changed_training_part_is_refused(fresh: DatasetFolder) -> None:
    file = fresh.path / "shop.train.inter"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(InputError, match=r"shop\.train\.inter does not match split\.json"):
        run_tpad(reopened(fresh))
    assert not (fresh.path / "stages").exists()


def test_sessions_without_a_transition_are_refused_before_anything_trains(
    fresh: DatasetFolder,
) -> None:
    train = [(f"s{k}", [f"i{k:02d}"] * 3) for k in range(4)]
    other = [("v", ["i00", "i01"])]
    write_data_set(fresh.path.parent, fresh.name, train, other, other)
    with pytest.raises(InputError, match="no pair of different items"):
        run_tpad(reopened(fresh))
    assert not stages(fresh)
    # A data set that is embedded without sessions is none of their business.
    assert run_tpad(reopened(fresh), {"no_transition": True}).manifest.role == "K1"


def test_nothing_but_finished_work_stays(finished: tuple[DatasetFolder, ItemEmbeddings]) -> None:
    folder, _ = finished
    left = {p.name.partition("-")[0] for p in (folder.path / "stages").iterdir()}
    assert left == {"tiny", "knowledge", "transition", "alignment", "tower", "logs"}
    assert not list((folder.path / "stages").glob("*.checkpoint"))
    assert [p.name for p in (folder.path / "embeddings").iterdir()] == ["small"]


def test_stage_records_are_json(finished: tuple[DatasetFolder, ItemEmbeddings]) -> None:
    for file in (finished[0].path / "stages").glob("*/stage.json"):
        record = json.loads(file.read_text())
        assert record["name"] == file.parent.name.partition("-")[0]
        assert record["seconds"] > 0


def test_neighbour_overlap() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(40, 6, generator=generator) for _ in range(2))
    assert neighbour_overlap({"a": one}, {"a": one * 3 + 2}) == {"a": 1.0}
    assert neighbour_overlap({"a": one}, {"a": other}, k=10)["a"] == pytest.approx(10 / 39, abs=0.1)
    assert neighbour_overlap({"a": one[:3]}, {"a": other[:3]}) == {"a": 1.0}
