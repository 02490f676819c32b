"""The records of Amazon's releases of 2014, 2018 and 2023: keys, recognition, item content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataset_converters.item_content import ItemContent
from dataset_converters.text import (
    as_strings,
    clean_known_name,
    clean_list,
    clean_name,
    clean_names,
    clean_text,
    parse_price,
)


@dataclass(frozen=True, slots=True)
class Release:
    """Where a release keeps what a review is about.

    Attributes:
        user, item, time: keys of a review; `item` is also the id of a metadata record. An item of
            2023 is the product (`parent_asin`), as in its metadata, not the variant bought.
        ticks: units of the time stamp in a second.
        earliest, latest: time stamps outside [earliest, latest) are in another unit.
    """

    name: str
    user: str
    item: str
    time: str
    ticks: int
    earliest: int
    latest: int

    @property
    def review_keys(self) -> tuple[str, str, str]:
        return self.user, self.item, self.time

    @property
    def meta_keys(self) -> tuple[str, ...]:
        """The id's key, then every key that item content is made from."""
        return self.item, *_CONTENT_KEYS


def _old(name: str) -> Release:
    return Release(name, "reviewerID", "asin", "unixReviewTime", 1, 0, 10**11)


RELEASES = {
    "2014": _old("2014"),
    "2018": _old("2018"),
    "2023": Release("2023", "user_id", "parent_asin", "timestamp", 1000, 10**11, 10**14),
}
_CONTENT_KEYS = (
    "title",
    "brand",
    "store",
    "category",
    "categories",
    "description",
    "feature",
    "features",
    "price",
    "imUrl",
    "image",
    "imageURL",
    "imageURLHighRes",
    "images",
)


_SIZES = ("hi_res", "large", "thumb")


def review_release(record: Mapping[str, Any]) -> str | None:
    """Name the release a review looks like, None where it looks like no review."""
    if "reviewerID" in record and "asin" in record:
        return "2014" if "helpful" in record and "verified" not in record else "2018"
    return "2023" if "user_id" in record and "parent_asin" in record else None


def meta_release(record: Mapping[str, Any], *, literal: bool) -> str | None:
    """Name the release a metadata record looks like, None where it looks like no metadata.

    `literal`: the record was a Python dict literal.
    """
    if review_release(record) is not None:
        return None
    if "parent_asin" in record:
        return "2023" if "title" in record else None
    if "asin" not in record:
        return None
    old = literal or not {"imUrl", "categories", "salesRank", "related"}.isdisjoint(record)
    return "2014" if old else ("2018" if "title" in record else None)


def content_record(text: str, release: Release) -> dict[str, Any]:
    """Return a metadata record of the values of `meta_keys`, given as a JSON array.

    What the record lacked is None, which counts as absent.
    """
    return dict(zip(release.meta_keys, json.loads(text), strict=True))


def item_content(record: Mapping[str, Any], release: Release = RELEASES["2018"]) -> ItemContent:
    """Clean one metadata record of any release, with a text as its id.

    A key with null counts as absent.

    The brand of 2023 is its `store`. Of several category paths (2014) the first is used. Images are
    the largest published: `imageURLHighRes` before `imageURL`, `hi_res` before `large` and `thumb`.
    """
    features = record.get("features")
    images, large = _images(record)
    urls, smaller = _addresses(images)
    return ItemContent(
        item_id=record[release.item],
        title=clean_name(_text(record.get("title"))),
        brand=_brand(record),
        category_path=tuple(clean_names(_category_path(record))),
        description=clean_text(" ".join(as_strings(record.get("description")))),
        features=tuple(clean_list(record.get("feature") if features is None else features)),
        price=parse_price(record.get("price")),
        image_urls=urls,
        has_large_image=large,
        smaller_image_urls=smaller,
    )


def record_needs(record: Mapping[str, Any]) -> tuple[bool, bool, bool, bool]:
    """Return whether `item_content` gives a title, a brand, a category and a large image.

    That is what a filter may ask for, in a third of the time.
    """
    return (
        bool(clean_name(_text(record.get("title")))),
        bool(_brand(record)),
        bool(clean_names(_category_path(record))),
        _images(record)[1],
    )


def _brand(record: Mapping[str, Any]) -> str:
    brand = record.get("brand")
    return clean_known_name(_text(record.get("store") if brand is None else brand))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _url(text: str) -> str:
    return "".join(text.encode("utf-8", "ignore").decode().split())


def _category_path(record: Mapping[str, Any]) -> Any:
    categories = record.get("categories")
    if categories is None:
        return record.get("category")
    if isinstance(categories, list) and categories and isinstance(categories[0], list):
        return categories[0]
    return categories


def _images(record: Mapping[str, Any]) -> tuple[list[list[str]], bool]:
    """Return each image's addresses, largest size first, and whether the source calls one large.

    Where it makes no difference between sizes every image counts as large.
    """
    published = record.get("images")
    if published is not None:
        return _images_of_2023(published)
    large = as_strings(record.get("imageURLHighRes"))
    small = as_strings(record.get("imageURL")) or as_strings(record.get("image"))
    small = small or as_strings(record.get("imUrl"))
    if not large:
        return [[url] for url in small], bool(small) and record.get("imageURLHighRes") is None
    if len(small) != len(large):  # which is whose thumbnail is not told then
        small = large
    return [[url, thumbnail] for url, thumbnail in zip(large, small, strict=True)], True


def _images_of_2023(published: Any) -> tuple[list[list[str]], bool]:
    if isinstance(published, dict):  # one list a size instead of one object an image
        sizes = [_strings_or_gaps(published.get(size)) for size in _SIZES]
        count = max(map(len, sizes))
        rows = [[size[k] if k < len(size) else "" for size in sizes] for k in range(count)]
    elif isinstance(published, list):
        images = [image for image in published if isinstance(image, dict)]
        rows = [[_text(image.get(size)) for size in _SIZES] for image in images]
    else:
        return [], False
    return rows, any(row[0] for row in rows)


def _addresses(images: list[list[str]]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the largest address of each image, each once, and the smaller ones of each."""
    found: dict[str, tuple[str, ...]] = {}
    for image in images:
        sizes = list(dict.fromkeys(filter(None, map(_url, image))))
        if sizes:
            found.setdefault(sizes[0], tuple(sizes[1:]))
    return tuple(found), tuple(found.values()) if any(found.values()) else ()


def _strings_or_gaps(value: Any) -> list[str]:
    """Return a list's entries, the empty string for each that is no string."""
    return [_text(entry) for entry in value] if isinstance(value, list) else []
