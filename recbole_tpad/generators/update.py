"""`embed --update`: a store brought up to date with its catalogue, without training."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recbole_tpad.data import DatasetFolder, Item
from recbole_tpad.errors import InputError
from recbole_tpad.generators.base import items_sha256
from recbole_tpad.generators.drift import Baseline, Drift
from recbole_tpad.generators.embed import (
    first_process,
    one_writer,
    read_run,
    release_others,
    write_run,
)
from recbole_tpad.store import (
    ItemEmbeddings,
    find_store,
    open_store,
    store_path,
    write_store,
)
from recbole_tpad.store.changes import CatalogueChanges, MergedRows, catalogue_changes
from recbole_tpad.store.item_embeddings import Hashes


@dataclass(frozen=True, slots=True)
class Update:
    """What an update found and did.

    Attributes:
        store: as it is now.
        changes: of the catalogue since the store was written.
        drift: of the catalogue since the towers were trained; None on all but the first process.
        foreign_split: the data set's training part is not the one the towers were trained on.
    """

    store: ItemEmbeddings
    changes: CatalogueChanges
    drift: Drift | None
    foreign_split: bool

    def lines(self) -> list[str]:
        """What to tell people."""
        said = [f"Items: {self.changes}"]
        if self.drift is not None:
            said += self.drift.lines()
        if self.foreign_split:
            said.append(_FOREIGN)
        return said


@dataclass(frozen=True, slots=True)
class _Catalogue:
    """The items as the store's tower reads them."""

    folder: DatasetFolder
    store: ItemEmbeddings
    tower: Any  # TowerSettings: importing it loads torch's models, which a refusal does not need
    items: list[Item]
    content: Hashes
    changes: CatalogueChanges

    @property
    def work(self) -> Path:
        return self.folder.path / "stages"

    @property
    def foreign_split(self) -> bool:
        return self.tower.trained_on not in (None, self.folder.split_fingerprint)


_FOREIGN = (
    "The data set's training part is not the one the towers were trained on: the store keeps the "
    "fingerprint of theirs, and a run on the new part will refuse it, since the towers may have "
    "seen its test sessions. 'embed' without --update trains on the new part."
)


def update(data_path: str | Path, dataset: str, name: str) -> Update:
    """Encode a catalogue's new and changed items with a store's own tower.

    Rows of items that stay are kept bit for bit, those of deleted items are dropped. Of several
    processes each encodes a part. A killed update leaves the old store, and goes on where it was.

    Args:
        data_path: folder of data set folders.
        dataset: data set name.
        name: of the store.

    Raises:
        InputError: no such store, a damaged one, one that no tower made, or a tower that is gone.
    """
    folder = DatasetFolder.open(data_path, dataset)
    path = _store(folder, name).path
    with one_writer(path):
        found = _catalogue(folder, open_store(path))
        if found.changes.nothing:
            return Update(found.store, found.changes, _drift(found), found.foreign_split)
        found.store.verify()
        return _apply(found)


def _store(folder: DatasetFolder, name: str) -> ItemEmbeddings:
    try:
        return find_store(folder.path, name)
    except InputError as error:
        if store_path(folder.path, name).is_dir():
            raise
        raise InputError(
            f"{error} --update goes on from a store that is there; make it without --update first."
        ) from error


def plan_update(data_path: str | Path, dataset: str, name: str) -> list[str]:
    """Lines that say what `update` would take; nothing is loaded or written.

    Raises:
        InputError: as for `update`.
    """
    from recbole_tpad.generators.encoding_plan import plan_encoding

    folder = DatasetFolder.open(data_path, dataset)
    found = _catalogue(folder, _store(folder, name))
    items = [found.items[row] for row in found.changes.to_encode]
    store = found.store.manifest
    size = len(found.items) * sum(store.modalities.values()) * 2
    said = [f"Items: {found.changes}"]
    if items:
        said += plan_encoding(found.tower.backbone, items, _device()).lines()
    said.append(f"Disk: {size / 1e9:.3f} GB for the new store, beside the old one until it is done")
    return said + ([_FOREIGN] if found.foreign_split else [])


def _catalogue(folder: DatasetFolder, store: ItemEmbeddings) -> _Catalogue:
    manifest = store.manifest
    key = manifest.inputs.get("tower")
    if key is None:
        raise InputError(
            f"{store.path} was made by '{manifest.generator}', which has no tower that could "
            "encode single items: its vectors depend on the whole catalogue. Make it again with "
            "'recbole-tpad embed' (or 'embeddings import')."
        )
    if manifest.dataset != folder.name:
        raise InputError(
            f"{store.path} was made for data set '{manifest.dataset}', not for '{folder.name}': "
            "equal ids may name other items."
        )
    from recbole_tpad.generators.tpad_tower import read_tower

    tower = read_tower(folder.path / "stages", key)
    items = tower.as_read(folder.items)
    content = tower.content_hashes(items)
    changes = catalogue_changes(store, folder.item_ids, content)
    return _Catalogue(folder, store, tower, items, content, changes)


def _drift(found: _Catalogue) -> Drift:
    arrays = {name: found.store.array(name) for name in found.store.manifest.modalities}
    file = found.tower.folder(found.work) / "baseline.safetensors"
    return Baseline.read(file).drift(found.items, found.content, arrays)


def _apply(found: _Catalogue) -> Update:
    started = time.perf_counter()
    manifest, changes = found.store.manifest, found.changes
    new, stage, scratch = {}, None, None
    rows = changes.to_encode
    if len(rows):
        from recbole_tpad.generators.tpad_tower import encode, encoding_stage, load_for_encoding

        device = _device()
        backbone = load_for_encoding(found.work, found.tower, device)
        shards, record = encode(
            backbone,
            found.tower,
            [found.items[row] for row in rows],
            found.content[rows],
            found.work,
            device,
        )
        new, scratch = shards.arrays, shards.path
        stage = encoding_stage(record, record.seconds)
    if not first_process():
        store = open_store(found.store.path)
        return Update(store, changes, None, found.foreign_split)
    run = read_run(found.store)
    store = write_store(
        found.store.path,
        found.folder.item_ids,
        {
            name: MergedRows(found.store.array(name), new.get(name), changes.source)
            for name in manifest.modalities
        },
        role=manifest.role,
        generator=manifest.generator,
        dataset=manifest.dataset,
        split_fingerprint=manifest.split_fingerprint,
        inputs={
            **manifest.inputs,
            "items": items_sha256(found.items, images=True, keywords=True),
        },
        content=found.content,
        shard_items=manifest.shard_items,
    )
    drift = _drift(dataclasses.replace(found, store=store))
    entry = {
        "new": len(changes.added),
        "changed": len(changes.changed),
        "removed": len(changes.removed),
        "seconds": time.perf_counter() - started,
        "encoding": stage,
        "drift": dataclasses.asdict(drift),
        "retrain": drift.reasons(),
    }
    write_run(store, {**run, "updates": [*run.get("updates", []), entry]}, scratch)
    release_others()
    return Update(store, changes, drift, found.foreign_split)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
