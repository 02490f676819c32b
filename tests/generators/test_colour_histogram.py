"""Colour histograms of item images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_tpad import content, reopened, rewrite
from tiny_catalogue import WITHOUT_IMAGE, colour_of, write_catalogue

from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.generators.embed import embed
from recbole_tpad.generators.registry import make_generator
from recbole_tpad.store import ItemEmbeddings


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    return write_catalogue(tmp_path)


def made(folder: DatasetFolder, **overrides: Any) -> ItemEmbeddings:
    return embed(folder.path.parent, folder.name, "colour_histogram", overrides=overrides)


def test_items_of_one_colour_are_alike(folder: DatasetFolder) -> None:
    table = made(folder).rows(folder.item_ids).astype(float)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    similarity = unit @ unit.T
    shown = np.array([i not in WITHOUT_IMAGE for i in folder.item_ids])
    colours = np.array([colour_of(k) for k in range(len(table))])
    pairs = np.outer(shown, shown) & ~np.eye(len(table), dtype=bool)
    same = colours[:, None] == colours[None, :]
    assert similarity[same & pairs].min() > similarity[~same & pairs].max()
    # Items without an image are the mean of the others.
    for item in WITHOUT_IMAGE:
        row = table[folder.item_ids.index(item)]
        assert row == pytest.approx(table[shown].mean(axis=0), abs=1e-3)


def test_cells_hold_the_share_of_pixels(folder: DatasetFolder) -> None:
    """Left half pure red, right half black: two fields a row, one cell each."""
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:, :10] = (255, 0, 0)
    image = folder.path / "images" / next(f.name for f in (folder.path / "images").iterdir())
    Image.fromarray(pixels).save(image)
    item = next(i for i in reopened(folder).items if i.image == image)
    settings = {"hue_bins": 4, "saturation_bins": 2, "value_bins": 2}
    whole = made(reopened(folder), grid=1, **settings).rows([item.item_id])[0]
    # Hue 0, full saturation, full value; and hue 0, no saturation, no value.
    red, black = 3, 0
    assert whole.tolist() == pytest.approx(
        [np.sqrt(0.5) if cell in (red, black) else 0 for cell in range(16)], abs=1e-3
    )
    fields = made(reopened(folder), grid=2, **settings).rows([item.item_id])[0].reshape(4, 16)
    assert fields.argmax(axis=1).tolist() == [red, black, red, black]
    assert fields.sum() == pytest.approx(4, abs=1e-3)


def test_depends_on_images_and_settings_only(folder: DatasetFolder) -> None:
    before = make_generator("colour_histogram").fingerprint(folder)
    rewrite(folder, "items.jsonl", lambda line: line.update(title="another"))
    assert make_generator("colour_histogram").fingerprint(reopened(folder)) == before
    assert make_generator("colour_histogram", {"grid": 1}).fingerprint(folder) != before
    first = content(made(folder))
    image = next(i.image for i in folder.items if i.image)
    Image.new("RGB", (9, 9), "white").save(image)
    assert make_generator("colour_histogram").fingerprint(reopened(folder)) != before
    assert content(made(reopened(folder))) != first


def test_damaged_images_are_named_and_absent_ones_refused(folder: DatasetFolder) -> None:
    images = [i.image for i in folder.items if i.image]
    images[0].write_bytes(b"no image")
    with pytest.warns(UserWarning, match=rf"1 images cannot be read: {images[0].name}"):
        made(folder)
    for image in images:
        image.unlink()
    (folder.path / "images.jsonl").unlink()
    with pytest.raises(InputError, match=r"'shop' has no readable image.*recbole-tpad images"):
        made(reopened(folder))


@pytest.mark.parametrize("key", ["grid", "hue_bins"])
def test_bad_settings(key: str) -> None:
    with pytest.raises(InputError, match=f"{key} is 0"):
        make_generator("colour_histogram", {key: 0})
