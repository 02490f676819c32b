"""Tells which Amazon release two raw files belong to, by their first records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_converters.amazon_records import RELEASES, Release, meta_release, review_release
from dataset_converters.errors import InputError, nearest
from dataset_converters.json_records import parse_line
from dataset_converters.raw_file import LITERAL, RawFile

_HEAD = 1 << 20  # bytes in which a file's first record must come


@dataclass(frozen=True, slots=True)
class _Head:
    """The first usable record of a file."""

    path: Path
    line: int
    record: dict[str, Any]
    literal: bool

    def __str__(self) -> str:
        if self.literal:
            return f"{self.path}, line {self.line}: a Python dict literal"
        keys = ", ".join(sorted(self.record))
        return f"{self.path}, line {self.line}: a record with the keys {keys}"


def find_release(reviews: Path, meta: Path, wanted: str | None) -> Release:
    """Return the release of both files, or check that they can be read as the `wanted` one.

    Raises:
        InputError: unknown release, unreadable file, a file that is no reviews (no metadata) file
            of the release, or files of two releases.
    """
    if wanted is not None and wanted not in RELEASES:
        raise InputError(
            f"Unknown release '{wanted}'.{nearest(wanted, RELEASES)} Known: {', '.join(RELEASES)}."
        )
    review, item = _head(reviews), _head(meta)
    of_reviews = review_release(review.record)
    if of_reviews is None:
        raise _wrong(review, "reviews", wanted)
    of_meta = meta_release(item.record, literal=item.literal)
    if of_meta is None:
        raise _wrong(item, "metadata", wanted)
    if wanted is not None:
        release = RELEASES[wanted]
        if any(key not in review.record for key in release.review_keys):
            raise _wrong(review, "reviews", wanted, f" This looks like the {of_reviews} release.")
        if release.item not in item.record:
            raise _wrong(item, "metadata", wanted, f" This looks like the {of_meta} release.")
        return release
    if of_meta != of_reviews:
        raise InputError(
            f"The two files are of different releases. {review} looks like the {of_reviews} "
            f"release. {item} looks like the {of_meta} release. Convert two files of one release, "
            "or name it with release (--release) if both can be read as that one."
        )
    missing = [key for key in RELEASES[of_reviews].review_keys if key not in review.record]
    if missing:
        raise _wrong(review, "reviews", of_reviews)
    return RELEASES[of_reviews]


def _head(path: Path) -> _Head:
    raw = RawFile(path, allow_truncated=True, block=_HEAD, quiet=True)
    problem = "no line"
    for block in raw:
        if block.elements is not None:
            for number, element in enumerate(block.elements, start=1):
                if isinstance(element, dict):
                    return _Head(path, number, element, literal=False)
            problem = "the array has no object"
        for number, line in enumerate(block.read_lines(), start=1):
            text = line.strip()
            if not text:
                continue
            try:
                record = parse_line(text)
            except ValueError as error:
                problem = f"line {number}: {error}"
                continue
            if isinstance(record, dict):
                return _Head(path, number, record, literal=text[:2] == LITERAL)
            problem = f"line {number}: not a JSON object"
        break
    raise InputError(f"{path}: no record in its first {_HEAD >> 20} MB ({problem}).")


def _wrong(head: _Head, kind: str, wanted: str | None, guess: str = "") -> InputError:
    release = f"Amazon's {wanted} release" if wanted else "an Amazon release (2014, 2018, 2023)"
    if not guess and kind == "reviews" and meta_release(head.record, literal=head.literal):
        guess = " This looks like a metadata file: were the two files swapped?"
    elif not guess and kind == "metadata" and review_release(head.record):
        guess = " This looks like a reviews file: were the two files swapped?"
    keys = ", ".join(sorted(head.record))
    return InputError(
        f"{head.path}, line {head.line}: not {kind} of {release}: a record with the keys {keys}."
        f"{guess}"
    )
