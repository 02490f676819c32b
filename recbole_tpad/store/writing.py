"""Writing a store: all of it or nothing, one writer at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from recbole_tpad.errors import InputError
from recbole_tpad.files import atomic_folder, sha256_file, write_json
from recbole_tpad.store.item_embeddings import (
    CONTENT,
    CONTENT_BYTES,
    ITEM_IDS,
    Hashes,
    ItemEmbeddings,
    open_store,
)
from recbole_tpad.store.lock import writing
from recbole_tpad.store.manifest import Manifest
from recbole_tpad.store.shards import (
    SHARD_ITEMS,
    Rows,
    ShardedRows,
    naming_disk_errors,
    save_rows,
    shard_file,
    shard_slices,
    to_half,
)


def write_store(
    path: str | Path,
    item_ids: Sequence[str],
    arrays: Mapping[str, Rows],
    *,
    role: str,
    generator: str,
    dataset: str,
    split_fingerprint: str | None,
    inputs: Mapping[str, str],
    content: Hashes | None = None,
    shard_items: int = SHARD_ITEMS,
) -> ItemEmbeddings:
    """Write a store atomically and open it.

    Args:
        path: the store's folder; an existing one is replaced when the new one is complete.
        item_ids: N distinct item tokens.
        arrays: modality → (N, dim) finite vectors, read a shard at a time and stored as fp16;
            files of `ShardedRows` with shards of the same size are linked instead of copied.
        role: see `Manifest`.
        generator: generator preset.
        dataset: data set name.
        split_fingerprint: hash of the training part used, None if no sessions were used.
        inputs: name → SHA-256 of everything that determined the vectors.
        content: hash of what each item was encoded from, (N, 16), where that is known.
        shard_items: rows a file.

    Raises:
        InputError: duplicate ids, ids with line breaks, wrong shapes, values that are not finite
            in fp16 (the item is named); another writer; no space or no right to write.
    """
    path = Path(path)
    _check(item_ids, arrays, content)
    with writing(path), naming_disk_errors(path):
        with atomic_folder(path) as folder:
            (folder / ITEM_IDS).write_bytes("".join(f"{i}\n" for i in item_ids).encode())
            if content is not None:
                np.save(folder / CONTENT, content, allow_pickle=False)
            for name, array in arrays.items():
                _write_rows(folder, name, array, item_ids, shard_items)
            manifest = Manifest(
                role=role,
                generator=generator,
                dataset=dataset,
                split_fingerprint=split_fingerprint,
                items=len(item_ids),
                modalities={name: int(array.shape[1]) for name, array in arrays.items()},
                dtype="float16",
                shard_items=shard_items,
                inputs=dict(sorted(inputs.items())),
                files={f.name: sha256_file(f) for f in sorted(folder.iterdir())},
            )
            write_json(folder / "manifest.json", manifest.to_json())
        return open_store(path)


def _write_rows(
    folder: Path, name: str, array: Rows, item_ids: Sequence[str], shard_items: int
) -> None:
    ready = array.files() if isinstance(array, ShardedRows) and array.size == shard_items else None
    for number, place in enumerate(shard_slices(len(item_ids), shard_items)):
        file = folder / shard_file(name, number)
        if ready is not None:
            _link(ready[number], file)
        else:
            save_rows(file, to_half(array[place], item_ids[place], name))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _check(item_ids: Sequence[str], arrays: Mapping[str, Rows], content: Hashes | None) -> None:
    if not item_ids or not arrays:
        raise InputError("A store needs at least one item and one modality; nothing was given.")
    seen: set[str] = set()
    for item_id in item_ids:
        if item_id in seen:
            raise InputError(f"Item id '{item_id}' occurs twice; ids must be distinct.")
        if not item_id or item_id.splitlines() != [item_id]:
            raise InputError(f"Item id {item_id!r} is empty or has a line break; rename it.")
        seen.add(item_id)
    for name, array in arrays.items():
        if not name or Path(name).name != name or name.startswith("."):
            raise InputError(f"'{name}' cannot be a modality's name: give a plain name.")
        if len(array.shape) != 2 or array.shape[0] != len(item_ids):
            raise InputError(
                f"Modality '{name}' has shape {array.shape}; expected ({len(item_ids)}, dim)."
            )
    if content is not None and content.shape != (len(item_ids), CONTENT_BYTES):
        raise InputError(
            f"The content hashes have shape {content.shape}; expected "
            f"({len(item_ids)}, {CONTENT_BYTES})."
        )
