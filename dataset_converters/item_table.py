"""Loads the content of the reviewed items from a metadata file into a database table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_converters.amazon_records import Release, item_content
from dataset_converters.database import Database
from dataset_converters.item_content import ItemContent, item_cells
from dataset_converters.json_records import block_records
from dataset_converters.raw_file import Block, RawFile, read_ahead
from dataset_converters.reading import RejectionLog, SourceFile
from dataset_converters.review_table import IRREGULAR, Irregular, plain_ids, read_block, spooled

BLOCK = 8 << 20  # records of metadata are parsed a block at a time: ten times their text
FLAGS = ("title", "brand", "category", "description", "price", "image_url")
_Wanted = Iterator[tuple[int, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class MetadataRead:
    """What was read; `duplicates` counts further records of a reviewed item."""

    records: int
    duplicates: int
    page_source_titles: int
    source: SourceFile


@dataclass
class _Rows:
    """Rows of the table `records`, column by column."""

    columns: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, line: int, record: dict[str, Any], content: ItemContent) -> None:
        title = record.get("title")
        row = {
            "item_id": content.item_id,
            "line": line,
            "filled": content.filled,
            "large_image": content.has_large_image,
            "page_source": not content.title and isinstance(title, str) and bool(title.strip()),
            "has_title": bool(content.title),
            "has_brand": bool(content.brand),
            "has_category": bool(content.category),
            "has_description": bool(content.description),
            "has_price": content.price is not None,
            "has_image_url": bool(content.image_urls),
            "content": content.to_line(),
            "cells": item_cells(content),
        }
        for name, value in row.items():
            self.columns.setdefault(name, []).append(value)


def read_metadata(
    path: Path,
    release: Release,
    database: Database,
    rejections: RejectionLog,
    *,
    allow_truncated: bool = False,
    exact: bool = False,
) -> MetadataRead:
    """Fill the table `items` with the cleaned content of every item of `reviews` that has some.

    Columns: `item_id`; `has_<field>` for each of `FLAGS` and `large_image`; `content`, the item's
    line in ``items.jsonl``; `cells`, its row in the ``.item`` file.

    Of several records of one item the one with the most content fields filled after cleaning is
    kept, the first of equals. Blocks are read as in `read_reviews`.

    Raises:
        InputError: see `RawFile`; too many lines unusable.
    """
    database.execute("CREATE TABLE wanted AS SELECT DISTINCT item_id FROM reviews")
    flags = "".join(f", has_{flag} BOOLEAN" for flag in FLAGS)
    database.execute(
        "CREATE TABLE records (item_id VARCHAR, line BIGINT, filled INTEGER, large_image BOOLEAN, "
        f"page_source BOOLEAN{flags}, content VARCHAR, cells VARCHAR)"
    )
    raw = RawFile(path, allow_truncated=allow_truncated, block=BLOCK)
    records = 0
    with database.one_thread():
        for block, spool in read_ahead(spooled(raw, database.folder)):
            wanted: _Wanted | None = None
            if block.quick and not exact:
                wanted = _read_quickly(block, spool, release, database)
            if wanted is None:
                read, wanted = _read_exactly(block, path, release, database, rejections)
                records += read
            else:
                records += block.lines
            _append(wanted, release, database)
    rejections.check(path, max(raw.lines, 1))
    duplicates, page_source = _keep_best(database)
    return MetadataRead(records, duplicates, page_source, raw.source)


def _append(wanted: _Wanted, release: Release, database: Database) -> None:
    rows = _Rows()
    for line, record in wanted:
        rows.add(line, record, item_content(record, release))
    if rows.columns:
        database.append("records", rows.columns)


def _read_quickly(
    block: Block, spool: Path, release: Release, database: Database
) -> _Wanted | None:
    """Return the wanted records of a block DuckDB can read as a whole, else None."""
    keys = release.meta_keys
    try:
        database.replace("block", f"SELECT * FROM {read_block(spool, keys)}")
        plain = plain_ids(f'"{release.item}"')
        lines, regular = database.row(f"SELECT count(*), count(*) FILTER ({plain}) FROM block")
        if not lines == regular == block.lines:
            raise Irregular
    except IRREGULAR:
        return None
    columns = ", ".join(f'"{key}"' for key in keys)
    rows = database.execute(
        f'SELECT rowid, {columns} FROM block WHERE "{release.item}"[2:-2] IN '
        "(SELECT item_id FROM wanted) ORDER BY rowid"
    )
    return ((block.first_line + row[0], _record(keys, row[1:])) for row in rows)


def _record(keys: Sequence[str], values: Iterable[str | None]) -> dict[str, Any]:
    pairs = zip(keys, values, strict=True)
    return {key: json.loads(value) for key, value in pairs if value is not None}


def _read_exactly(
    block: Block, path: Path, release: Release, database: Database, rejections: RejectionLog
) -> tuple[int, _Wanted]:
    """Return the number of records of a block, and the wanted ones."""
    found: list[tuple[int, str, dict[str, Any]]] = []
    records = 0
    for number, record in block_records(block, path, rejections, database, release.meta_keys):
        records += 1
        item = record.get(release.item)
        if isinstance(item, str) and item:
            # A pair with half a character in it is no reviewed item, and no text for a database.
            if item.encode("utf-8", "ignore").decode() == item:
                found.append((number, item, record))
        else:
            problem = f"'{release.item}' is missing or no text"
            rejections.add_record(path, number, problem, record)
    database.execute("CREATE OR REPLACE TABLE asked (item_id VARCHAR)")
    database.append("asked", {"item_id": [item for _, item, _ in found]})
    rows = database.execute(
        "SELECT item_id FROM asked WHERE item_id IN (SELECT item_id FROM wanted)"
    )
    reviewed = {row[0] for row in rows}
    return records, ((number, record) for number, item, record in found if item in reviewed)


def _keep_best(database: Database) -> tuple[int, int]:
    """Make `items` of `records`; return the number of duplicates and of page-source titles."""
    database.execute(
        "CREATE TABLE best AS SELECT item_id, arg_min(line, (-filled, line)) AS line, "
        "bool_or(page_source) AS page_source FROM records GROUP BY item_id"
    )
    duplicates = database.value(
        "SELECT (SELECT count(*) FROM records) - (SELECT count(*) FROM best)"
    )
    flags = "".join(f", has_{flag}" for flag in FLAGS)
    database.execute(
        f"CREATE TABLE items AS SELECT item_id, large_image{flags}, content, cells, "
        "best.page_source FROM records JOIN best USING (item_id, line)"
    )
    page_source = database.value("SELECT count(*) FROM items WHERE page_source AND NOT has_title")
    for table in ("records", "best"):
        database.execute(f"DROP TABLE {table}")
    return int(duplicates), int(page_source)
