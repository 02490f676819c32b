"""Loads the metadata of the reviewed items from a file into a database table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_converters.amazon_records import Release, content_record, item_content
from dataset_converters.database import Database
from dataset_converters.item_needs import NEEDS, item_needs, needs_sql
from dataset_converters.json_records import block_records
from dataset_converters.raw_file import Block, RawFile, read_ahead
from dataset_converters.reading import RejectionLog, SourceFile
from dataset_converters.review_table import IRREGULAR, Irregular, plain_id, read_block

BLOCK = 16 << 20  # records of metadata are parsed a block at a time: ten times their text
_COLUMNS = ("item_id", "line", *NEEDS, "record")
_Wanted = Iterator[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class MetadataRead:
    """What was read; `duplicates` counts further records of a reviewed item."""

    records: int
    duplicates: int
    page_source_titles: int
    source: SourceFile


def read_metadata(
    path: Path,
    release: Release,
    database: Database,
    rejections: RejectionLog,
    *,
    allow_truncated: bool = False,
    exact: bool = False,
) -> MetadataRead:
    """Fill the table `items` with a metadata record of every item of `reviews` that has some.

    Columns: `item_id`, as in `reviews`; `has_title`, `has_brand`, `has_category`, `large_image`;
    `record`, the values of the release's `meta_keys` as a JSON array. Only what a filter may ask
    for is cleaned here, the rest by `make_rows` for the items that remain.

    Of several records of one item the one with the most content fields filled after cleaning is
    kept, the first of equals. Blocks are read as in `read_reviews`.

    Raises:
        InputError: see `RawFile`; too many lines unusable.
    """
    flags = "".join(f", {flag} BOOLEAN" for flag in NEEDS)
    database.execute(f"CREATE TABLE records (item_id VARCHAR, line BIGINT{flags}, record VARCHAR)")
    raw = RawFile(path, block=BLOCK, folder=database.folder, allow_truncated=allow_truncated)
    records = 0
    with database.one_thread():
        for block in read_ahead(iter(raw)):
            wanted: _Wanted | None = None
            if block.quick and not exact:
                wanted = _read_quickly(block, release, database)
            if wanted is None:
                read, wanted = _read_exactly(block, path, release, database, rejections)
                records += read
            else:
                records += block.lines
            rows = [_row(line, text, release) for line, text in wanted]
            if rows:
                database.append(
                    "records", dict(zip(_COLUMNS, zip(*rows, strict=True), strict=True))
                )
    rejections.check(path, max(raw.lines, 1))
    duplicates, page_source = _keep_best(release, database)
    return MetadataRead(records, duplicates, page_source, raw.source)


def write_records(database: Database, ids: str, path: Path) -> None:
    """Write the records of the items in the table `ids` (item_id) as lines, sorted by id.

    A line is an item's id, a tab, and its record, or nothing where it has none.
    """
    database.write_lines(
        f"SELECT n.name || chr(9) || coalesce(i.record, '') FROM {ids} o "
        "JOIN item_names n ON o.item_id = n.key LEFT JOIN items i ON o.item_id = i.item_id "
        "ORDER BY n.name",
        path,
    )


def _row(line: int, text: str, release: Release) -> tuple[Any, ...]:
    """Return a row of the table `records`: one value for each of `_COLUMNS`."""
    record = content_record(text, release)
    return (record[release.item], line, *item_needs(record), text)


def _read_quickly(block: Block, release: Release, database: Database) -> _Wanted | None:
    """Read the wanted records of a block DuckDB can read as a whole, else return None.

    Records whose needs SQL can tell go to the table `records`; the others are returned.
    """
    keys = release.meta_keys
    item = f'"{release.item}"'
    try:
        database.replace("block", f"SELECT * FROM {read_block(block, keys)}")
        lines, regular = database.row(
            f"SELECT count(*), count(*) FILTER ({plain_id(item)}) FROM block"
        )
        if not lines == regular == block.lines:
            raise Irregular
    except IRREGULAR:
        return None
    # One array a record, parsed by one call: a call for each value takes longer than the values.
    values = ", ".join(f"coalesce(\"{key}\", 'null')" for key in keys)
    needs = ", ".join(f"{test} AS {need}" for need, test in needs_sql().items())
    database.replace(
        "block",
        f"SELECT {item}[2:-2] AS item_id, {block.first_line} + rowid AS line, {needs}, "
        f"'[' || concat_ws(',', {values}) || ']' AS record "
        f"FROM block WHERE {item}[2:-2] IN (SELECT name FROM item_names) ORDER BY rowid",
    )
    decided = " AND ".join(f"{need} IS NOT NULL" for need in NEEDS)
    database.execute(f"INSERT INTO records SELECT * FROM block WHERE {decided}")
    rows = database.execute(f"SELECT line, record FROM block WHERE NOT ({decided})")
    return iter(rows)


def _read_exactly(
    block: Block, path: Path, release: Release, database: Database, rejections: RejectionLog
) -> tuple[int, _Wanted]:
    """Return the number of records of a block, and the wanted ones."""
    found: list[tuple[int, str, str]] = []
    records = 0
    for number, record in block_records(block, path, rejections, database, release.meta_keys):
        records += 1
        item = record.get(release.item)
        if isinstance(item, str) and item:
            # A pair with half a character in it is no reviewed item, and no text for a database.
            if item.encode("utf-8", "ignore").decode() == item:
                values = [_plain(record.get(key)) for key in release.meta_keys]
                found.append((number, item, json.dumps(values)))
        else:
            problem = f"'{release.item}' is missing or no text"
            rejections.add_record(path, number, problem, record)
    database.execute("CREATE OR REPLACE TABLE asked (item_id VARCHAR)")
    database.append("asked", {"item_id": [item for _, item, _ in found]})
    rows = database.execute(
        "SELECT item_id FROM asked WHERE item_id IN (SELECT name FROM item_names)"
    )
    reviewed = {row[0] for row in rows}
    return records, ((number, text) for number, item, text in found if item in reviewed)


def _plain(value: Any, depth: int = 3) -> Any:
    """Return a value as far as JSON has words for it and item content is made of it.

    None takes the place of the rest: a literal's sets and tuples, and what lies deeper than the
    addresses in a list of images.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if depth and isinstance(value, list):
        return [_plain(entry, depth - 1) for entry in value]
    if depth and isinstance(value, dict):
        return {k: _plain(v, depth - 1) for k, v in value.items() if isinstance(k, str)}
    return None


def _keep_best(release: Release, database: Database) -> tuple[int, int]:
    """Make `items` of `records`; return the number of duplicates and of page-source titles."""
    database.execute(
        "CREATE TABLE best AS SELECT item_id, min(line) AS line, count(*) AS n, "
        "bool_or(page_source) AS page_source FROM records GROUP BY item_id"
    )
    duplicates = database.value("SELECT coalesce(sum(n - 1), 0) FROM best")
    if duplicates:
        _look_at_duplicates(release, database)
    database.execute(
        f"CREATE TABLE items AS SELECT n.key AS item_id, {', '.join(NEEDS[:-1])}, "
        "record, best.page_source FROM records JOIN best USING (item_id, line) "
        "JOIN item_names n ON item_id = n.name"
    )
    page_source = database.value("SELECT count(*) FROM items WHERE page_source AND NOT has_title")
    for table in ("records", "best"):
        database.execute(f"DROP TABLE {table}")
    return int(duplicates), int(page_source)


def _look_at_duplicates(release: Release, database: Database) -> None:
    """Set the line in `best` to that of the record with the most filled fields."""
    database.execute("CREATE TABLE filled (item_id VARCHAR, line BIGINT, n INTEGER)")
    query = (
        "SELECT item_id, line, record FROM records "
        "WHERE item_id IN (SELECT item_id FROM best WHERE n > 1)"
    )
    for rows in database.stream(query):
        ids, lines, texts = zip(*rows, strict=True)
        filled = [item_content(content_record(text, release), release).filled for text in texts]
        database.append("filled", {"item_id": ids, "line": lines, "n": filled})
    database.execute(
        "UPDATE best SET line = chosen.line FROM (SELECT item_id, "
        "arg_min(line, (-n, line)) AS line FROM filled GROUP BY item_id) AS chosen "
        "WHERE best.item_id = chosen.item_id"
    )
    database.execute("DROP TABLE filled")
