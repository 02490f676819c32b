"""The item-embedding store, for reading: memory-mapped fp16 shards, item ids and a manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.files import sha256_file
from recbole_tpad.store.manifest import Manifest
from recbole_tpad.store.shards import ShardedRows

ITEM_IDS = "item_ids.txt"
CONTENT = "item_content.npy"
CONTENT_BYTES = 16  # of an item's content hash
_MANY = 50_000  # ids from which on they are lined up by sorting

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint8]


class ItemEmbeddings:
    """A read-only view of a store; vectors stay on disk until rows are asked for.

    What it reads belongs to the manifest it was opened with: once the store has been replaced,
    reading more of it is an error.
    """

    def __init__(self, path: Path, manifest: Manifest, item_ids: list[str]) -> None:
        self.path = path
        self.manifest = manifest
        self.item_ids = item_ids
        self._identity = self._manifest_identity()

    @property
    def sha256(self) -> str:
        """Hash that names exactly these vectors."""
        return self.manifest.sha256

    @cached_property
    def _position(self) -> dict[str, int]:
        return {item_id: i for i, item_id in enumerate(self.item_ids)}

    def array(self, modality: str) -> ShardedRows:
        """Return a modality's rows, shape (items, dim), fp16, read from disk as they are asked for.

        Raises:
            InputError: no such modality; when rows are read: a damaged or replaced file.
        """
        if modality not in self.manifest.modalities:
            known = list(self.manifest.modalities)
            raise InputError(
                f"{self.path} has no modality '{modality}'.{nearest(modality, known)} "
                f"It has: {', '.join(known)}."
            )
        shape = (self.manifest.items, self.manifest.modalities[modality])
        return ShardedRows(
            self.path, modality, shape, self.manifest.shard_items, self._check_identity
        )

    def content_hashes(self) -> Hashes | None:
        """Return the hash of what each item was encoded from, (items, 16) bytes; None: not known.

        Raises:
            InputError: the file is damaged.
        """
        if CONTENT not in self.manifest.files:
            return None
        self._check_file(CONTENT)
        found: Hashes = np.load(self.path / CONTENT, allow_pickle=False)
        return found

    def find(self, item_ids: Sequence[str] | npt.NDArray[np.str_]) -> Int64:
        """Return the row of each item, (len(item_ids),); -1 for items the store does not hold."""
        if self.item_ids and len(item_ids) >= _MANY:
            return _joined(self.item_ids, item_ids)
        rows = map(self._position.get, item_ids, repeat(-1))
        return np.fromiter(rows, dtype=np.int64, count=len(item_ids))

    def missing(self, item_ids: Sequence[str]) -> list[str]:
        """Return those of `item_ids` that the store does not hold, in their order."""
        return [item_ids[k] for k in np.flatnonzero(self.find(item_ids) < 0).tolist()]

    def positions(self, item_ids: Sequence[str]) -> Int64:
        """Return the row of each item, (len(item_ids),).

        Raises:
            InputError: items the store does not hold (counted, first ones named).
        """
        found = self.find(item_ids)
        missing = np.flatnonzero(found < 0)
        if missing.size:
            raise InputError(
                f"{self.path} misses {len(missing)} of {len(item_ids)} items, first: "
                f"{', '.join(item_ids[k] for k in missing[:5].tolist())}. It was made for another "
                f"catalogue; run 'recbole-tpad embed --generator {self.manifest.generator}' for "
                "this one."
            )
        return found

    def rows(self, item_ids: Sequence[str], modalities: Sequence[str] | None = None) -> Float32:
        """Return the vectors of `item_ids`, modalities side by side, shape (len(item_ids), Σ dim).

        Args:
            item_ids: item tokens in the wanted order.
            modalities: which modalities, in which order; None: all, in the manifest's order.

        Raises:
            InputError: items the store does not hold, an unknown modality, or a damaged file.
        """
        return self.rows_at(self.positions(item_ids), modalities)

    def rows_at(self, positions: Int64, modalities: Sequence[str] | None = None) -> Float32:
        """Return the vectors in some rows of the store; see `rows`."""
        names = list(self.manifest.modalities) if modalities is None else list(modalities)
        arrays = [self.array(name) for name in names]
        found = np.empty((len(positions), sum(a.shape[1] for a in arrays)), dtype=np.float32)
        start = 0
        for array in arrays:
            found[:, start : start + array.shape[1]] = array.take(positions)
            start += array.shape[1]
        return found

    def verify(self, modalities: Sequence[str] | None = None) -> None:
        """Recompute the hash of every file, or of those of some modalities.

        Raises:
            InputError: the first file that differs from the manifest, is missing or does not
                belong to the store, by name.
        """
        if modalities is None:
            names = list(self.manifest.files)
            strange = sorted(
                p.name
                for p in self.path.iterdir()
                if p.suffix == ".npy" and p.name not in self.manifest.files
            )
            if strange:
                raise InputError(
                    f"{self.path / strange[0]} is not in the manifest: it does not belong to this "
                    "store. Remove it."
                )
        else:
            names = [f.name for m in modalities for f in self.array(m).files()]
        for name in names:
            self._check_file(name)

    def _check_file(self, name: str) -> None:
        file = self.path / name
        if not file.is_file():
            raise InputError(f"{file} is missing. Run 'recbole-tpad embed' again.")
        if sha256_file(file) != self.manifest.files.get(name):
            self._check_identity()
            raise InputError(
                f"{file} is not what its manifest says (SHA-256 differs): it was changed or "
                "damaged. Run 'recbole-tpad embed' again."
            )

    def _manifest_identity(self) -> tuple[int, ...]:
        found = os.stat(self.path / "manifest.json")
        return found.st_dev, found.st_ino, found.st_mtime_ns

    def _check_identity(self) -> None:
        try:
            same = self._manifest_identity() == self._identity
        except OSError:
            same = False
        if not same:
            raise InputError(
                f"{self.path} was replaced by another store since it was opened; run this again."
            )


def _joined(own: list[str], wanted: Sequence[str] | npt.NDArray[np.str_]) -> Int64:
    """Place in `own` of each wanted id, -1 without one; what a dictionary says, sooner.

    Sorted hashes are matched, which goes through memory in order, and then the ids themselves.
    """
    texts = wanted.tolist() if isinstance(wanted, np.ndarray) else wanted
    hashes = np.fromiter(map(hash, own), np.int64, len(own))
    asked = np.fromiter(map(hash, texts), np.int64, len(texts))
    order, asked_order = np.argsort(hashes), np.argsort(asked)
    hashes = hashes[order]
    places = np.searchsorted(hashes, asked[asked_order]).clip(max=len(own) - 1)
    found = np.empty(len(texts), dtype=np.int64)
    found[asked_order] = np.where(hashes[places] == asked[asked_order], order[places], -1)
    known = found >= 0
    same = np.array(own)[found[known]] == np.asarray(wanted)[known]
    if not same.all() or (hashes[1:] == hashes[:-1]).any():  # two ids with one hash
        place = {item_id: i for i, item_id in enumerate(own)}
        return np.array([place.get(text, -1) for text in texts], dtype=np.int64)
    return found


def open_store(path: str | Path) -> ItemEmbeddings:
    """Open a store for reading; vectors are not read.

    The manifest's and the item ids' hashes and the size of every file are checked; not every byte
    of the vectors (`ItemEmbeddings.verify` does).

    Raises:
        InputError: not a store, or its files contradict its manifest.
    """
    path = Path(path)
    manifest = Manifest.read(path / "manifest.json")
    try:
        content = (path / ITEM_IDS).read_bytes()
    except OSError as error:
        raise InputError(f"{path / ITEM_IDS}: {error.strerror}; the store is damaged.") from error
    if hashlib.sha256(content).hexdigest() != manifest.files.get(ITEM_IDS):
        raise InputError(
            f"{path / ITEM_IDS} is not what its manifest says (SHA-256 differs): rows would go to "
            "the wrong items. Run 'recbole-tpad embed' again."
        )
    item_ids = content.decode("utf-8").split("\n")[:-1]
    store = ItemEmbeddings(path, manifest, item_ids)
    if len(item_ids) != manifest.items:
        raise InputError(
            f"{path / ITEM_IDS} names {len(item_ids)} items, the manifest {manifest.items}."
        )
    for name in manifest.modalities:
        file = store.array(name).misshapen()
        if file is not None:
            raise InputError(
                f"{file} is absent or has not the size that the manifest gives it; the store is "
                "damaged. Run 'recbole-tpad embed' again."
            )
    return store
