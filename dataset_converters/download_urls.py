"""The addresses of an item's image, best first."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

_MOST = 12  # addresses of one item; a dead item must not cost a hundred requests
# Amazon's image addresses: /images/I/<id>._<what to do with it>_.jpg
_AMAZON_HOST = re.compile(r"(.*[.-])?(media-amazon|images-amazon)\.com", re.IGNORECASE)
_AMAZON_PATH = re.compile(r"(?P<stem>/images/[A-Z]/[^/.]+)(?:\._[^/]*_)?(?P<end>\.[A-Za-z]+)")
_AMAZON_SIZES = ("", "._SL500_", "._SL160_")


def candidates(item: dict[str, Any]) -> list[str]:
    """Return the addresses to try for an item of ``items.jsonl``, each once.

    For each image the largest size, its smaller sizes, then the next image. `image_urls` has the
    largest ones; the optional `smaller_image_urls` has, for each of them, a list of smaller ones.
    Where it has none, Amazon's own addresses are also asked for at 500 and 160 pixels.
    """
    smaller = item.get("smaller_image_urls") or []
    found: dict[str, None] = {}
    for position, url in enumerate(item.get("image_urls") or []):
        found.setdefault(url)
        listed = smaller[position] if position < len(smaller) else []
        for other in listed or _amazon_sizes(url):
            found.setdefault(other)
    return list(found)[:_MOST]


def _amazon_sizes(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return []  # not an address; asking for it will say so
    match = _AMAZON_PATH.fullmatch(parts.path)
    if match is None or not _AMAZON_HOST.fullmatch(host):
        return []
    stem, end = match["stem"], match["end"]
    return [parts._replace(path=f"{stem}{size}{end}").geturl() for size in _AMAZON_SIZES]
