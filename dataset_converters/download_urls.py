"""The addresses of an item's image, best first."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from dataset_converters.errors import InputError

_MOST = 12  # addresses of one item; a dead item must not cost a hundred requests
# Amazon's image addresses: /images/I/<id>._<what to do with it>_.jpg; SL1500 reduces the longer
# side to 1500 pixels, and without any such word it is the image as it was uploaded.
_AMAZON_HOST = re.compile(r"(.*[.-])?(media-amazon|images-amazon)\.com", re.IGNORECASE)
_AMAZON_PATH = re.compile(r"(?P<stem>/images/[A-Z]/[^/.]+)(?P<how>\._[^/]*_)?(?P<end>\.[A-Za-z]+)")
_AMAZON_LARGE = re.compile(r"\._(?:AC_)?[SU][LXY](\d+)_")
_AMAZON_SIZES = ("", "._SL500_", "._SL160_")
_LARGE = 500  # pixels


def candidates(item: dict[str, Any]) -> list[str]:
    """Return the addresses to try for an item of ``items.jsonl``, each once.

    For each image the largest size, its smaller sizes, then the next image. `image_urls` has the
    source's largest ones; the optional `smaller_image_urls` has a list of smaller ones for each of
    them. Amazon's own addresses are also asked for as uploaded (first, where the source only names
    a thumbnail) and at 500 and 160 pixels, before the smallest that is listed: a thumbnail of 38
    pixels.

    Raises:
        InputError: `image_urls` or a list in `smaller_image_urls` is no list of strings.
    """
    smaller = item.get("smaller_image_urls") or []
    found: dict[str, None] = {}
    for position, url in enumerate(_strings(item, item.get("image_urls"))):
        listed = _strings(item, smaller[position]) if position < len(smaller) else []
        sizes = _amazon_sizes(url)
        if listed:
            sizes = [url, *listed[:-1], *sizes, listed[-1]]
        for other in sizes or [url]:
            found.setdefault(other)
    return list(found)[:_MOST]


def _strings(item: dict[str, Any], value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise InputError(
            f"items.jsonl, item '{item.get('item_id')}': image addresses must be lists of strings, "
            f"not {str(value)[:80]!r}."
        )
    return value


def _amazon_sizes(url: str) -> list[str]:
    """All sizes of an image of Amazon's, the given one among them; empty for other addresses."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return []  # not an address; asking for it will say so
    match = _AMAZON_PATH.fullmatch(parts.path)
    if match is None or not _AMAZON_HOST.fullmatch(host):
        return []
    stem, how, end = match["stem"], match["how"] or "", match["end"]
    paths = [f"{stem}{size}{end}" for size in _AMAZON_SIZES]
    size = _AMAZON_LARGE.fullmatch(how)
    large = not how or (size is not None and int(size[1]) >= _LARGE)
    if parts.path not in paths:
        paths.insert(0 if large else 2, parts.path)
    return [parts._replace(path=path).geturl() for path in paths]
