"""`embed --update`: only what changed is encoded, the rest stays bit for bit, drift is told."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tpad import NAME, SMALL, content, reopened, resplit, run_record, run_tpad, stages
from tiny_catalogue import COLOURS, draw, read_lines, write_catalogue, write_lines

from recbole_tpad.cli import main
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.generators import tpad_tower
from recbole_tpad.generators.drift import Baseline
from recbole_tpad.generators.embed import embed
from recbole_tpad.generators.registry import merge
from recbole_tpad.generators.update import Update, update
from recbole_tpad.store import ItemEmbeddings, find_store, open_store, verify_embeddings

CLOSE: dict[str, Any] = {"rtol": 2e-3, "atol": 1e-3}
Line = dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    folder = write_catalogue(tmp_path_factory.mktemp("trained"))
    run_tpad(folder, {"encoding": {"shard_items": 7}})
    return folder


@pytest.fixture
def folder(trained: DatasetFolder, tmp_path: Path) -> DatasetFolder:
    shutil.copytree(trained.path, tmp_path / NAME)
    return DatasetFolder.open(tmp_path, NAME)


def edit(folder: DatasetFolder, change: Callable[[list[Line]], list[Line]]) -> None:
    lines = change(read_lines(folder.path / "items.jsonl"))
    write_lines(folder.path / "items.jsonl", sorted(lines, key=lambda line: line["item_id"]))


def add(folder: DatasetFolder, item_id: str, title: str, colour: str | None = None) -> None:
    def change(lines: list[Line]) -> list[Line]:
        return [*lines, {**lines[0], "item_id": item_id, "title": title}]

    edit(folder, change)
    if colour:
        draw(folder.path / "images" / f"{item_id}.png", COLOURS[colour], 99)
        images = read_lines(folder.path / "images.jsonl")
        file = f"images/{item_id}.png"
        images.append({"item_id": item_id, "file": file, "sha256": "", "status": "ok"})
        write_lines(folder.path / "images.jsonl", images)


def retitle(folder: DatasetFolder, item_id: str, title: str) -> None:
    edit(
        folder,
        lambda lines: [x | ({"title": title} if x["item_id"] == item_id else {}) for x in lines],
    )


def remove(folder: DatasetFolder, item_id: str) -> None:
    edit(folder, lambda lines: [x for x in lines if x["item_id"] != item_id])


def run(folder: DatasetFolder) -> Update:
    return update(folder.path.parent, NAME, "small")


def fresh_encode(folder: DatasetFolder, scratch: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every item by the store's tower, from nothing."""
    key = find_store(folder.path, "small").manifest.inputs["tower"]
    tower = tpad_tower.read_tower(folder.path / "stages", key)
    backbone = tpad_tower.load_for_encoding(folder.path / "stages", tower, torch.device("cpu"))
    items = tower.as_read(reopened(folder).items)
    arguments = (items, tower.content_hashes(items), scratch, torch.device("cpu"))
    shards, _ = tpad_tower.encode(backbone, tower, *arguments)
    return {name: np.asarray(rows) for name, rows in shards.arrays.items()}


def test_adding_changing_and_removing(folder: DatasetFolder, tmp_path: Path) -> None:
    before = find_store(folder.path, "small")
    old = {m: np.asarray(before.array(m)) for m in before.manifest.modalities}
    finished = stages(folder)
    add(folder, "i05b", "rustic lamp", "green")
    add(folder, "zz", "modern mug")
    retitle(folder, "i07", "classic bowl of quartz")
    remove(folder, "i20")
    draw(folder.path / "images" / "i09.png", (9, 200, 200), 5)
    done = run(folder)
    assert str(done.changes) == "2 new, 2 changed, 1 removed, 21 kept"
    assert stages(folder) == finished  # nothing was trained
    store = open_store(done.store.path)
    assert store.item_ids == reopened(folder).item_ids
    assert verify_embeddings(store, reopened(folder))
    for m in old:
        now = np.asarray(store.array(m))
        for place, item_id in enumerate(store.item_ids):
            row = before.item_ids.index(item_id) if item_id in before.item_ids else None
            if row is not None and item_id not in ("i07", "i09"):
                assert (now[place] == old[m][row]).all()
    for item_id, m in (("i07", "text"), ("i09", "visual")):
        row = before.item_ids.index(item_id)
        assert (store.rows([item_id], [m]) != old[m][row]).any()
    for m, rows in fresh_encode(folder, tmp_path / "scratch").items():
        np.testing.assert_allclose(np.asarray(store.array(m)), rows, **CLOSE)
    entry = run_record(store)["updates"][-1]
    assert (entry["new"], entry["changed"], entry["removed"]) == (2, 2, 1)
    assert entry["encoding"]["summary"]["items"] == 4
    assert {p.name.partition("-")[0] for p in (folder.path / "stages").iterdir()} >= {"tower"}
    assert not list((folder.path / "stages").glob("encoding-*"))


def test_an_unchanged_catalogue_changes_no_byte(folder: DatasetFolder) -> None:
    store = find_store(folder.path, "small")
    times = {p.name: p.stat().st_mtime_ns for p in store.path.iterdir()}
    assert run(folder).changes.nothing
    assert {p.name: p.stat().st_mtime_ns for p in store.path.iterdir()} == times
    # What encoding does not read is no change either.
    edit(folder, lambda lines: [x | {"category": "other", "price": 1.0} for x in lines])
    (folder.path / "keywords.jsonl").unlink()
    assert run(folder).changes.nothing


def test_removing_alone_loads_no_model(
    folder: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tpad_tower, "load_for_encoding", None)
    remove(folder, "i03")
    assert len(run(folder).store.item_ids) == 23


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 3))
def test_any_sequence_of_changes_equals_a_fresh_encoding(
    trained: DatasetFolder, tmp_path_factory: pytest.TempPathFactory, seed: int, steps: int
) -> None:
    place = tmp_path_factory.mktemp("sequence")
    shutil.copytree(trained.path, place / NAME)
    folder, rng = DatasetFolder.open(place, NAME), random.Random(seed)
    for step in range(steps):
        for number in range(rng.randint(1, 6)):
            ids = [line["item_id"] for line in read_lines(folder.path / "items.jsonl")]
            word = rng.choice(["rustic", "modern", "steel", "quartz"])
            match rng.choice(["add", "picture", "change", "repaint", "remove"]):
                case "add":
                    add(folder, f"n{step}{number}", f"{word} jug {rng.random()}")
                case "picture":
                    add(folder, f"p{step}{number}", f"{word} jug", rng.choice(list(COLOURS)))
                case "change":
                    retitle(folder, rng.choice(ids), f"{word} plate {rng.random()}")
                case "repaint":
                    file = folder.path / "images" / f"{rng.choice(ids)}.png"
                    if file.is_file():
                        draw(file, COLOURS[rng.choice(list(COLOURS))], rng.randint(0, 99))
                case "remove" if len(ids) > 5:
                    remove(folder, rng.choice(ids))
        run(reopened(folder))
    store = find_store(folder.path, "small")
    store.verify()
    assert store.item_ids == reopened(folder).item_ids
    for m, rows in fresh_encode(folder, place / "scratch").items():
        np.testing.assert_allclose(np.asarray(store.array(m)), rows, **CLOSE)


def test_a_killed_update_leaves_the_old_store_and_goes_on(
    folder: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its first shard and just before the store is replaced."""
    from recbole_tpad.generators import update as module
    from recbole_tpad.store.shards import ShardFolder

    wanted = content(find_store(folder.path, "small"))
    for k in range(9):
        add(folder, f"n{k}", f"modern vase {k}")
    write, written = ShardFolder.write, []

    class Killed(BaseException):
        pass

    def one(self: ShardFolder, number: int, rows: Any) -> None:
        if written:
            raise Killed
        written.append(number)
        write(self, number, rows)

    def never(*_: Any, **__: Any) -> ItemEmbeddings:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ShardFolder, "write", one)
        with pytest.raises(Killed):
            run(reopened(folder))
    assert content(find_store(folder.path, "small")) == wanted
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_store", never)
        with pytest.raises(Killed):
            run(reopened(folder))
    assert content(find_store(folder.path, "small")) == wanted
    done = run(reopened(folder))
    assert str(done.changes) == "9 new, 0 changed, 0 removed, 24 kept"
    assert run_record(done.store)["updates"][-1]["encoding"]["summary"]["items"] == 0
    assert not list((folder.path / "stages").glob("encoding-*"))


def test_what_cannot_be_updated_is_refused(folder: DatasetFolder, tmp_path: Path) -> None:
    embed(folder.path.parent, NAME, "random")
    with pytest.raises(InputError, match="'random', which has no tower"):
        update(folder.path.parent, NAME, "random")
    absent = r"No store 'smal'.*Did you mean 'small'.*without --update"
    with pytest.raises(InputError, match=absent):
        update(folder.path.parent, NAME, "smal")
    shutil.copytree(folder.path, tmp_path / "other" / "bazaar")
    (tmp_path / "other" / "bazaar" / "dataset.json").write_text('{"format": 1, "name": "bazaar"}')
    for file in (tmp_path / "other" / "bazaar").glob("shop.*.inter"):
        file.rename(file.with_name(file.name.replace("shop", "bazaar")))
    with pytest.raises(InputError, match="made for data set 'shop', not for 'bazaar'"):
        update(tmp_path / "other", "bazaar", "small")
    file = find_store(folder.path, "small").path / "text.00001.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    remove(folder, "i01")
    with pytest.raises(InputError, match=r"text\.00001\.npy is not what its manifest says"):
        run(folder)
    (tower,) = (folder.path / "stages").glob("tower-*")
    shutil.rmtree(tower)
    with pytest.raises(InputError, match="the tower that made this store was deleted"):
        run(folder)


def test_settings_cannot_change_with_an_update(
    folder: DatasetFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["embed", "--dataset", NAME, "--data_path", str(folder.path.parent), "--update"]
    command += ["--generator", "tpad-tiny", "--name", "small"]
    assert main([*command, "--knowledge.loop.steps=9"]) == 2
    assert "--knowledge.loop.steps would change them" in capsys.readouterr().err
    add(folder, "n", "modern vase", "red")
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "Items: 1 new, 0 changed, 0 removed, 24 kept" in said
    assert "Encoding: 1 items, " in said
    assert "Disk: " in said
    assert "n" not in find_store(folder.path, "small").item_ids
    assert main(command) == 0
    assert "Items: 1 new, 0 changed" in capsys.readouterr().out


def test_a_new_training_part_is_told(folder: DatasetFolder) -> None:
    fingerprint = find_store(folder.path, "small").manifest.split_fingerprint
    assert not run(folder).foreign_split
    done = run(resplit(folder, seed=5))
    assert done.foreign_split
    assert any("a run on the new part will refuse it" in line for line in done.lines())
    assert done.store.manifest.split_fingerprint == fingerprint


def test_training_again_follows_an_update(folder: DatasetFolder) -> None:
    add(folder, "n", "modern vase", "red")
    updated = run(folder).store.manifest
    again = run_tpad(reopened(folder), {"encoding": {"shard_items": 7}})
    assert again.manifest.inputs["tower"] != updated.inputs["tower"]
    assert again.manifest.inputs["items"] == updated.inputs["items"]


def test_an_encoder_backbone_is_updated_too(tmp_path: Path) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "backbones"))
    from small_encoder import write_image_encoder, write_text_encoder

    folder = write_catalogue(tmp_path)
    words = " ".join(f"{i.title} {i.brand}" for i in folder.items).lower().split()
    write_text_encoder(tmp_path / "text", words)
    write_image_encoder(tmp_path / "image")
    parts = {"text_encoder": str(tmp_path / "text"), "image_encoder": str(tmp_path / "image")}
    steps = {k: SMALL[k] for k in ("knowledge", "transition", "alignment")}
    overrides = merge(steps, {"backbone": parts, "knowledge": {"holdout": 0.1}})
    embed(tmp_path, NAME, "tpad-small", name="small", overrides=overrides)
    add(folder, "i05b", "rustic lamp", "green")
    edit(folder, lambda lines: [x | {"category": f"c{k}"} for k, x in enumerate(lines)])
    done = run(reopened(folder))  # with other answers than the towers' heads know
    assert str(done.changes) == "1 new, 0 changed, 0 removed, 24 kept"
    for m, rows in fresh_encode(folder, tmp_path / "scratch").items():
        np.testing.assert_allclose(np.asarray(done.store.array(m)), rows, **CLOSE)


# -- drift ---------------------------------------------------------------------------------------


def test_drift_is_none_without_new_items(folder: DatasetFolder) -> None:
    drift = run(folder).drift
    assert drift is not None
    assert (drift.new_items, drift.reasons()) == (0, [])
    remove(folder, "i03")
    drift = run(reopened(folder)).drift
    assert drift is not None
    assert drift.new_items == 0


def test_unseen_words_and_categories_are_counted(folder: DatasetFolder) -> None:
    add(folder, "n0", "quartz zither", "red")  # brand and description are another item's

    def foreign(lines: list[Line]) -> list[Line]:
        return [x | ({"category": "music"} if x["item_id"] == "n0" else {}) for x in lines]

    edit(folder, foreign)
    add(folder, "n1", "rustic mug", "red")
    done = run(reopened(folder))
    drift, line = done.drift, read_lines(folder.path / "items.jsonl")[0]
    assert drift is not None
    words = 2 * len(f"{line['brand']} {line['description']}".split()) + 4
    assert drift.new_items == 2
    assert drift.unseen_tokens == pytest.approx(2 / words)
    assert drift.unseen_categories == 0.5
    assert any("unseen categories" in reason for reason in drift.reasons())
    assert any("Re-train soon" in line for line in done.lines())
    # A second update counts from the training on, not from the first update.
    add(folder, "n2", "quartz mug", "red")
    again = run(reopened(folder)).drift
    assert again is not None
    assert again.new_items == 3


def test_the_shift_is_in_units_of_the_spread(folder: DatasetFolder) -> None:
    """A baseline of a known cloud, against new points of the same cloud and of a moved one."""
    rng = np.random.default_rng(0)
    items = folder.items * 100
    count = len(items)
    old = rng.normal(size=(count, 5)) * [1, 2, 3, 4, 5]
    baseline = Baseline.of(items, hashes(0, count), {"x": old})
    baseline.save(folder.path / "b.safetensors")
    baseline = Baseline.read(folder.path / "b.safetensors")
    spread = np.sqrt(1 + 4 + 9 + 16 + 25)
    assert baseline.spread["x"] == pytest.approx(spread, rel=0.05)
    same = rng.normal(size=(count, 5)) * [1, 2, 3, 4, 5]
    found = baseline.drift(items, hashes(count, count), {"x": same})
    assert found.shift["x"] < 0.05
    assert found.spread["x"] == pytest.approx(1, rel=0.05)
    assert not [r for r in found.reasons() if "lie elsewhere" in r]
    moved = baseline.drift(items, hashes(count, count), {"x": same * 2 + [0, 0, 3, 4, 0]})
    assert moved.shift["x"] == pytest.approx(5 / spread, rel=0.1)
    assert moved.spread["x"] == pytest.approx(2, rel=0.05)
    assert [r for r in moved.reasons() if "lie elsewhere" in r]
    none = baseline.drift(items, hashes(0, count), {"x": old})
    assert (none.new_items, none.shift) == (0, {})


def hashes(start: int, count: int) -> np.ndarray[Any, Any]:
    found = np.zeros((count, 16), dtype=np.uint8)
    found[:, :8] = np.arange(start, start + count, dtype=np.int64)[:, None].view(np.uint8)
    return found


def test_a_damaged_tower_is_named(folder: DatasetFolder) -> None:
    (tower,) = (folder.path / "stages").glob("tower-*")
    add(folder, "n", "modern vase")
    kept = (tower / "tower.json").read_text()
    for text, message in (
        (kept[:50], "is damaged"),
        (json.dumps(json.loads(kept) | {"format": 7}), "of another version"),
        (json.dumps({"format": 1}), "is damaged"),
    ):
        (tower / "tower.json").write_text(text)
        with pytest.raises(InputError, match=message):
            run(reopened(folder))
