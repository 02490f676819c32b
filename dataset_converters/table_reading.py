"""Plain tables (CSV, TSV, Parquet, JSON, RecBole's atomic files) through DuckDB."""

from __future__ import annotations

import csv
import gzip
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from dataset_converters.errors import InputError
from dataset_converters.files import sha256_file
from dataset_converters.folder import check_id
from dataset_converters.reading import SourceFile
from dataset_converters.sessions import IntArray, Interactions
from dataset_converters.table_options import TIME_UNITS

_KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".inter": "atomic",
    ".item": "atomic",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_DELIMITERS = ",;\t|"
_ATOMIC_TYPE = re.compile(r":(token|token_seq|float|float_seq)$")


@dataclass(frozen=True, slots=True)
class Table:
    """A readable file.

    Attributes:
        relation: what stands after FROM in a query.
        columns: name → DuckDB type. RecBole's ``name:type`` is `name` here, see `stored`.
        stored: name → the column's name in the file.
    """

    path: Path
    relation: str
    columns: Mapping[str, str]
    stored: Mapping[str, str]

    def column(self, name: str) -> str:
        """The column as an SQL expression."""
        return _name(self.stored[name])

    @property
    def source(self) -> SourceFile:
        return SourceFile(self.path.name, self.path.stat().st_size, sha256_file(self.path))


@contextmanager
def tables_connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield an in-memory DuckDB that loads nothing from elsewhere; times without a zone are UTC."""
    # What does not fit into memory goes to a folder that goes away again.
    with (
        tempfile.TemporaryDirectory(prefix="tables-") as spill,
        duckdb.connect(":memory:") as connection,
    ):
        connection.execute(f"SET temp_directory = {sql_text(spill)}")
        connection.execute("SET autoinstall_known_extensions = false")
        connection.execute("SET autoload_known_extensions = false")
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def sql_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def sql_path(path: Path) -> str:
    """The path as an SQL string, in which DuckDB expands no pattern."""
    return sql_text(re.sub(r"[*?\[]", lambda match: f"[{match[0]}]", str(path)))


def open_table(connection: duckdb.DuckDBPyConnection, path: Path) -> Table:
    """Look at a table's columns; the kind is that of the name's end, ``.gz`` left out.

    Raises:
        InputError: unreadable, of an unknown kind, or not what its name says.
    """
    name = path.name.lower()
    packed = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    kind = _KINDS.get(suffix)
    if kind is None or (packed and kind == "parquet"):
        raise InputError(
            f"{path} is of no known kind. Known: {', '.join(_KINDS)}; all but Parquet also with "
            ".gz."
        )
    if not path.is_file():
        raise InputError(f"Cannot read {path}: no such file.")
    if kind == "parquet":
        relation = f"read_parquet({sql_path(path)})"
    elif kind == "json":
        relation = f"read_json({sql_path(path)}, sample_size=-1)"
    else:
        # A quote in a TSV or atomic file is a character like any other.
        quote = '"' if kind == "csv" else ""
        header = _header_line(path, packed)
        delimiter = max(_DELIMITERS, key=header.count) if kind == "csv" else "\t"
        columns = _header_names(path, header, delimiter, quote)
        relation = text_relation(path, columns, delimiter=delimiter, quote=quote, header=True)
    return describe_relation(connection, path, relation, atomic=kind == "atomic")


def text_relation(
    path: Path,
    columns: Sequence[str],
    *,
    delimiter: str,
    quote: str = "",
    header: bool = False,
    encoding: str = "utf-8",
) -> str:
    """A delimited text file as a DuckDB table function; every cell is text, an empty one NULL.

    Nothing is guessed: DuckDB's own detection may take a table's first lines for a preamble.
    """
    types = ", ".join(f"{sql_text(name)}: 'VARCHAR'" for name in columns)
    return (
        f"read_csv({sql_path(path)}, auto_detect=false, columns={{{types}}}, "
        f"header={str(header).lower()}, delim={sql_text(delimiter)}, quote={sql_text(quote)}, "
        f"escape={sql_text(quote)}, encoding={sql_text(encoding)})"
    )


def _header_line(path: Path, packed: bool) -> str:
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            return stream.readline(1 << 20).decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: its first line is not UTF-8 text.") from error
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error


def _header_names(path: Path, header: str, delimiter: str, quote: str) -> list[str]:
    """Return the column names of a header.

    Raises:
        InputError: no header, or two columns with one name.
    """
    if quote:
        names = next(csv.reader([header], delimiter=delimiter, quotechar=quote), [])
    else:
        names = header.split(delimiter)
    # A column of row numbers often has no name.
    names = [name or f"column{position}" for position, name in enumerate(names, start=1)]
    lower = [name.lower() for name in names]
    twice = [name for name in names if lower.count(name.lower()) > 1]
    if not header.strip() or twice:
        problem = f"'{twice[0]}' is there twice: {header[:200]}" if twice else "it is empty."
        raise InputError(f"{path}: the first line must name the columns, but {problem}")
    return names


def describe_relation(
    connection: duckdb.DuckDBPyConnection, path: Path, relation: str, *, atomic: bool = False
) -> Table:
    """Make a `Table` of a DuckDB table function on a file.

    Raises:
        InputError: DuckDB cannot read the file.
    """
    with _naming(path):
        found = connection.sql(f"SELECT * FROM {relation} LIMIT 0")
        types = {
            str(name): str(kind) for name, kind in zip(found.columns, found.types, strict=True)
        }
    stored = {_ATOMIC_TYPE.sub("", name) if atomic else name: name for name in types}
    return Table(path, relation, {name: types[stored[name]] for name in stored}, stored)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn DuckDB's errors on a file into one short message."""
    try:
        yield
    except duckdb.Error as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(f"{path} cannot be read: {' '.join(lines[:4])[:400]}") from error


@dataclass(frozen=True, slots=True)
class InteractionsRead:
    """The interactions in order, and how many rows there were.

    Attributes:
        interactions: by time where there is one (its full resolution counts), then by row. Times
            are zero where there is none.
        timed: there is a time column.
        parts: (M,) index into `part_names` for each interaction, or None.
        rows: of the table, before `min_rating`.
    """

    interactions: Interactions
    timed: bool
    parts: IntArray | None
    part_names: list[str]
    rows: int


def read_interactions(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    *,
    user: str,
    item: str,
    time: str | None = None,
    time_unit: str = "auto",
    rating: str | None = None,
    min_rating: float | None = None,
    part: str | None = None,
) -> InteractionsRead:
    """Read users, items and times of a table; the other arguments are its columns' names.

    Args:
        time_unit: of a number in the time column: "s", "ms", "us", or "auto", by its size. Dates
            and times as text or in Parquet need none; without a zone they are UTC.
        min_rating: leave out rows with a lower number in column `rating`.

    Raises:
        InputError: a broken file; no row; a row without user, item, or readable time or rating; an
            id that RecBole cannot read. The row is named, counted from 1 without the header.
    """
    columns = {"user": _id(table, user), "item": _id(table, item)}
    names = {"user": user, "item": item}
    if time is not None:
        columns["time"], names["time"] = table.column(time), time
    if part is not None:
        columns["part"], names["part"] = _id(table, part), part
    if min_rating is not None and rating is not None:
        columns["rating"] = f"TRY_CAST({table.column(rating)} AS DOUBLE)"
        names["rating"] = rating
    picked = ", ".join(f"{expression} AS {key}" for key, expression in columns.items())
    with _naming(table.path):
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE picked AS SELECT row_number() OVER () AS line, {picked} "
            f"FROM {table.relation}"
        )
    rows = _one(connection, "SELECT count(*) FROM picked")
    if rows == 0:
        raise InputError(f"{table.path} has no row in it.")
    if time is not None:
        _parse_times(connection, table.path, time, time_unit)
    for key, name in names.items():
        _refuse_empty(connection, table.path, key, name)
    if "rating" in columns:
        connection.execute("DELETE FROM picked WHERE rating < ?", [min_rating])
        if _one(connection, "SELECT count(*) FROM picked") == 0:
            raise InputError(f"{table.path} has no row with {rating} of at least {min_rating}.")
    users, items = (_index(connection, table.path, key, names[key]) for key in ("user", "item"))
    parts = _index(connection, table.path, "part", names["part"]) if part is not None else []
    found = connection.execute(
        "SELECT u.number AS user, i.number AS item"
        + (", p.time AS time" if time is not None else "")
        + (", c.number AS part" if part is not None else "")
        + " FROM picked p JOIN user_ids u ON p.user = u.id JOIN item_ids i ON p.item = i.id"
        + (" JOIN part_ids c ON p.part = c.id" if part is not None else "")
        + " ORDER BY "
        + ("p.time, " if time is not None else "")
        + "p.line"
    ).fetchnumpy()
    arrays = {key: np.asarray(values, dtype=np.int64) for key, values in found.items()}
    times = arrays["time"] // TIME_UNITS["s"] if time is not None else np.zeros_like(arrays["user"])
    return InteractionsRead(
        Interactions(users, items, arrays["user"], arrays["item"], times),
        time is not None,
        arrays.get("part"),
        parts,
        rows,
    )


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def _id(table: Table, name: str) -> str:
    """An id column as text: ``12.0``, as a table with gaps stores it, is ``12``.

    Raises:
        InputError: a column of lists, objects or bytes.
    """
    kind, column = table.columns[name], table.column(name)
    if kind.startswith(("STRUCT", "MAP", "BLOB", "UNION")) or kind.endswith("]"):
        raise InputError(f"{table.path}: the column '{name}' holds {kind}, not ids.")
    if kind in ("DOUBLE", "FLOAT"):
        whole = f"CAST(TRY_CAST({column} AS BIGINT) AS VARCHAR)"
        plain = f"CAST({column} AS VARCHAR)"
        return f"CASE WHEN {column} = trunc({column}) THEN {whole} ELSE {plain} END"
    return f"CAST({column} AS VARCHAR)"


def _refuse_empty(connection: duckdb.DuckDBPyConnection, path: Path, key: str, column: str) -> None:
    row = connection.execute(
        f"SELECT count(*), min(line) FROM picked WHERE {key} IS NULL"
    ).fetchone()
    if row and row[0]:
        what = {"time": "readable time", "rating": "readable number"}.get(key, "value")
        raise InputError(
            f"{path}: {row[0]:,} rows have no {what} in the column '{column}', the first is row "
            f"{row[1]:,}. Repair or remove them."
        )


def _index(connection: duckdb.DuckDBPyConnection, path: Path, key: str, column: str) -> list[str]:
    """Number the ids of a column by first appearance; return them in that order."""
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE {key}_ids AS SELECT id, line, "
        "row_number() OVER (ORDER BY line) - 1 AS number FROM "
        f"(SELECT {key} AS id, min(line) AS line FROM picked GROUP BY {key})"
    )
    found = connection.execute(f"SELECT id, line FROM {key}_ids ORDER BY number").fetchall()
    for value, line in found:
        check_id(value, f"{column}", f"{path}, row {line:,}")
    return [value for value, _ in found]


def _parse_times(connection: duckdb.DuckDBPyConnection, path: Path, column: str, unit: str) -> None:
    """Replace the time column by whole microseconds since 1970 UTC; NULL where it cannot be."""
    kind = str(connection.sql("SELECT time FROM picked LIMIT 0").types[0])
    if kind == "DATE" or kind.startswith("TIMESTAMP"):
        expression = "epoch_us(CAST(time AS TIMESTAMPTZ))" if "ZONE" in kind else "epoch_us(time)"
        if kind == "DATE":
            expression = "epoch_us(CAST(time AS TIMESTAMP))"
    else:
        numbers = "TRY_CAST(time AS DOUBLE)"
        row = connection.execute(
            f"SELECT count({numbers}), count(*), max(abs({numbers})) FROM picked"
        ).fetchone()
        numeric, rows, largest = row if row else (0, 0, None)
        # Mostly numbers: one that is none is an error of its row, not a date.
        if 2 * numeric > rows:
            factor = TIME_UNITS[unit] if unit != "auto" else _factor(float(largest))
            # Whole numbers of microseconds do not fit a double's 53 bits beyond the year 2255.
            exact = f"TRY_CAST(TRY_CAST(time AS DECIMAL(38, 9)) * {factor} AS DECIMAL(38, 3))"
            expression = f"TRY_CAST(floor({exact}) AS BIGINT)"
        else:
            expression = "epoch_us(TRY_CAST(CAST(time AS VARCHAR) AS TIMESTAMPTZ))"
    with _naming(path):
        others = ", ".join(f'"{name}"' for name in _columns(connection) if name != "time")
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE picked AS SELECT {others}, "
            f"CASE WHEN {expression} >= 0 THEN {expression} END AS time FROM picked"
        )


def _columns(connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [str(name) for name in connection.sql("SELECT * FROM picked LIMIT 0").columns]


def _factor(largest: float) -> int:
    """Microseconds a unit, told by the size: seconds reach 1e11 in the year 5138."""
    for unit, below in (("s", 1e11), ("ms", 1e14)):
        if largest < below:
            return TIME_UNITS[unit]
    return TIME_UNITS["us"]


def read_rows(
    connection: duckdb.DuckDBPyConnection, table: Table, columns: Mapping[str, str], item: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, key → value) of the rows whose id in column `item` was read as an
    interaction's item.

    Args:
        columns: key → column name; the id has the key "item_id".

    Raises:
        InputError: a broken file.
    """
    picked = "".join(f", {table.column(name)} AS {_name(key)}" for key, name in columns.items())
    with _naming(table.path):
        found = connection.execute(
            f"SELECT line, {', '.join(_name(k) for k in ('item_id', *columns))} FROM "
            f"(SELECT row_number() OVER () AS line, {_id(table, item)} AS item_id{picked} "
            f"FROM {table.relation}) WHERE item_id IN (SELECT id FROM item_ids) ORDER BY line"
        )
        while rows := found.fetchmany(10_000):
            for row in rows:
                yield row[0], dict(zip(("item_id", *columns), row[1:], strict=True))
