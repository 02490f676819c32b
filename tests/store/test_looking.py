"""`embeddings info`, `diff` and `search`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_catalogue import write_catalogue

from recbole_tpad.cli import main
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.store import ItemEmbeddings, compare_stores, nearest_items, write_store


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    return write_catalogue(tmp_path)


def make(folder: DatasetFolder, name: str, rows: Any = None, **changes: Any) -> ItemEmbeddings:
    if rows is None:
        rows = np.random.default_rng(0).normal(size=(24, 6)) + 5
    arguments: dict[str, Any] = {
        "item_ids": folder.item_ids,
        "arrays": {"visual": rows[:, :2], "text": rows[:, 2:]},
        "role": "K1",
        "generator": "tpad",
        "dataset": "shop",
        "split_fingerprint": folder.split_fingerprint,
        "inputs": {"items": "a" * 64, "tower": "b" * 64},
        "shard_items": 5,
    }
    return write_store(folder.path / "embeddings" / name, **(arguments | changes))


def command(folder: DatasetFolder, action: str, *arguments: str) -> int:
    place = ["--dataset", "shop", "--data_path", str(folder.path.parent), "--name", "mine"]
    return main(["embeddings", action, *place, *arguments])


def test_info_is_for_people(folder: DatasetFolder, capsys: pytest.CaptureFixture[str]) -> None:
    store = make(folder, "mine")
    assert command(folder, "info") == 0
    said = capsys.readouterr().out
    for expected in (
        "role       K1 (knowledge tower after alignment)",
        "made by    tpad, for data set 'shop'",
        "items      24",
        "visual 2, text 4; float16",
        "that of the data set",
        store.sha256,
        "tower  bbbbbbbbbbbbbbbb…",
    ):
        assert expected in said
    assert command(folder, "info", "--json") == 0
    assert json.loads(capsys.readouterr().out) == store.manifest.to_json()
    make(folder, "mine", split_fingerprint="0" * 64)
    assert command(folder, "info") == 0
    assert "NOT that of the data set" in capsys.readouterr().out


def test_diff(folder: DatasetFolder, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.random.default_rng(0).normal(size=(24, 6))
    make(folder, "mine", rows)
    other = rows[1:].copy()
    other[3, 2:] *= -1
    make(folder, "other", other, item_ids=folder.item_ids[1:], inputs={"items": "c" * 64})
    assert command(folder, "diff", "--other", "other") == 0
    said = capsys.readouterr().out
    for expected in (
        "input items: aaaaaaaaaaaa… in mine, cccccccccccc… in other",
        "input tower: bbbbbbbbbbbb… in mine, absent in other",
        f"only in mine: 1 items ({folder.item_ids[0]})",
        "visual: 23 of 23 shared items are equal bit for bit\n",
        "text: 22 of 23 shared items are equal bit for bit; the others' cosine is -1.0000 on "
        f"average, at least -1.0000 (item {folder.item_ids[4]})",
        "other vectors",
    ):
        assert expected in said
    path = str(folder.path / "embeddings" / "mine")
    assert command(folder, "diff", "--other", path) == 0
    assert capsys.readouterr().out.endswith("the same vectors\n")


def test_other_widths_are_told_apart(folder: DatasetFolder) -> None:
    one, other = make(folder, "mine"), make(folder, "wide", np.ones((24, 7)))
    found = compare_stores(one, other)
    assert found.other_modalities == {"text": (4, 5)}
    assert list(found.modalities) == ["visual"]
    assert not found.same


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 30), block=st.integers(1, 30))
def test_search_equals_all_pairs(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, block: int
) -> None:
    from recbole_tpad.store import search

    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(20, 3)) * [1, 30, 0.1] + [100, 0, 3]
    rows[rng.integers(20, size=5)] = rows[3]  # equal items
    ids = [f"i{k:02d}" for k in range(20)]
    store = write_store(
        tmp_path_factory.mktemp("s") / "s",
        ids,
        {"x": rows},
        role="other",
        generator="x",
        dataset="d",
        split_fingerprint=None,
        inputs={},
        shard_items=7,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_BLOCK", block)
        found = nearest_items(store, ids[:4], count)
    kept = np.asarray(store.array("x")).astype(np.float64)
    standard = (kept - kept.mean(0)) / kept.std(0)
    standard /= np.linalg.norm(standard, axis=1, keepdims=True)
    for q in range(4):
        cosine = standard @ standard[q]
        cosine[q] = -2
        wanted = np.sort(cosine)[::-1][: min(count, 19)]
        mine = [n.cosine for n in found[ids[q]]]
        np.testing.assert_allclose(mine, wanted, atol=1e-5)
        assert len({n.item_id for n in found[ids[q]]} - {ids[q]}) == min(count, 19)
        for n in found[ids[q]]:
            assert cosine[ids.index(n.item_id)] == pytest.approx(n.cosine, abs=1e-5)


def test_search_prints_titles(folder: DatasetFolder, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.random.default_rng(0).normal(size=(24, 6))
    rows[7] = rows[2] * 1.001
    make(folder, "mine", rows)
    assert command(folder, "search", "--item", "i02", "--top", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    titles = {i.item_id: i.title for i in folder.items}
    assert lines[0] == f"i02  {titles['i02']}"
    assert lines[1].split(maxsplit=2)[1:] == ["i07", titles["i07"]]
    assert len(lines) == 4
    assert command(folder, "search", "--title", "NUMBER 7", "--modalities", "text") == 0
    said = capsys.readouterr().out
    assert said.startswith("i07  ")
    for bad, message in (
        (["--item", "i0"], "has no item 'i0'"),
        (["--title", "zither"], "No item's title"),
        (["--item", "i02", "--modalities", "txt"], "Did you mean 'text'"),
        (["--item", "i02", "--top", "0"], "--top 0"),
        ([], "Say which items"),
        (["--output", "x.txt"], ".html"),
    ):
        assert command(folder, "search", *bad) == 2
        assert message in capsys.readouterr().err


def test_the_page_shows_thumbnails_and_fetches_nothing(
    folder: DatasetFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (folder.path / "items.jsonl").read_text().replace("rustic mug", "<script>mug")
    (folder.path / "items.jsonl").write_text(lines)
    make(folder, "mine")
    page = tmp_path / "near.html"
    assert command(folder, "search", "--output", str(page), "--top", "4") == 0
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text()
    assert text.count('class="example"') == 12
    assert text.count("<li>") >= 12 * 5
    assert "data:image/jpeg;base64," in text
    assert "<script" not in text
    assert "&lt;script&gt;mug" in text
    assert "http" not in text.replace("http-equiv", "")


def test_an_item_that_is_gone_from_the_data_set_still_shows(folder: DatasetFolder) -> None:
    ids = [*folder.item_ids[:-1], "gone"]
    make(folder, "mine", item_ids=ids)
    assert command(folder, "search", "--item", "gone") == 0
    with pytest.raises(InputError, match="has no item"):
        nearest_items(make(folder, "mine"), ["gone"], 3)
