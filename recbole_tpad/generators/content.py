"""What generators read of items, and what they refuse before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_tpad.backbones.checkpoints import resolve
from recbole_tpad.data import DatasetFolder, Item
from recbole_tpad.data.item_text import item_text
from recbole_tpad.errors import InputError


def items_as_read(
    items: Sequence[Item], *, use_images: bool = True, use_text: bool = True
) -> list[Item]:
    """Items without what is not to be read; an image whose file is gone counts as absent."""
    changes: dict[str, Any] = {}
    if not use_images:
        changes["image"] = None
    if not use_text:
        changes |= {"title": "", "brand": "", "description": ""}
    found = []
    for item in items:
        gone = item.image is not None and not item.image.is_file()
        own: dict[str, Any] = {"image": None} if gone else {}
        found.append(dataclasses.replace(item, **(own | changes)))
    return found


def texts_of(dataset: DatasetFolder, items: Sequence[Item], template: str) -> list[str]:
    """Every item's text.

    Raises:
        InputError: all of them are empty.
    """
    found = [item_text(item, template) for item in items]
    if not any(found):
        raise InputError(
            f"Data set '{dataset.name}' has no item with a text ({template}); this generator has "
            "nothing to read. Convert it with its metadata, or take a generator of images."
        )
    return found


def require_images(dataset: DatasetFolder, items: Sequence[Item], *, instead: str) -> None:
    """Refuse a catalogue without any image.

    Args:
        dataset: for its name.
        items: as read.
        instead: what else the user can do.

    Raises:
        InputError: no item has an image file.
    """
    if not any(item.image for item in items):
        raise InputError(
            f"Data set '{dataset.name}' has no item with an image file; this generator reads "
            f"images. Get them with 'recbole-tpad images --dataset {dataset.name}', or {instead}."
        )


def fill_absent(
    table: npt.NDArray[np.float32], present: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Give rows without content the mean of the rows with: nothing is claimed of them."""
    if present.any() and not present.all():
        table[~present] = table[present].mean(axis=0)
    return table


def reading_plan(
    items: Sequence[Item], checkpoints: Iterable[tuple[str, str | None]], passes: str
) -> list[str]:
    """Lines that say what a generator without stages of its own would read; nothing is loaded.

    Args:
        items: as read.
        checkpoints: (folder or hub id, revision); a hub id's weights are fetched by this.
        passes: what runs over the items.

    Raises:
        InputError: a checkpoint that is not to be had.
    """
    shown = sum(item.image is not None for item in items)
    lines = [f"Items: {len(items):,}, {shown:,} with an image"]
    for name, revision in checkpoints:
        files = resolve(name, revision).glob("*.safetensors")
        size = sum(file.stat().st_size for file in files)
        lines.append(f"Weights of {name}: {size / 1e9:.2f} GB on disk")
    return [*lines, f"Work: {passes}", "Time: not estimated; it depends on the device."]


def training_rows(dataset: DatasetFolder) -> npt.NDArray[np.int64]:
    """Rows of the items that occur in a training session, ascending."""
    counts = dataset.train_item_counts()
    return np.flatnonzero([counts[item_id] > 0 for item_id in dataset.item_ids])


def session_rows(dataset: DatasetFolder) -> Iterator[Sequence[int]]:
    """The training sessions as item rows."""
    row = {item_id: n for n, item_id in enumerate(dataset.item_ids)}
    for _, items in dataset.train_sessions():
        yield [row[i] for i in items]
