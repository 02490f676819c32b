"""Gives a data set folder its item images, from files on this machine."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from PIL import Image

from dataset_converters.errors import InputError
from dataset_converters.files import atomic_path, sha256_file
from dataset_converters.progress import progress
from dataset_converters.reading import read_jsonl

# Records of a download under way, one line each; part of images.jsonl once it has ended.
JOURNAL = "images.journal.jsonl"
_LONGEST_NAME = 200  # bytes; file systems end at 255, temporary names are longer
# Decoded formats that every later stage reads, with the extension their files get.
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
_SOURCE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
# What Pillow's decoders raise on damaged files.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True, slots=True)
class ImageCounts:
    """Items by status after a run, and how many of the images this run had to copy."""

    ok: int
    missing: int
    unreadable: int
    copied: int


def attach_images(
    dataset_folder: Path, source_dir: Path, *, max_pixels: int = 50_000_000
) -> ImageCounts:
    """Copy each item's image from `source_dir` to ``images/`` and write ``images.jsonl``.

    An item's image is the file ``<item_id>.<extension>``, else the one with the base name of any
    of its image URLs, directly in `source_dir`; of several the first that decodes. A run can be
    repeated: images already there with the recorded content stay, others are taken again, and an
    item keeps a good image that `source_dir` does not have.

    Args:
        max_pixels: larger images count as unreadable (they are not decoded).

    Returns:
        Counts by status: "ok", "missing" (no such file), "unreadable" (no such file decodes).

    Raises:
        InputError: `dataset_folder` is no data set folder, or `source_dir` is no folder.
    """
    if not source_dir.is_dir():
        raise InputError(f"{source_dir} is not a folder: name the folder that holds the images.")
    items = read_items(dataset_folder)
    with images_lock(dataset_folder):
        return _attach(dataset_folder, items, _Sources(source_dir), max_pixels)


@contextmanager
def images_lock(dataset_folder: Path) -> Iterator[None]:
    """Keep other processes from changing the folder's images; ends with the process at the latest.

    Raises:
        InputError: another process holds it.
    """
    folder = os.open(dataset_folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"Another process is changing the images of {dataset_folder}. Wait for its end."
            ) from error
        yield
    finally:
        os.close(folder)


def _attach(
    dataset_folder: Path, items: list[dict[str, Any]], index: _Sources, max_pixels: int
) -> ImageCounts:
    before = read_records(dataset_folder)
    compact_records(dataset_folder, items)
    images = dataset_folder / "images"
    images.mkdir(exist_ok=True)
    copied = 0
    records: list[dict[str, Any]] = []
    for item in progress(items, desc="images", unit="item"):
        old = before.get(item["item_id"])
        old_is_good = is_good(dataset_folder, old)
        record = {"item_id": item["item_id"], "file": None, "sha256": None, "status": "missing"}
        for candidate in index.candidates(item):
            data = candidate.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            if old is not None and old_is_good and old["sha256"] == digest:
                record = old
                break
            extension = _decoded_extension(data, max_pixels)
            if extension is None:
                record["status"] = "unreadable"
                continue
            record["file"] = image_file(item["item_id"], extension)
            record |= {"sha256": digest, "status": "ok"}
            with atomic_path(dataset_folder / str(record["file"])) as temporary:
                temporary.write_bytes(data)
            copied += 1
            break
        if old is not None and record["status"] != "ok":
            # A good image stays, and so does what a download found out about the item.
            tried = record["status"] == "missing" and "attempts" in old and old["status"] != "ok"
            record = old if old_is_good or tried else record
        records.append(record)
    write_records(dataset_folder, records)
    statuses = [record["status"] for record in records]
    return ImageCounts(
        ok=statuses.count("ok"),
        missing=statuses.count("missing"),
        unreadable=statuses.count("unreadable"),
        copied=copied,
    )


def read_records(dataset_folder: Path) -> dict[str, dict[str, Any]]:
    """Return the records of ``images.jsonl`` by item id; empty where there is none.

    The journal of a download that was killed counts: its last, possibly cut, line does not.

    Raises:
        InputError: a line is not a record of an image.
    """
    records: dict[str, dict[str, Any]] = {}
    for name in ("images.jsonl", JOURNAL):
        path = dataset_folder / name
        if not path.is_file():
            continue
        rows = _journal_rows(path) if name == JOURNAL else read_jsonl(path)
        for number, record in rows:
            absent = [key for key in ("item_id", "file", "sha256", "status") if key not in record]
            if absent:
                raise InputError(f"{path}, line {number}: no key {absent[0]!r}.")
            records[record["item_id"]] = record
    return records


def _journal_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    complete, separator, _ = path.read_bytes().rpartition(b"\n")
    for number, line in enumerate((complete + separator).splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error}). Delete it.") from error
        yield number, record


def write_records(dataset_folder: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write ``images.jsonl`` atomically; a journal's content must be in `records`."""
    with atomic_path(dataset_folder / "images.jsonl") as temporary:
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        temporary.write_text("".join(lines), encoding="utf-8")
    (dataset_folder / JOURNAL).unlink(missing_ok=True)


def compact_records(dataset_folder: Path, items: Iterable[dict[str, Any]]) -> None:
    """Move a journal's records to ``images.jsonl``, in the order of `items`."""
    if (dataset_folder / JOURNAL).is_file():
        records = read_records(dataset_folder)
        ids = (item["item_id"] for item in items)
        write_records(dataset_folder, [records[i] for i in ids if i in records])


def read_items(dataset_folder: Path) -> list[dict[str, Any]]:
    """Return the objects of ``items.jsonl``.

    Raises:
        InputError: `dataset_folder` is no data set folder.
    """
    path = dataset_folder / "items.jsonl"
    if not path.is_file():
        raise InputError(
            f"{dataset_folder} is not a data set folder: it has no {path.name}. Convert a data set "
            "first."
        )
    return [record for _, record in read_jsonl(path)]


def image_file(item_id: str, extension: str) -> str:
    """The path of an item's image, relative to the data set folder."""
    name = quote(item_id, safe="")
    if len(name) > _LONGEST_NAME:
        name = hashlib.sha256(item_id.encode()).hexdigest()
    return f"images/{name}.{extension}"


class _Sources:
    """The image files of a folder by stem and by name."""

    def __init__(self, folder: Path) -> None:
        self._by_name: dict[str, Path] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()):
            if path.is_file():
                self._by_name[path.name] = path
                if path.suffix.lower() in _SOURCE_SUFFIXES:
                    self._by_stem.setdefault(path.stem, []).append(path)

    def candidates(self, item: dict[str, Any]) -> Iterator[Path]:
        """Yield the files that may be the item's image, best first."""
        yield from self._by_stem.get(item["item_id"], [])
        for url in item["image_urls"]:
            base = url.partition("?")[0].partition("#")[0].rpartition("/")[2]
            for name in dict.fromkeys((base, unquote(base))):
                if name in self._by_name:
                    yield self._by_name[name]


def _decoded_extension(data: bytes, max_pixels: int) -> str | None:
    """Return the extension of the format the bytes decode as, or None when they do not."""
    try:
        # No other decoder is tried: some of them start programs.
        with Image.open(BytesIO(data), formats=tuple(_EXTENSIONS)) as image:
            if image.width * image.height > max_pixels:
                return None
            image.load()
            return _EXTENSIONS.get(image.format or "")
    except _DECODE_ERRORS:
        # The file's status says so; a bad image must not end the run.
        return None


def is_good(dataset_folder: Path, record: dict[str, Any] | None) -> bool:
    """Whether a recorded image is still there with the recorded content."""
    if record is None or record["status"] != "ok":
        return False
    path = dataset_folder / str(record["file"])
    return path.is_file() and sha256_file(path) == record["sha256"]
