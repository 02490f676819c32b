"""What a filter may ask of an item, told from its metadata record by Python or, quickly, by SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataset_converters.amazon_records import record_needs
from dataset_converters.database import quoted

NEEDS = ("has_title", "has_brand", "has_category", "large_image", "page_source")


def item_needs(record: Mapping[str, Any]) -> tuple[bool, ...]:
    """Return `NEEDS` of a record, as `item_content` has them.

    `page_source`: there is a title, but it is a scrap of a web page.
    """
    title = record.get("title")
    needs = record_needs(record)
    return (*needs, not needs[0] and isinstance(title, str) and bool(title.strip()))


def needs_sql() -> dict[str, str]:
    """Return the SQL of `NEEDS` over columns of JSON text; NULL where only `item_needs` can tell.

    A text is a name for sure if it has a letter or digit and nothing that cleaning looks for.
    """
    title, brand = '"title"', 'coalesce("brand", "store")'
    category, large = 'coalesce("categories", "category")', '"imageURLHighRes"'
    has_title = _decided(title, _EMPTY_TEXT, _text(title))
    return {
        "has_title": has_title,
        "has_brand": _decided(brand, _EMPTY_TEXT, _text(brand)),
        "has_category": _decided(category, _EMPTY_LIST, _texts(category)),
        # Without a list of large ones the small ones decide, or each image's own sizes.
        "large_image": f"""CASE WHEN "images" IS NOT NULL THEN NULL
            WHEN {large} = {_EMPTY_LIST} THEN false
            WHEN starts_with({large}, '["') THEN true END""",
        "page_source": f"CASE WHEN ({has_title}) IS NOT NULL THEN false END",
    }


_EMPTY_TEXT = quoted('""')
_EMPTY_LIST = quoted("[]")


def _decided(column: str, empty: str, sure: str) -> str:
    return f"CASE WHEN {column} IS NULL OR {column} = {empty} THEN false WHEN {sure} THEN true END"


def _text(column: str) -> str:
    return f"starts_with({column}, '\"') AND {_harmless(column)}"


def _texts(column: str) -> str:
    texts = quoted(r'\["[^"]*"(?:,\s*"[^"]*")*\]')
    return f"{_harmless(column)} AND regexp_full_match({column}, {texts})"


def _harmless(column: str) -> str:
    """Whether nothing in a JSON text is an escape, a tag, page source or an entity but "&amp; "."""
    marks = ("\\", "<", "{", "=", "function")
    tests = [f"NOT contains({column}, {quoted(mark)})" for mark in marks]
    entities = f"contains(replace({column}, '&amp; ', ''), '&')"
    return " AND ".join([*tests, f"NOT {entities}", f"regexp_matches({column}, '[0-9A-Za-z]')"])
