from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recbole_tpad.errors import InputError
from recbole_tpad.store import ItemEmbeddings, item_embeddings, open_store, write_store

IDS = ["a", "b", "c", "d"]


def make(path: Path, **changes: object) -> ItemEmbeddings:
    rng = np.random.default_rng(0)
    arguments = {
        "item_ids": IDS,
        "arrays": {"visual": rng.normal(size=(4, 3)), "text": rng.normal(size=(4, 2))},
        "role": "K1",
        "generator": "tpad",
        "dataset": "shop",
        "split_fingerprint": "f" * 64,
        "inputs": {"items.jsonl": "0" * 64},
    } | changes
    return write_store(path, **arguments)  # type: ignore[arg-type]


def test_rows_follow_the_asked_order_and_modalities(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    both = store.rows(["c", "a"])
    assert both.shape == (2, 5)
    np.testing.assert_array_equal(both[0, :3], store.array("visual")[2].astype(np.float32))
    np.testing.assert_array_equal(store.rows(["c", "a"], ["text", "visual"])[:, :2], both[:, 3:])


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    first, second = make(tmp_path / "s"), make(tmp_path / "t")
    assert first.sha256 == second.sha256
    for file in (tmp_path / "s").iterdir():
        assert file.read_bytes() == (tmp_path / "t" / file.name).read_bytes()


def test_rewriting_replaces_the_whole_store(tmp_path: Path) -> None:
    make(tmp_path / "s")
    make(tmp_path / "s", arrays={"text": np.ones((4, 2))})
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "item_ids.txt",
        "manifest.json",
        "text.00000.npy",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_missing_items_are_counted_and_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="misses 2 of 3 items, first: x, y"):
        make(tmp_path / "s").rows(["a", "x", "y"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_ids": ["a", "b", "b", "d"]}, "'b' occurs twice"),
        ({"item_ids": ["a", "b\nc", "e", "d"]}, "line break"),
        ({"arrays": {"text": np.ones((3, 2))}}, "expected \\(4, dim\\)"),
        ({"arrays": {"text": np.array([[1.0], [2], [np.nan], [4]])}}, "first: item 'c'"),
        ({"arrays": {"text": np.array([[1.0], [1e6], [2], [4]])}}, "first: item 'b'"),
        ({"role": "K7"}, "Unknown store role"),
        ({"item_ids": [], "arrays": {}}, "at least one item"),
    ],
)
def test_bad_content_is_refused_and_nothing_is_left(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(tmp_path / "s", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    store.verify()
    file = tmp_path / "s" / "visual.00000.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"visual\.00000\.npy is not what its manifest says"):
        open_store(tmp_path / "s").verify()


def test_what_is_not_a_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an item-embedding store"):
        open_store(tmp_path)
    make(tmp_path / "s")
    manifest = tmp_path / "s" / "manifest.json"
    manifest.write_text(manifest.read_text()[:40])
    with pytest.raises(InputError, match="damaged"):
        open_store(tmp_path / "s")
    manifest.write_text(json.dumps({"format": 99}))
    with pytest.raises(InputError, match="format 99"):
        open_store(tmp_path / "s")


@pytest.mark.parametrize("known", [0, 1, 57])
def test_lining_many_items_up_is_looking_each_of_them_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: int
) -> None:
    rng = np.random.default_rng(known)
    ids = sorted({"".join(rng.choice(list("aäß1☂"), size=rng.integers(1, 5))) for _ in range(80)})
    store = make(tmp_path / "s", item_ids=ids, arrays={"text": rng.normal(size=(len(ids), 2))})
    asked = [*rng.permutation(ids)[:known].tolist(), "zz", "z", *ids[:known:9], "zz"]
    expected = [ids.index(i) if i in ids else -1 for i in asked]
    assert store.find(asked).tolist() == expected
    monkeypatch.setattr(item_embeddings, "_MANY", 0)
    assert store.find(asked).tolist() == expected
    assert store.find(np.array(asked)).tolist() == expected
    assert store.find([]).tolist() == []


def test_ids_with_equal_hashes_keep_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "s")
    monkeypatch.setattr(item_embeddings, "_MANY", 0)
    monkeypatch.setattr(item_embeddings, "hash", lambda text: ord(text) // 2, raising=False)
    assert store.find(["d", "c", "a", "b", "e", "y"]).tolist() == [3, 2, 0, 1, -1, -1]
