"""A modality's rows on disk: fp16 `.npy` files of equally many items, read through memory maps."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from recbole_tpad.errors import InputError
from recbole_tpad.files import atomic_path

SHARD_ITEMS = 1024
_FEW = 8  # less than one row in so many is read by itself
_HEADER = 128  # bytes before the values; `np.save` pads its header to a multiple of 64

Float16 = npt.NDArray[np.float16]
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "choose a place that can be written to (--data_path)",
    errno.EACCES: "get the right to write there",
    errno.EPERM: "get the right to write there",
}


class Rows(Protocol):
    """What can be stored as a modality: an array, or anything with its shape and row slices."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, dim)."""
        ...

    def __getitem__(self, rows: slice, /) -> Any:
        """Some rows, (n, dim), floating point."""
        ...


def shard_file(modality: str, number: int) -> str:
    """Name of a shard's file."""
    return f"{modality}.{number:05d}.npy"


def shard_slices(items: int, size: int) -> list[slice]:
    """Rows of each shard."""
    return [slice(start, min(start + size, items)) for start in range(0, items, size)]


class ShardedRows:
    """Read-only (N, dim) fp16 rows over several files; a file is open only while it is read.

    Args:
        folder: where the files lie.
        modality: first part of their names.
        shape: (N, dim).
        size: rows of every file but the last.
        check: called after a file was opened, before it is read.
    """

    ndim = 2
    dtype = np.dtype(np.float16)

    def __init__(
        self,
        folder: Path,
        modality: str,
        shape: tuple[int, int],
        size: int,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.folder = folder
        self.modality = modality
        self.shape = shape
        self.size = size
        self._check = check

    def __len__(self) -> int:
        return self.shape[0]

    def files(self) -> list[Path]:
        """The shards' files, in order."""
        count = len(shard_slices(len(self), self.size))
        return [self.folder / shard_file(self.modality, n) for n in range(count)]

    @contextmanager
    def _opened(self, number: int) -> Iterator[tuple[BinaryIO, int]]:
        """One file that is as it must be, and how many rows it holds.

        Raises:
            InputError: it is absent, or its size or header is not that of the rows it must hold.
        """
        path = self.folder / shard_file(self.modality, number)
        rows = min(self.size, len(self) - number * self.size)
        try:
            with path.open("rb", buffering=0) as stream:
                if self._check is not None:
                    self._check()
                header = stream.read(_HEADER)
                found = os.fstat(stream.fileno()).st_size
                wanted = _HEADER + rows * self.shape[1] * 2
                if found != wanted or header != _header(rows, self.shape[1]):
                    raise InputError(
                        f"{path} does not hold {rows} fp16 rows of width {self.shape[1]} "
                        f"({found} bytes instead of {wanted}, or another header): it was damaged "
                        "or replaced. Run 'recbole-tpad embed' again."
                    )
                yield stream, rows
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}). Run 'recbole-tpad embed' again."
            ) from error

    def shard(self, number: int) -> Float16:
        """Map one file, shape (its rows, dim).

        Raises:
            InputError: it is absent, or its size or header is not that of the rows it must hold.
        """
        with self._opened(number) as (stream, rows):
            shape = (rows, self.shape[1])
            mapped: Float16 = np.memmap(stream, np.float16, "r", _HEADER, shape)
            return mapped

    def shards(self) -> Iterator[tuple[slice, Float16]]:
        """Each file's place among the rows, and its rows."""
        for number, place in enumerate(shard_slices(len(self), self.size)):
            yield place, self.shard(number)

    def take(self, rows: npt.NDArray[np.int64]) -> Float16:
        """Rows (n,) by number, in the given order, shape (n, dim); each file is opened once."""
        found = np.empty((len(rows), self.shape[1]), dtype=np.float16)
        order = np.argsort(rows, kind="stable")
        sorted_rows = rows[order]
        edges = np.arange(0, len(self) + self.size, self.size)  # linear in the shards, not rows
        cuts = np.searchsorted(sorted_rows, edges)
        for number in np.flatnonzero(np.diff(cuts)).tolist():
            own = slice(cuts[number], cuts[number + 1])
            places = sorted_rows[own] - number * self.size
            if _FEW * len(places) < min(self.size, len(self) - number * self.size):
                self._pick(number, places, found, order[own])
            else:
                found[order[own]] = self.shard(number)[places]
        return found

    def _pick(
        self,
        number: int,
        places: npt.NDArray[np.int64],
        into: Float16,
        targets: npt.NDArray[np.int64],
    ) -> None:
        """Read a few rows of a file by themselves: a map would bring in what lies around them."""
        width = self.shape[1] * 2
        with self._opened(number) as (stream, _):
            for place, target in zip(places.tolist(), targets.tolist(), strict=True):
                row = into[target].view(np.uint8).data
                if os.preadv(stream.fileno(), [row], _HEADER + place * width) != width:
                    raise OSError(errno.EIO, "it became shorter")

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):
            return self[key[0]][(slice(None), *key[1:])]
        rows = np.arange(len(self))[key]
        return self.take(np.atleast_1d(rows)) if np.ndim(rows) else self.take(rows[None])[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        every: Float16 = self[:]
        return every if dtype is None else every.astype(dtype)

    def astype(self, dtype: Any) -> npt.NDArray[Any]:
        """Every row, as another type."""
        return np.asarray(self, dtype=dtype)

    def misshapen(self) -> Path | None:
        """The first file whose size is not that of its rows; None where all are right."""
        for place, file in zip(shard_slices(len(self), self.size), self.files(), strict=True):
            wanted = _HEADER + (place.stop - place.start) * self.shape[1] * 2
            try:
                if file.stat().st_size != wanted:
                    return file
            except OSError:
                return file
        return None


class ShardFolder:
    """Rows in the making: a shard is written as soon as it is known and survives a kill.

    Several processes may write into one folder, also the same shard: a file appears complete or
    not at all, and equal rows give equal bytes.

    Args:
        path: the folder; its name must stand for everything that determines the rows.
        item_ids: of all rows, for messages.
        widths: modality → dim.
        size: rows a shard.
    """

    def __init__(
        self, path: Path, item_ids: Sequence[str], widths: Mapping[str, int], size: int
    ) -> None:
        self.path = path
        self.size = size
        self._item_ids = item_ids
        self.slices = shard_slices(len(item_ids), size)
        self.arrays = {
            name: ShardedRows(path, name, (len(item_ids), dim), size)
            for name, dim in widths.items()
        }

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there in every modality."""
        there = {p.name for p in self.path.iterdir()} if self.path.is_dir() else set()
        return [
            number
            for number in range(len(self.slices))
            if any(shard_file(name, number) not in there for name in self.arrays)
        ]

    def write(self, number: int, rows: Mapping[str, npt.NDArray[np.floating]]) -> None:
        """Put a shard's rows on disk: under another name, synced, renamed.

        Raises:
            InputError: a row is NaN or beyond fp16 (the item is named), or the disk is full or
                read-only; what was written before stays.
        """
        place = self.slices[number]
        for name in self.arrays:
            half = to_half(rows[name], self._item_ids[place], name)
            save_rows(self.path / shard_file(name, number), half)


def to_half(rows: Any, item_ids: Sequence[str], modality: str) -> Float16:
    """Rows (n, dim) as fp16.

    Raises:
        InputError: NaN or values beyond fp16; counted, the first item named.
    """
    with np.errstate(over="ignore"):  # named below
        half = np.ascontiguousarray(rows, dtype=np.float16)
    bad = np.flatnonzero(~np.isfinite(half).all(axis=1))
    if bad.size:
        raise InputError(
            f"Modality '{modality}' has {bad.size} rows with NaN or values beyond fp16's range, "
            f"first: item '{item_ids[int(bad[0])]}'."
        )
    return half


def save_rows(path: Path, rows: Float16) -> None:
    """Write an fp16 array (n, dim) as `.npy`, whole or not at all.

    Raises:
        InputError: the disk is full or read-only.
    """
    with naming_disk_errors(path), atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(_header(*rows.shape))
        stream.write(rows.view(np.uint8).data)


@contextmanager
def naming_disk_errors(path: Path) -> Iterator[None]:
    """Turn the ways in which writing fails for want of space or rights into an `InputError`."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise InputError(
            f"{path} cannot be written ({error.strerror}). Nothing that was there is lost, and "
            f"finished parts are kept: {remedy} and run the same command again."
        ) from error


def _header(rows: int, width: int) -> bytes:
    fields = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({rows}, {width}), }}"
    body = fields.ljust(_HEADER - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body.encode()
