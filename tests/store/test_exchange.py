"""Import and export: round trips, other people's files, what does not fit, plain RecBole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_catalogue import write_catalogue

from recbole_tpad.cli import main
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.store import (
    export_embeddings,
    import_embeddings,
    open_store,
    verify_embeddings,
    write_store,
)

SUFFIXES = [".npy", ".npz", ".safetensors", ".parquet", ".itememb"]


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    write_catalogue(tmp_path)
    return DatasetFolder.open(tmp_path, "shop")


def vectors_of(folder: DatasetFolder, dim: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(2).normal(size=(len(folder.item_ids), dim))


def bring(folder: DatasetFolder, name: str, array: Path, **keys: Any) -> Any:
    return import_embeddings(folder.path.parent, folder.name, name, array, **keys)


def save(folder: DatasetFolder, ids: list[str], rows: Any) -> dict[str, Any]:
    np.save(folder.path.parent / "x.npy", rows)
    (folder.path.parent / "ids.txt").write_text("".join(f"{i}\n" for i in ids))
    return {"array": folder.path.parent / "x.npy", "ids": folder.path.parent / "ids.txt"}


def test_rows_in_any_order_are_put_into_the_data_sets(folder: DatasetFolder) -> None:
    rows = vectors_of(folder)
    order = np.random.default_rng(3).permutation(len(rows))
    store = bring(folder, "mine", **save(folder, [folder.item_ids[k] for k in order], rows[order]))
    assert store.item_ids == folder.item_ids
    np.testing.assert_array_equal(store.array("vectors"), rows.astype(np.float16))
    manifest = store.manifest
    assert (manifest.role, manifest.split_fingerprint, manifest.generator) == (
        "other",
        None,
        "import",
    )
    assert set(manifest.inputs) == {"vectors", "ids"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_export_and_import_give_the_same_vectors(
    folder: DatasetFolder, tmp_path: Path, suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("duckdb")
    rows = vectors_of(folder, 5)
    store = write_store(
        folder.path / "embeddings" / "k",
        folder.item_ids,
        {"visual": rows[:, :2], "text": rows[:, 2:]},
        role="K1",
        generator="tpad",
        dataset="shop",
        split_fingerprint=None,
        inputs={},
    )
    written = export_embeddings(store, tmp_path / f"out{suffix}")
    back = bring(folder, "back", written[0], ids=written[1] if len(written) > 1 else None)
    one_array = suffix in (".npy", ".itememb")
    names = ["vectors"] if one_array else ["visual", "text"]
    assert sorted(back.manifest.modalities) == sorted(names)
    both = store.rows(folder.item_ids)
    np.testing.assert_array_equal(back.rows(folder.item_ids, names), both)
    only = export_embeddings(store, tmp_path / f"text{suffix}", ["text"])
    again = bring(folder, "text", only[0], ids=only[1] if len(only) > 1 else None)
    np.testing.assert_array_equal(
        again.rows(folder.item_ids), store.rows(folder.item_ids, ["text"])
    )


def test_columns_of_numbers_and_plain_text(folder: DatasetFolder, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")

    rows = vectors_of(folder, 2).astype(np.float16)
    values = ", ".join(
        f"('{i}', {a}, {b})" for i, (a, b) in zip(folder.item_ids, rows.tolist(), strict=True)
    )
    target = tmp_path / "t.parquet"
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT * FROM (VALUES {values}) t(sku, a, b)) TO '{target}' (FORMAT parquet)"
        )
    store = bring(folder, "p", target, id_column="sku")
    np.testing.assert_array_equal(store.array("vectors"), rows)
    text = tmp_path / "vectors.txt"
    text.write_text(
        "".join(f"{i} {a} {b}\n" for i, (a, b) in zip(folder.item_ids, rows, strict=True))
    )
    np.testing.assert_array_equal(bring(folder, "t", text).array("vectors"), rows)


def test_everything_that_does_not_fit_is_named_at_once(folder: DatasetFolder) -> None:
    ids = [*folder.item_ids[2:], "alien", "alien2", folder.item_ids[3]]
    rows = np.ones((len(ids), 3))
    rows[0, 1], rows[1, 0], rows[2] = np.nan, np.inf, 0
    given = save(folder, ids, rows)
    with pytest.raises(InputError) as refused:
        bring(folder, "mine", **given)
    said = str(refused.value)
    assert f"NaN, infinite or beyond fp16 for 2 ({ids[0]}, {ids[1]})" in said
    assert f"all zero for 1 ({ids[2]})" in said
    assert f"more than once: 1 ({folder.item_ids[3]})" in said
    assert f"no vector for 2 ({folder.item_ids[0]}, {folder.item_ids[1]})" in said
    assert "not in the data set: 2 (alien, alien2)" in said
    assert not (folder.path / "embeddings").exists()


def test_extra_items_and_zero_rows_can_be_accepted(folder: DatasetFolder) -> None:
    rows = np.ones((len(folder.item_ids) + 1, 3))
    rows[0] = 0
    given = save(folder, [*folder.item_ids, "alien"], rows)
    store = bring(folder, "mine", **given, drop_extra=True, allow_zero=True)
    assert store.item_ids == folder.item_ids
    with pytest.raises(InputError, match="exists already"):
        bring(folder, "mine", **given)


def test_files_that_cannot_be_read(folder: DatasetFolder, tmp_path: Path) -> None:
    ids = folder.item_ids
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", item_ids=np.array(ids, dtype=object), x=np.ones((2, 2)))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    (tmp_path / "ragged.txt").write_text("a 1 2\nb 1\n")
    (tmp_path / "words.txt").write_text("a 1 2\nb 1 two\n")
    np.save(tmp_path / "flat.npy", np.ones(4))
    np.save(tmp_path / "fine.npy", np.ones((len(ids), 2)))
    np.save(tmp_path / "short.npy", np.ones((3, 2)))
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    (tmp_path / "other.json").write_text(json.dumps(ids[::-1]))
    np.savez(tmp_path / "own.npz", item_ids=np.array(ids), x=np.ones((len(ids), 2)))
    for file, keys, message in (
        ("objects.npy", {}, "allow_pickle|Object arrays"),
        ("objects.npz", {}, "allow_pickle|Object arrays"),
        ("cut.safetensors", {}, "cannot be read as .safetensors"),
        ("cut.parquet", {}, "cannot be read as .parquet|needs duckdb"),
        ("ragged.txt", {}, "line 2 has 1 numbers, expected 2"),
        ("words.txt", {}, "line 2: "),
        ("flat.npy", {}, r"shape \(4,\)"),
        ("fine.npy", {}, "holds no item ids"),
        ("absent.npy", {}, "does not exist"),
        ("short.npy", {"ids": tmp_path / "ids.txt"}, "3 rows for 24 item ids"),
        ("own.npz", {"ids": tmp_path / "other.json"}, "differ, in content or order"),
        ("own.npz", {"id_column": "item_id"}, "Did you mean 'item_ids'"),
    ):
        with pytest.raises(InputError, match=message):
            bring(folder, "mine", tmp_path / file, **keys)


def test_verify_finds_damage_and_foreign_items(folder: DatasetFolder) -> None:
    store = bring(folder, "mine", **save(folder, folder.item_ids, vectors_of(folder)))
    assert len(verify_embeddings(store, folder)) == 3
    settings: dict[str, Any] = {
        "role": "other",
        "generator": "x",
        "dataset": "shop",
        "inputs": {},
    }
    fewer = write_store(
        folder.path / "embeddings" / "fewer",
        folder.item_ids[1:],
        {"x": vectors_of(folder)[1:]},
        split_fingerprint=None,
        **settings,
    )
    with pytest.raises(InputError, match=rf"no vector for 1 \({folder.item_ids[0]}\)"):
        verify_embeddings(fewer, folder)
    foreign = write_store(
        folder.path / "embeddings" / "foreign",
        folder.item_ids,
        {"x": vectors_of(folder)},
        split_fingerprint="0" * 64,
        **settings,
    )
    with pytest.raises(InputError, match="another training part"):
        verify_embeddings(foreign, folder)
    file = store.path / "vectors.00000.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="not what its manifest says"):
        verify_embeddings(open_store(store.path), folder)


def test_plain_recbole_reads_the_text_export(folder: DatasetFolder, tmp_path: Path) -> None:
    pytest.importorskip("recbole")
    from recbole.config import Config
    from recbole.data.dataset import SequentialDataset

    from recbole_tpad.bridge.shims import numpy_names

    rows = vectors_of(folder)
    store = bring(folder, "mine", **save(folder, folder.item_ids, rows))
    plain = tmp_path / "plain" / "shop"
    plain.mkdir(parents=True)
    sessions = [line for _, items in folder.train_sessions() for line in [items]]
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, items in enumerate(sessions):
        lines += [f"u{user}\t{item}\t{time}" for time, item in enumerate(items)]
    (plain / "shop.inter").write_text("\n".join(lines) + "\n")
    export_embeddings(store, plain / "shop.itememb")
    keys = {
        "data_path": str(plain.parent),
        "additional_feat_suffix": ["itememb"],
        "load_col": {
            "inter": ["user_id", "item_id", "timestamp"],
            "itememb": ["item_emb_id", "item_emb"],
        },
        "train_neg_sample_args": None,
        "alias_of_item_id": ["item_emb_id"],
        "preload_weight": {"item_emb_id": "item_emb"},
    }
    import sys

    argv = sys.argv
    sys.argv = argv[:1]  # RecBole reads the program's arguments
    try:
        with numpy_names():
            data = SequentialDataset(Config("GRU4Rec", "shop", config_dict=keys))
    finally:
        sys.argv = argv
    found = data.get_preload_weight("item_emb_id")
    for item_id in folder.item_ids:
        number = data.token2id("item_id", item_id)
        wanted = store.rows([item_id])[0]
        np.testing.assert_allclose(found[number], wanted, rtol=1e-6)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Somebody's RecBole data set: ratings, and an item that nobody rated."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = [f"u{k % 7}\ti{k % 5}\t{k}" for k in range(40)]
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (folder / "mine.inter").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    items = ["item_id:token\tclass:token_seq", *(f"i{k}\ta b" for k in range(6))]
    (folder / "mine.item").write_text("\n".join(items) + "\n", encoding="utf-8")
    return tmp_path


def test_a_data_set_of_plain_recbole(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 4))
    np.save(plain / "x.npy", rows)

    def command(*rest: str) -> tuple[int, str]:
        where = ["--data_path", str(plain), "--dataset", "mine", "--name", "x"]
        status = main(["embeddings", rest[0], *where, *rest[1:]])
        said = capsys.readouterr()
        return status, said.out + said.err

    def bring_ids(*ids: str, extra: tuple[str, ...] = ()) -> tuple[int, str]:
        (plain / "ids.txt").write_text("\n".join(ids) + "\n")
        np.save(plain / "x.npy", rows[: len(ids)])
        paths = ("--array", str(plain / "x.npy"), "--ids", str(plain / "ids.txt"))
        return command("import", *paths, *extra)

    status, said = bring_ids("i3", "i1", "i0", "i2", "strange")
    assert status == 2
    assert "no vector for 1 (i4)" in said
    assert "not in the data set: 1 (strange)" in said
    assert bring_ids("i3", "i1", "i0", "i2", "i4")[0] == 0
    assert bring_ids("i3", "i1", "i0", "i2", "i5", "i4", extra=("--overwrite",))[0] == 0
    store = open_store(plain / "mine" / "embeddings" / "x")
    assert store.item_ids == ["i0", "i1", "i2", "i3", "i4", "i5"]
    np.testing.assert_array_equal(store.array("vectors")[5], rows[4].astype(np.float16))
    assert "every one of 5 items" in command("verify")[1]
    assert command("export", "--output", str(plain / "out.npz"))[0] == 0
    (plain / "mine" / "mine.inter").write_text("user:token\tmovie:token\n")
    assert "has no column item_id (its columns: user, movie)" in command("verify")[1]


@pytest.mark.slow
def test_recbole_data_with_imported_vectors_train_and_rank(plain: Path) -> None:
    from recbole_tpad.bridge.runner import run

    np.save(plain / "x.npy", np.random.default_rng(0).normal(size=(5, 4)))
    (plain / "ids.txt").write_text("\n".join(f"i{k}" for k in range(5)) + "\n")
    import_embeddings(plain, "mine", "x", plain / "x.npy", ids=plain / "ids.txt")
    keys = {"data_path": str(plain), "dataset": "mine", "model": "SASRec", "epochs": 1}
    keys["load_col"] = {"inter": ["user_id", "item_id", "timestamp"]}
    result = run({**keys, "item_embeddings": "x"})
    assert result.item_embeddings == "x"
    assert result.hr == 1.0  # five items, the best ten
