"""Loads the reviews of a raw file into a database table, most of them without touching Python.

Ids are compared and joined by 64-bit hashes, several times faster than as texts.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import duckdb

from dataset_converters.amazon_records import Release
from dataset_converters.database import Database, quoted, quoted_list
from dataset_converters.errors import InputError
from dataset_converters.folder import READ_AS_MISSING, check_id
from dataset_converters.json_records import block_records
from dataset_converters.raw_file import Block, RawFile, read_ahead
from dataset_converters.reading import RejectionLog, SourceFile

# Bytes of lines handled at once. DuckDB copies the rows of a statement into its table unless they
# fill a row group (122,880), which it takes over as it is; a review has 200 to 600 bytes.
BLOCK = 96 << 20
# DuckDB reads pieces of twice this size: they stay in the processor's cache. A block with a longer
# line is irregular.
_LONGEST_LINE = 1 << 20
# Of an id's quoted text, in SQL. Two ids may have one hash; `_name` looks.
_HASH = "hash({})"


class OddIds(Exception):
    """Ids that may be no plain ones, in reviews that were read without a look at each."""


class Irregular(Exception):
    """A block whose lines are not all plain records: it needs the exact reading."""


IRREGULAR = (Irregular, duckdb.DataError, duckdb.InvalidInputException)


def read_block(block: Block, keys: tuple[str, ...]) -> str:
    """Return the SQL table of a block of lines in a file.

    It has the raw JSON text of `keys`, NULL where a record lacks one.
    """
    columns = ", ".join(f"{quoted(key)}: 'JSON'" for key in keys)
    texts = ", ".join(f'"{key}"::VARCHAR AS "{key}"' for key in keys)
    return (
        f"(SELECT {texts} FROM read_json({quoted(str(block.store))}, format='newline_delimited', "
        f"compression='uncompressed', maximum_object_size={_LONGEST_LINE}, "
        f"columns={{{columns}}}))"
    )


def _is_text(column: str) -> str:
    return f"starts_with({column}, '\"')"


def plain_id(column: str) -> str:
    """Return the SQL test that a column of JSON text is a string RecBole's files can carry.

    ASCII without spaces and escapes only: other ids may be fine too, but are left to `check_id`.
    Written without a regular expression, which takes twice as long; CASE spares most ids the list.
    """
    missing = [f'"{word}"' for word in sorted(READ_AS_MISSING)]
    longest = max(map(len, missing))
    return (
        f"{_is_text(column)} AND strlen({column}) = length({column}) "
        f"AND NOT contains({column}, '\\') AND NOT contains({column}, ' ') "
        f"AND CASE WHEN strlen({column}) > {longest} THEN true "
        f"ELSE strlen({column}) > 2 AND {column} NOT IN {quoted_list(missing)} END"
    )


def _whole_number(column: str) -> str:
    """Return the SQL test that a column of JSON text is a whole number, not negative.

    Together with a cast to a number, which refuses what is none at all.
    """
    return " AND ".join(f"NOT contains({column}, '{mark}')" for mark in ".eE-")


def read_reviews(
    path: Path,
    release: Release,
    database: Database,
    rejections: RejectionLog,
    *,
    allow_truncated: bool = False,
    exact: bool = False,
    look_at_ids: bool = True,
) -> tuple[int, SourceFile]:
    """Fill `reviews` and `item_names`; return lines and source.

    Columns of `reviews`: `user_id` and `item_id`, whole numbers of which each stands for one id;
    `user_text` and `item_text`, the ids in double quotes; `time` in milliseconds since 1970 UTC.
    Rows are in the file's order; no review text is kept. `item_names` (key, name) is sorted by
    name and says which number stands for an id.

    A block of lines is read by DuckDB; one with anything irregular in it is read again line by line
    with Python's parser, as all are with `exact`. Both give the same rows. Without `look_at_ids`
    it is not asked of each row (a sixth of DuckDB's time) whether its ids are plain, but of each
    name once.

    Raises:
        OddIds: some may not be plain, and there was no look at each. Start again with one.
        InputError: see `RawFile`; an id RecBole's files cannot carry; too many lines unusable; no
            review at all.
    """
    database.execute(
        "CREATE TABLE reviews (user_id UBIGINT, item_id UBIGINT, user_text VARCHAR, "
        "item_text VARCHAR, time BIGINT)"
    )
    raw = RawFile(path, block=BLOCK, folder=database.folder, allow_truncated=allow_truncated)
    with database.one_thread():
        for block in read_ahead(iter(raw)):
            quick = block.quick and not exact
            if not (quick and _read_quickly(block, release, database, look_at_ids)):
                _read_exactly(block, path, release, database, rejections)
    rejections.check(path, max(raw.lines, 1))
    if database.value("SELECT count(*) FROM reviews") == 0:
        raise InputError(f"{path} has no review in it ({raw.lines} lines).")
    _name(database, "item", look_at_ids or exact)
    return raw.lines, raw.source


def name_users(database: Database, *, looked_at: bool) -> None:
    """Make `user_names` (key, name) of `reviews`, sorted by name.

    Args:
        looked_at: whether `read_reviews` did look at each id.

    Raises:
        OddIds: see `read_reviews`.
    """
    _name(database, "user", looked_at)


def _name(database: Database, kind: str, looked_at: bool) -> None:
    names, text, key = f"{kind}_names", f"{kind}_text", f"{kind}_id"
    database.execute(
        f"CREATE TABLE {names} AS SELECT {_HASH.format(text)} AS key, "
        f"{_inside(text)} AS name FROM (SELECT DISTINCT {text} FROM reviews) ORDER BY name"
    )
    if not looked_at and not database.value(
        f"SELECT bool_and({plain_id('id')}) FROM (SELECT '\"' || name || '\"' AS id FROM {names})"
    ):
        raise OddIds
    if database.value(f"SELECT count(DISTINCT key) = count(*) FROM {names}"):
        return
    # Places in the sorted names instead. It takes a join of texts, so it is not the rule.
    database.execute(f"UPDATE {names} SET key = rowid")
    database.replace(
        "reviews",
        f"SELECT r.* REPLACE (n.key AS {key}) FROM reviews r JOIN {names} n "
        f"ON {_inside(text)} = n.name ORDER BY r.rowid",
    )


def _keyed(user: str, item: str) -> str:
    """Return the SQL of the columns of `reviews` before the time."""
    return f"{_HASH.format(user)}, {_HASH.format(item)}, {user}, {item}"


def _inside(text: str) -> str:
    """Return the SQL of a text without its double quotes."""
    return f"substr({text}, 2, length({text}) - 2)"


def _read_quickly(block: Block, release: Release, database: Database, look_at_ids: bool) -> bool:
    """Insert a block's reviews in one statement; false, and nothing inserted, if it cannot be."""
    user, item, time = (f'"{key}"' for key in release.review_keys)
    test = plain_id if look_at_ids else _is_text
    regular = f"{test(user)} AND {test(item)} AND {_whole_number(time)}"
    known = f"{time}::BIGINT BETWEEN {release.earliest} AND {release.latest - 1}"
    # A filter looks at the rows that the test before it left; a CASE would at all.
    statement = (
        f"INSERT INTO reviews SELECT {_keyed(user, item)}, "
        f"{time}::BIGINT * {1000 // release.ticks} "
        f"FROM {read_block(block, release.review_keys)} WHERE {regular} AND {known}"
    )
    try:
        with database.transaction():
            # Fewer rows than lines: some are irregular, or blank, which the exact reading skips.
            if database.value(statement) != block.lines:
                raise Irregular
    except IRREGULAR:
        return False
    return True


def _read_exactly(
    block: Block, path: Path, release: Release, database: Database, rejections: RejectionLog
) -> None:
    users: list[str] = []
    items: list[str] = []
    times = array("q")
    keys = release.review_keys
    for number, record in block_records(block, path, rejections, database, keys):
        problem = _problem(record, release)
        if problem is not None:
            rejections.add_record(path, number, problem, record)
            continue
        where = f"{path}, line {number}"
        check_id(record[release.user], release.user, where)
        check_id(record[release.item], release.item, where)
        users.append(f'"{record[release.user]}"')
        items.append(f'"{record[release.item]}"')
        times.append(record[release.time] * (1000 // release.ticks))
    database.append(
        "reviews",
        {"user_text": users, "item_text": items, "time": times},
        f"{_keyed('user_text', 'item_text')}, time",
    )


def _problem(record: dict[str, Any], release: Release) -> str | None:
    """Say why a review cannot be used, or None."""
    for key in (release.user, release.item):
        if not isinstance(record.get(key), str) or not record[key]:
            return f"'{key}' is missing or no text"
    unit = "seconds" if release.ticks == 1 else "milliseconds"
    time = record.get(release.time)
    if isinstance(time, bool) or not isinstance(time, int):
        return f"'{release.time}' is missing or no whole number of {unit}"
    if not release.earliest <= time < release.latest:
        return f"'{release.time}' {time} is not in {unit} since 1970"
    return None
