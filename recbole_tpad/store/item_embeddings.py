"""The item-embedding store: a folder of memory-mapped fp16 arrays, item ids and a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.files import atomic_folder, sha256_file, write_json
from recbole_tpad.store.manifest import Manifest

Float32 = npt.NDArray[np.float32]


class ItemEmbeddings:
    """A read-only view of a store; vectors stay on disk until rows are asked for."""

    def __init__(self, path: Path, manifest: Manifest, item_ids: list[str]) -> None:
        self.path = path
        self.manifest = manifest
        self.item_ids = item_ids

    @property
    def sha256(self) -> str:
        """Hash that names exactly these vectors."""
        return self.manifest.sha256

    @cached_property
    def _position(self) -> dict[str, int]:
        return {item_id: i for i, item_id in enumerate(self.item_ids)}

    def array(self, modality: str) -> npt.NDArray[np.float16]:
        """Return a modality's memory-mapped array, shape (items, dim), fp16."""
        if modality not in self.manifest.modalities:
            known = list(self.manifest.modalities)
            raise InputError(
                f"{self.path} has no modality '{modality}'.{nearest(modality, known)} "
                f"It has: {', '.join(known)}."
            )
        return np.load(self.path / f"{modality}.npy", mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]

    def missing(self, item_ids: Sequence[str]) -> list[str]:
        """Return those of `item_ids` that the store does not hold, in their order."""
        return [i for i in item_ids if i not in self._position]

    def rows(self, item_ids: Sequence[str], modalities: Sequence[str] | None = None) -> Float32:
        """Return the vectors of `item_ids`, modalities side by side, shape (len(item_ids), Σ dim).

        Args:
            item_ids: item tokens in the wanted order.
            modalities: which modalities, in which order; None: all, in the manifest's order.

        Raises:
            InputError: items the store does not hold (counted, first ones named), or an unknown
                modality.
        """
        missing = self.missing(item_ids)
        if missing:
            raise InputError(
                f"{self.path} misses {len(missing)} of {len(item_ids)} items, first: "
                f"{', '.join(missing[:5])}. It was made for another catalogue; "
                f"run 'recbole-tpad embed --generator {self.manifest.generator}' for this one."
            )
        order = np.fromiter((self._position[i] for i in item_ids), dtype=np.int64)
        names = list(self.manifest.modalities) if modalities is None else list(modalities)
        parts = [self.array(name)[order].astype(np.float32) for name in names]
        return np.concatenate(parts, axis=1)

    def verify(self) -> None:
        """Recompute every file's hash.

        Raises:
            InputError: the first file that differs from the manifest, by name.
        """
        for name, expected in self.manifest.files.items():
            file = self.path / name
            if not file.is_file():
                raise InputError(f"{file} is missing. Run 'recbole-tpad embed' again.")
            if sha256_file(file) != expected:
                raise InputError(
                    f"{file} is not what its manifest says (SHA-256 differs): it was changed or "
                    "damaged. Run 'recbole-tpad embed' again."
                )


def open_store(path: str | Path) -> ItemEmbeddings:
    """Open a store for reading; checks its shape, not every byte (`ItemEmbeddings.verify` does).

    Raises:
        InputError: not a store, or its files contradict its manifest.
    """
    path = Path(path)
    manifest = Manifest.read(path / "manifest.json")
    try:
        item_ids = (path / "item_ids.txt").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"{path / 'item_ids.txt'}: {error.strerror}; the store is damaged."
        ) from error
    store = ItemEmbeddings(path, manifest, item_ids)
    if len(item_ids) != manifest.items:
        raise InputError(
            f"{path / 'item_ids.txt'} names {len(item_ids)} items, the manifest {manifest.items}."
        )
    for name, dim in manifest.modalities.items():
        try:
            shape = store.array(name).shape
        except (OSError, ValueError) as error:
            raise InputError(f"{path / name}.npy cannot be read ({error}).") from error
        if shape != (manifest.items, dim):
            raise InputError(
                f"{path / name}.npy has shape {shape}, the manifest says {(manifest.items, dim)}."
            )
    return store


def write_store(
    path: str | Path,
    item_ids: Sequence[str],
    arrays: Mapping[str, npt.NDArray[np.floating]],
    *,
    role: str,
    generator: str,
    dataset: str,
    split_fingerprint: str | None,
    inputs: Mapping[str, str],
) -> ItemEmbeddings:
    """Write a store atomically and open it.

    Args:
        path: the store's folder; an existing one is replaced when the new one is complete.
        item_ids: N distinct item tokens.
        arrays: modality → (N, dim) finite vectors; stored as fp16.
        role: see `Manifest`.
        generator: generator preset.
        dataset: data set name.
        split_fingerprint: hash of the training part used, None if no sessions were used.
        inputs: name → SHA-256 of everything that determined the vectors.

    Raises:
        InputError: duplicate ids, ids with line breaks, wrong shapes, or values that are not
            finite in fp16; the item is named.
    """
    path = Path(path)
    _check(item_ids, arrays)
    with atomic_folder(path) as folder:
        (folder / "item_ids.txt").write_text("".join(f"{i}\n" for i in item_ids), encoding="utf-8")
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array.astype(np.float16), allow_pickle=False)
        manifest = Manifest(
            role=role,
            generator=generator,
            dataset=dataset,
            split_fingerprint=split_fingerprint,
            items=len(item_ids),
            modalities={name: int(array.shape[1]) for name, array in arrays.items()},
            dtype="float16",
            inputs=dict(sorted(inputs.items())),
            files={f.name: sha256_file(f) for f in sorted(folder.iterdir())},
        )
        write_json(folder / "manifest.json", manifest.to_json())
    return open_store(path)


def _check(item_ids: Sequence[str], arrays: Mapping[str, npt.NDArray[np.floating]]) -> None:
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
        if array.ndim != 2 or array.shape[0] != len(item_ids):
            raise InputError(
                f"Modality '{name}' has shape {array.shape}; expected ({len(item_ids)}, dim)."
            )
        with np.errstate(over="ignore"):  # named below
            bad = np.flatnonzero(~np.isfinite(array.astype(np.float16)).all(axis=1))
        if bad.size:
            raise InputError(
                f"Modality '{name}' has {bad.size} rows with NaN or values beyond fp16's range, "
                f"first: item '{item_ids[int(bad[0])]}'."
            )
