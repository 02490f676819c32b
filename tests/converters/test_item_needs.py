"""What SQL says of a metadata record is what Python says of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import duckdb
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataset_converters.item_needs import NEEDS, item_needs, needs_sql

KEYS = (
    "title",
    "brand",
    "store",
    "category",
    "categories",
    "image",
    "imageURL",
    "imageURLHighRes",
    "images",
)
BITS = [
    "a",
    "B 1",
    " ",
    "&amp; ",
    "&amp;",
    "lt;",
    "&lt;b&gt;",
    "<b>",
    "<i x=1",
    "{a:b;}",
    "var x =",
]
BITS += ["function (", "(", "\\", '"', "\u00e9", "\ud83d", "\u200b", "\x7f", "&nbsp;", "&#32;", "="]
TEXT = st.lists(st.sampled_from(BITS), max_size=4).map("".join)
ODD = st.sampled_from([None, 5, True, {"x": "y"}, [], [[]], [["a"]], [None], ["", "a"], [5, "a"]])
TEXTS = st.lists(TEXT, max_size=3) | ODD
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("title", "brand", "store"), TEXT | ODD),
        **dict.fromkeys(("category", "categories", "image", "imageURL"), TEXTS | TEXT),
        "imageURLHighRes": TEXTS | TEXT,
        "images": TEXTS | st.just([{"hi_res": "u"}]) | st.just({"large": ["u"]}),
    },
)


def as_published(value: Any) -> str:
    """JSON with half characters escaped, for no file can hold them."""
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("\ud83d", "\\ud83d")


@cache
def connection() -> duckdb.DuckDBPyConnection:
    """Of this file alone: what one statement leaves unread would stop another file's."""
    return duckdb.connect()


def selected(query: str, values: Sequence[Any]) -> tuple[Any, ...]:
    (row,) = connection().execute(query, values).fetchall()
    return tuple(row)


def by_sql(record: dict[str, Any]) -> tuple[bool | None, ...]:
    columns = ", ".join(f'?::VARCHAR AS "{key}"' for key in KEYS)
    texts = [as_published(record[key]) if key in record else None for key in KEYS]
    tests = ", ".join(needs_sql().values())
    return selected(f"SELECT {tests} FROM (SELECT {columns})", texts)


@settings(max_examples=400, deadline=None)
@given(RECORDS)
@example({"title": "a", "category": ["&amp; "], "imageURLHighRes": [""]})
def test_what_is_decided_is_decided_alike(record: dict[str, Any]) -> None:
    assert tuple(needs_sql()) == NEEDS
    for found, expected in zip(by_sql(record), item_needs(record), strict=True):
        assert found is None or found == expected


@pytest.mark.parametrize("large", [True, False])
def test_plain_records_are_decided(large: bool) -> None:
    record = {
        "title": "Mug (two) &amp; more, caf\u00e9",
        "brand": "",
        "category": ["Home &amp; Kitchen", "Mugs"],
        "imageURLHighRes": ["https://example.com/a.jpg"] if large else [],
    }
    text = json.dumps(record, ensure_ascii=False)
    assert "\\" not in text
    columns = ", ".join(f"'$.{key}'" for key in KEYS)
    row = selected(f"SELECT json_extract(?, [{columns}])", [text])
    names = ", ".join(f'?::VARCHAR AS "{key}"' for key in KEYS)
    tests = ", ".join(needs_sql().values())
    found = selected(f"SELECT {tests} FROM (SELECT {names})", list(row[0]))
    assert found == (True, False, True, large, False) == item_needs(record)
