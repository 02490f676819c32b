"""Reads the raw files of Amazon's 2018 release: reviews to arrays, metadata to item content."""

from __future__ import annotations

from array import array
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataset_converters.errors import InputError
from dataset_converters.folder import ItemContent, check_id
from dataset_converters.reading import JsonLines, RejectionLog, SourceFile
from dataset_converters.sessions import Interactions
from dataset_converters.text import (
    as_strings,
    clean_list,
    clean_name,
    clean_names,
    clean_text,
    parse_price,
)

_REVIEW_KEYS = ("reviewerID", "asin", "unixReviewTime")
_META_KEYS = ("asin", "title")
_LATEST = 10**11  # seconds; above it a stamp is in milliseconds, as in the 2023 release


@dataclass(frozen=True, slots=True)
class ReviewsRead:
    """The reviews as arrays, and what was read."""

    interactions: Interactions
    lines: int
    source: SourceFile


@dataclass(frozen=True, slots=True)
class MetadataRead:
    """Content of the wanted items; `duplicates` counts further records of a wanted item."""

    contents: dict[str, ItemContent]
    records: int
    duplicates: int
    page_source_titles: int
    source: SourceFile


def _guess(keys: Collection[str]) -> str:
    """Name what a record with these keys looks like."""
    if "parent_asin" in keys:
        return " This looks like the 2023 release."
    if "helpful" in keys and "verified" not in keys:
        return " This looks like reviews of the 2014 release."
    if "imUrl" in keys:
        return " This looks like metadata of the 2014 release."
    if "reviewerID" in keys:
        return " This looks like a reviews file: were the two files swapped?"
    if "category" in keys and "title" in keys:
        return " This looks like a metadata file: were the two files swapped?"
    return ""


def _check_release(path: Path, line: int, record: dict[str, Any], kind: str) -> None:
    """Refuse a file whose first record is not of the kind and release that was asked for."""
    required = _REVIEW_KEYS if kind == "reviews" else _META_KEYS
    missing = [key for key in required if key not in record]
    other = record.get("reviewerID") is not None if kind == "metadata" else False
    old = "helpful" in record and "verified" not in record
    if missing or other or old or "parent_asin" in record:
        without = f" without {', '.join(missing)}" if missing else ""
        raise InputError(
            f"{path}, line {line}: not {kind} of Amazon's 2018 release: a record{without} with the "
            f"keys {', '.join(sorted(record))}.{_guess(record)}"
        )


class _Ids:
    """Gives each id an index, in order of first appearance."""

    def __init__(self, kind: str, path: Path) -> None:
        self._kind = kind
        self._path = path
        self._index: dict[str, int] = {}

    def index(self, value: str, line: int) -> int:
        found = self._index.get(value)
        if found is None:
            check_id(value, self._kind, f"{self._path}, line {line}")
            found = self._index[value] = len(self._index)
        return found

    def all(self) -> list[str]:
        return list(self._index)


def _review_problem(record: dict[str, Any]) -> str | None:
    """Say why a review cannot be used, or None."""
    for key in ("reviewerID", "asin"):
        if not isinstance(record.get(key), str) or not record[key]:
            return f"'{key}' is missing or no text"
    time = record.get("unixReviewTime")
    if isinstance(time, bool) or not isinstance(time, int):
        return "'unixReviewTime' is missing or no whole number of seconds"
    if not 0 <= time < _LATEST:
        return f"'unixReviewTime' {time} is not in seconds since 1970"
    return None


def read_reviews(
    path: Path, rejections: RejectionLog, *, allow_truncated: bool = False
) -> ReviewsRead:
    """Read users, items and times of a reviews file; no review text is kept.

    Raises:
        InputError: see `JsonLines`; the first record is no 2018 review; an id has white space;
            no review at all.
    """
    lines = JsonLines(path, rejections, allow_truncated=allow_truncated)
    users, items = _Ids("reviewerID", path), _Ids("asin", path)
    columns = array("q"), array("q"), array("q")
    for count, (number, record) in enumerate(lines):
        if count == 0:
            _check_release(path, number, record, "reviews")
        problem = _review_problem(record)
        if problem is not None:
            lines.reject(number, problem, record)
            continue
        columns[0].append(users.index(record["reviewerID"], number))
        columns[1].append(items.index(record["asin"], number))
        columns[2].append(record["unixReviewTime"])
    if not columns[0]:
        raise InputError(f"{path} has no review in it ({lines.lines} lines).")
    arrays = [np.frombuffer(column, dtype=np.int64) for column in columns]
    interactions = Interactions(users.all(), items.all(), *arrays)
    return ReviewsRead(interactions, lines.lines, lines.source)


def item_content(record: dict[str, Any]) -> ItemContent:
    """Clean one metadata record, of either published version.

    Version 1 has `image`; version 2 has `imageURL` and `imageURLHighRes`, of which the larger
    images are preferred.
    """
    large = as_strings(record.get("imageURLHighRes"))
    small = as_strings(record.get("imageURL")) or as_strings(record.get("image"))
    urls = ["".join(url.encode("utf-8", "ignore").decode().split()) for url in large or small]
    return ItemContent(
        item_id=record["asin"],
        title=clean_name(_text(record.get("title"))),
        brand=clean_name(_text(record.get("brand"))),
        category_path=tuple(clean_names(record.get("category"))),
        description=clean_text(" ".join(as_strings(record.get("description")))),
        features=tuple(clean_list(record.get("feature"))),
        price=parse_price(record.get("price")),
        image_urls=tuple(dict.fromkeys(filter(None, urls))),
        has_large_image=bool(large if "imageURLHighRes" in record else small),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def read_metadata(
    path: Path, wanted: Collection[str], rejections: RejectionLog, *, allow_truncated: bool = False
) -> MetadataRead:
    """Read the content of the `wanted` items.

    Of several records of one item the one with the most content fields filled after cleaning is
    kept, the first of equals.

    Raises:
        InputError: see `JsonLines`; the first record is no 2018 metadata.
    """
    lines = JsonLines(path, rejections, allow_truncated=allow_truncated)
    contents: dict[str, ItemContent] = {}
    duplicates = records = 0
    page_source: set[str] = set()
    for count, (number, record) in enumerate(lines):
        if count == 0:
            _check_release(path, number, record, "metadata")
        records += 1
        asin = record.get("asin")
        if not isinstance(asin, str) or not asin:
            lines.reject(number, "'asin' is missing or no text", record)
            continue
        if asin not in wanted:
            continue
        content = item_content(record)
        if not content.title and _text(record.get("title")).strip():
            page_source.add(asin)
        known = contents.get(asin)
        duplicates += known is not None
        if known is None or content.filled > known.filled:
            contents[asin] = content
    titleless = sum(not contents[asin].title for asin in page_source)
    # Strings repeat a lot across items: keep one copy of each brand and category name.
    shared: dict[str, str] = {}
    for asin, content in contents.items():
        contents[asin] = replace(
            content,
            brand=shared.setdefault(content.brand, content.brand),
            category_path=tuple(shared.setdefault(c, c) for c in content.category_path),
        )
    return MetadataRead(contents, records, duplicates, titleless, lines.source)
