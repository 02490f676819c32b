"""Cleaning of published product text: entities, tags, page source, prices, category paths."""

from __future__ import annotations

import html
import re
from functools import lru_cache
from typing import Any

_HIDDEN_BLOCK = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<![A-Za-z][^<>]*>")
# A tag with attributes, a CSS rule, or a script statement: no product is called that.
_PAGE_SOURCE = re.compile(
    r"<[A-Za-z][\w-]*\s+[\w:-]+\s*=|\{[^{}]*:[^{}]*[;}]|\bvar\s+\w+\s*=|\bfunction\s*\w*\s*\("
)
_UNPAIRED_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\ufeff]")
# Nothing that any pattern above looks for, once entities are resolved: most published texts.
_PLAIN = re.compile(r"[^<{(=\x00-\x1f\x7f-\x9f\u200b\ufeff\ud800-\udfff]*")
_ENTITY = re.compile("&[#A-Za-z]")  # where `html.unescape` may find one
_NUMBER = r"\$?\s*(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)"
_PRICE = re.compile(rf"^\s*{_NUMBER}(?:\s*-\s*{_NUMBER})?\s*$")


def _unescape(text: str) -> str:
    # Published text is escaped up to twice ("&amp;amp;").
    for _ in range(3):
        if not _ENTITY.search(text):
            break
        text = html.unescape(text)
    return text


def clean_text(text: str) -> str:
    """Return `text` without entities, tags, scripts, comments and control characters.

    White space of any kind becomes single spaces. A "<" that opens no tag ("I <3 tea") stays.
    """
    return _clean(text, name=False)


def clean_name(text: str) -> str:
    """Clean a title, brand or category name; page source becomes the empty string.

    Page source is a scrap of a web page, such as ``<span class="a-size-medium"``.
    """
    return _clean(text, name=True)


# Brands and categories come again and again.
clean_known_name = lru_cache(maxsize=4096)(clean_name)


def _clean(text: str, *, name: bool) -> str:
    if "&" in text:
        text = _unescape(text)
    if not _PLAIN.fullmatch(text):
        text = _UNPAIRED_SURROGATE.sub("", text)
        if name and _PAGE_SOURCE.search(text):
            return ""
        for pattern in (_HIDDEN_BLOCK, _COMMENT, _TAG, _CONTROL):
            text = pattern.sub(" ", text)
    return " ".join(text.split())


def as_strings(value: Any) -> list[str]:
    """Return the strings of a field that is published now as a string, now as a list of them."""
    if isinstance(value, str):
        return [value]
    if value and isinstance(value, list):
        return [entry for entry in value if isinstance(entry, str)]
    return []


def clean_list(value: Any) -> list[str]:
    """Return the non-empty cleaned strings of a list field."""
    return [text for text in map(clean_text, as_strings(value)) if text]


def clean_names(value: Any) -> list[str]:
    """Return the non-empty cleaned names of a list field, page source left out."""
    return [text for text in map(clean_known_name, as_strings(value)) if text]


def parse_price(value: Any) -> float | None:
    """Return a price in the published currency, the lower end of a range, or None.

    ``"$1,250.00"`` → 1250.0, ``"$5.99 - $12.99"`` → 5.99, page source or words → None.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if 0 <= value < float("inf") else None
    if not isinstance(value, str):
        return None
    return _price_of_text(value)


@lru_cache(maxsize=4096)
def _price_of_text(text: str) -> float | None:
    match = _PRICE.match(text)
    return float(match.group(1).replace(",", "")) if match else None
