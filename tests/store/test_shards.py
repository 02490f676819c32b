"""Rows over several files: indexing as of one array, numpy's own format, damage found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_tpad.errors import InputError
from recbole_tpad.store import ItemEmbeddings, Manifest, open_store, shards, write_store
from recbole_tpad.store.changes import MergedRows, catalogue_changes
from recbole_tpad.store.shards import ShardFolder

IDS = [f"item {k}" for k in range(7)]


def rows_of(ids: list[str], width: int = 3) -> np.ndarray[Any, Any]:
    return np.array([np.random.default_rng(hash_of(i)).normal(size=width) for i in ids])


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode().ljust(16, b"."), "little") % 2**63


def make(path: Path, ids: list[str] = IDS, **changes: Any) -> ItemEmbeddings:
    arguments: dict[str, Any] = {
        "role": "K1",
        "generator": "tpad",
        "dataset": "shop",
        "split_fingerprint": None,
        "inputs": {},
        "shard_items": 3,
        "content": content_of(dict.fromkeys(ids, 0)),
    }
    arrays = {"visual": rows_of(ids), "text": rows_of(ids, 2)}
    return write_store(path, ids, arrays, **(arguments | changes))


def content_of(catalogue: dict[str, int]) -> np.ndarray[Any, Any]:
    found = np.zeros((len(catalogue), 16), dtype=np.uint8)
    found[:, 0] = list(catalogue.values())
    return found


def test_files_are_numpys_own(tmp_path: Path) -> None:
    make(tmp_path / "s")
    whole = rows_of(IDS).astype(np.float16)
    for number, part in enumerate((whole[:3], whole[3:6], whole[6:])):
        file = tmp_path / "s" / f"visual.{number:05d}.npy"
        np.testing.assert_array_equal(np.load(file), part)
        np.save(tmp_path / "numpys.npy", part)
        assert (tmp_path / "numpys.npy").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "key",
    [
        *(2, -1, slice(None), slice(1, 6, 2), slice(5, 1, -1), [6, 0, 6, 3], (slice(2, 5), 1)),
        *(np.array([], int), np.arange(7) % 2 == 0, np.arange(7)[::-1]),
    ],
)
@pytest.mark.parametrize("few", [0, 8])
def test_indexing_is_that_of_one_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: Any, few: int
) -> None:
    """Whether rows are read by themselves (`few` 0: always) or from a map of their file."""
    array = make(tmp_path / "s").array("visual")
    whole = np.concatenate([np.load(file) for file in array.files()])
    np.testing.assert_array_equal(np.asarray(array), whole)
    monkeypatch.setattr(shards, "_FEW", few)
    assert whole.dtype == array.dtype
    assert whole.shape == array.shape == (7, 3)
    np.testing.assert_array_equal(array[key], whole[key])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_shard_size_changes_no_vector(tmp_path: Path, size: int) -> None:
    store = make(tmp_path / "s", shard_items=size)
    store.verify()
    np.testing.assert_array_equal(store.rows(IDS[::-1], ["visual"]), half(rows_of(IDS[::-1])))


def half(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return rows.astype(np.float16).astype(np.float32)


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    import resource

    ids = [str(k) for k in range(150)]
    store = make(tmp_path / "s", ids, shard_items=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = store.array("text")
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        assert np.asarray(held).shape == (150, 2)
        open_store(tmp_path / "s").verify()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- damage --------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def swap_rows(path: Path) -> None:
    rows = np.load(path)
    rows[[0, 1]] = rows[[1, 0]]
    np.save(path, rows)


def swap_files(folder: Path, one: str, other: str) -> None:
    (folder / one).rename(folder / "aside")
    (folder / other).rename(folder / one)
    (folder / "aside").rename(folder / other)


def test_verify_finds_what_opening_does_not_look_at(tmp_path: Path) -> None:
    damages: dict[str, Any] = {
        "bit": lambda p: flip(p / "text.00001.npy"),
        "rows": lambda p: swap_rows(p / "visual.00000.npy"),
        "shards": lambda p: swap_files(p, "visual.00000.npy", "visual.00001.npy"),
        "content": lambda p: flip(p / "item_content.npy"),
        "foreign": lambda p: shutil.copy(p / "text.00000.npy", p / "text.00009.npy"),
    }
    for name, damage in damages.items():
        make(tmp_path / name)
        damage(tmp_path / name)
        with pytest.raises(InputError, match=r"not what its manifest says|not in the manifest"):
            open_store(tmp_path / name).verify()


def test_opening_finds_what_would_be_misread(tmp_path: Path) -> None:
    other = make(tmp_path / "other", IDS[::-1])

    def edit(path: Path, old: str, new: str) -> None:
        text = (path / "manifest.json").read_text()
        assert old in text
        (path / "manifest.json").write_text(text.replace(old, new))

    def truncate(path: Path, share: float) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    damages: dict[str, Any] = {
        "a swapped id file": lambda p: shutil.copy(other.path / "item_ids.txt", p),
        "an edited role": lambda p: edit(p, '"role": "K1"', '"role": "K0"'),
        "an edited number": lambda p: edit(p, '"items": 7', '"items": 6'),
        "an edited hash": lambda p: edit(p, '"sha256": "', '"sha256": "0'),
        "a short file": lambda p: truncate(p / "text.00002.npy", 0.9),
        "a lost file": lambda p: (p / "visual.00001.npy").unlink(),
        "a lost id file": lambda p: (p / "item_ids.txt").unlink(),
        **{
            f"a manifest cut at {n}%": lambda p, n=n: truncate(p / "manifest.json", n / 100)
            for n in (0, 1, 10, 50, 90, 99)
        },
    }
    for name, damage in damages.items():
        path = tmp_path / name
        make(path)
        damage(path)
        with pytest.raises(InputError, match=r"embed|damaged|manifest"):
            open_store(path)


def test_a_header_of_another_shape_is_found_when_read(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    file = tmp_path / "s" / "visual.00000.npy"
    np.save(file, np.load(file).reshape(1, 9))
    with pytest.raises(InputError, match="another header"):
        store.rows(IDS[:1])


def test_a_replaced_store_is_not_mixed_with_the_old_one(tmp_path: Path) -> None:
    old = make(tmp_path / "s")
    old.rows(IDS[:2])
    make(tmp_path / "s", IDS[::-1])
    with pytest.raises(InputError, match="replaced by another store"):
        old.rows(IDS[:2])
    new = open_store(tmp_path / "s")
    np.testing.assert_array_equal(new.rows(IDS, ["visual"]), half(rows_of(IDS)))


def test_the_manifest_names_its_own_hash(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    content = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert content["sha256"] == store.sha256 == Manifest.read(store.path / "manifest.json").sha256


# -- changes -------------------------------------------------------------------------------------

catalogues = st.dictionaries(
    st.sampled_from([f"i{k}" for k in range(12)]), st.integers(0, 3), min_size=1
)


@settings(max_examples=20, deadline=None)
@given(steps=st.lists(catalogues, min_size=1, max_size=4), size=st.integers(1, 5))
def test_any_sequence_of_changes_gives_a_fresh_store(
    tmp_path_factory: pytest.TempPathFactory, steps: list[dict[str, int]], size: int
) -> None:
    """Vectors are a function of id and version here; the engine's own test is in generators."""
    folder = tmp_path_factory.mktemp("steps")
    common: dict[str, Any] = {"role": "K1", "generator": "x", "dataset": "d", "inputs": {}}
    common |= {"split_fingerprint": None, "shard_items": size}

    def vectors(items: list[tuple[str, int]]) -> np.ndarray[Any, Any]:
        return rows_of([f"{i} {version}" for i, version in items])

    store = None
    for catalogue in steps:
        ids, content = sorted(catalogue), content_of({i: catalogue[i] for i in sorted(catalogue)})
        items = [(i, catalogue[i]) for i in ids]
        fresh = write_store(folder / "fresh", ids, {"x": vectors(items)}, content=content, **common)
        if store is None:
            store = write_store(
                folder / "kept", ids, {"x": vectors(items)}, content=content, **common
            )
            continue
        before = dict(zip(store.item_ids, np.asarray(store.array("x")), strict=True))
        changes = catalogue_changes(store, ids, content)
        rows = changes.to_encode
        new = ShardFolder(folder / "new", [ids[r] for r in rows], {"x": 3}, 2)
        encoded = vectors([items[r] for r in rows]) if len(rows) else np.empty((0, 3))
        for number, place in enumerate(new.slices):
            new.write(number, {"x": encoded[place]})
        merged = MergedRows(store.array("x"), new.arrays["x"], changes.source)
        store = write_store(folder / "kept", ids, {"x": merged}, content=content, **common)
        for row in changes.kept:
            assert (store.array("x")[int(row)] == before[ids[row]]).all()
        assert sorted([*changes.kept, *changes.added, *changes.changed]) == list(range(len(ids)))
        assert changes.removed == [i for i in before if i not in catalogue]
        assert store.sha256 == fresh.sha256
        shutil.rmtree(folder / "new", ignore_errors=True)


def test_a_store_without_content_hashes_is_not_updated(tmp_path: Path) -> None:
    store = make(tmp_path / "s", content=None)
    with pytest.raises(InputError, match="cannot be updated"):
        catalogue_changes(store, IDS, content_of(dict.fromkeys(IDS, 0)))
