"""Item content from the rows of a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from dataset_converters.folder import ItemContent
from dataset_converters.text import clean_list, clean_name, clean_names, clean_text, parse_price

_PATH_SEPARATOR = re.compile(r"\s*(?:\||>)\s*")
_URL_SEPARATOR = re.compile(r"[\s|]+")


def item_contents(
    rows: Iterable[tuple[int, dict[str, Any]]],
) -> tuple[dict[str, ItemContent], int]:
    """Clean item rows; of several of one item the fullest is kept, the first of equals."""
    contents: dict[str, ItemContent] = {}
    duplicates = 0
    for _, row in rows:
        content = _content(row)
        known = contents.get(content.item_id)
        duplicates += known is not None
        if known is None or content.filled > known.filled:
            contents[content.item_id] = content
    return contents, duplicates


def _content(row: Mapping[str, Any]) -> ItemContent:
    def text(key: str) -> str:
        value = row.get(key)
        return "" if value is None else " ".join(map(str, value if _is_list(value) else [value]))

    categories = row.get("category")
    path = _flat(categories) if _is_list(categories) else _PATH_SEPARATOR.split(text("category"))
    urls = row.get("image_url")
    listed = clean_list(_flat(urls)) if _is_list(urls) else _URL_SEPARATOR.split(text("image_url"))
    price = row.get("price")
    return ItemContent(
        item_id=row["item_id"],
        title=clean_name(text("title")),
        brand=clean_name(text("brand")),
        category_path=tuple(clean_names(path)),
        description=clean_text(text("description")),
        price=parse_price(price if isinstance(price, int | float | str) else text("price")),
        image_urls=tuple(dict.fromkeys(filter(None, listed))),
    )


def _is_list(value: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    return isinstance(value, list | tuple)


def _flat(values: Iterable[Any]) -> list[str]:
    """A list's strings; of lists in the list the first is taken, as of several category paths."""
    entries = [value for value in values if value is not None]
    inner = next((entry for entry in entries if _is_list(entry)), None)
    return [str(value) for value in (entries if inner is None else inner) if value is not None]
