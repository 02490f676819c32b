"""A DuckDB database for one conversion: bounded memory, the rest on disk, nothing downloaded."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from dataset_converters.errors import InputError

MEMORY = "512MB"
# Ours are passed when the connection opens: nothing may change them or load extensions later.
_OFFLINE = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
}
# One value to a line; the text has no tab, line end or quote that would need escaping.
_AS_IS = "FORMAT csv, QUOTE '', ESCAPE '', DELIMITER '\x01'"


class Database:
    """Tables that live until the database is closed, and spill to `folder` beyond `memory`.

    A table that `replace` makes from an ordered query is read and written in that order.
    """

    def __init__(self, folder: Path, memory: str = MEMORY) -> None:
        try:
            self._connection = duckdb.connect(
                ":memory:",
                config={
                    **_OFFLINE,
                    "memory_limit": memory,
                    "temp_directory": str(folder / "spill"),
                    "preserve_insertion_order": True,
                    "checkpoint_threshold": "1TB",
                },
            )
            # DuckDB's bar for slow statements would go to standard output.
            self._connection.execute("SET enable_progress_bar = false")
        except duckdb.Error as error:
            raise InputError(
                f"memory={memory!r} is no amount of memory DuckDB accepts ({_first_line(error)}). "
                "Write for instance 512MB or 2GB."
            ) from error
        self.folder = folder

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows; `values` fill its question marks.

        Raises:
            InputError: not enough memory or disk space.
        """
        with _named_limits():
            return self._connection.execute(statement, values).fetchall()

    def row(self, query: str, values: Sequence[Any] = ()) -> tuple[Any, ...]:
        """Return the only row of a query."""
        (row,) = self.execute(query, values)
        return row

    def value(self, query: str, values: Sequence[Any] = ()) -> Any:
        """Return the first column of the only row of a query."""
        return self.row(query, values)[0]

    def stream(self, query: str, rows: int = 4096) -> Iterator[list[tuple[Any, ...]]]:
        """Return the rows of a query, `rows` at a time, in the query's order.

        Another thread may take them while this one goes on to use the database.
        """
        return _batches(self._connection.cursor(), query, rows)

    def replace(self, table: str, query: str) -> None:
        """Fill `table` with the result of a query that may read the table's old rows."""
        self.execute(f"CREATE TABLE {table}_new AS {query}")
        self.execute(f"DROP TABLE IF EXISTS {table}")
        self.execute(f"ALTER TABLE {table}_new RENAME TO {table}")

    def append(self, table: str, columns: Mapping[str, Sequence[Any]], selected: str = "*") -> None:
        """Add rows, given column by column; text columns hold strings only.

        `selected`: the table's columns as SQL over the given ones.
        """
        rows = {name: _column(values) for name, values in columns.items()}
        if not len(next(iter(rows.values()))):
            return
        self._connection.register("appended", rows)
        self.execute(f"INSERT INTO {table} SELECT {selected} FROM appended")
        self._connection.unregister("appended")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Undo every statement inside when one of them, or the caller, fails."""
        self._connection.begin()
        try:
            yield
        except BaseException:
            self._connection.rollback()
            raise
        self._connection.commit()

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        """Run the statements inside on the calling thread alone.

        Rows that several threads insert end up in the order in which the threads finish.
        """
        threads = self.value("SELECT current_setting('threads')")
        self.execute("SET threads = 1")
        try:
            yield
        finally:
            self.execute(f"SET threads = {threads}")

    @contextmanager
    def beside(self, work: Callable[[Database], None]) -> Iterator[None]:
        """Run `work` in a thread of its own, on the same tables, while the block inside runs.

        The two must not change the same table.
        """
        other = copy(self)
        other._connection = self._connection.cursor()
        with ThreadPoolExecutor(max_workers=1) as worker, closing(other):
            done = worker.submit(work, other)
            yield
            done.result()

    def write_lines(self, query: str, path: Path, header: str | None = None) -> None:
        """Write a query's single text column as lines, in the query's order."""
        first = "false"
        if header is not None:
            query = f'SELECT * FROM ({query}) AS lines("{header}")'
            first = "true"
        self.execute(f"COPY ({query}) TO {quoted(str(path))} ({_AS_IS}, HEADER {first})")

    def close(self) -> None:
        self._connection.close()


def _batches(
    cursor: duckdb.DuckDBPyConnection, query: str, rows: int
) -> Iterator[list[tuple[Any, ...]]]:
    with _named_limits():
        # The result would be held in memory as a whole by `execute` on the first connection.
        cursor.execute(query)
        while batch := cursor.fetchmany(rows):
            yield batch
    cursor.close()


def quoted(text: str) -> str:
    """Return `text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def quoted_list(texts: Sequence[str]) -> str:
    return "(" + ", ".join(map(quoted, texts)) + ")"


def _column(values: Sequence[Any]) -> Any:
    if values and isinstance(values[0], str):
        column = np.empty(len(values), dtype=object)
        column[:] = values
        return column
    return np.array(values)


@contextmanager
def _named_limits() -> Iterator[None]:
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise InputError(
            f"The conversion ran out of memory or of disk space for it ({_first_line(error)}). "
            "Allow more with memory (--memory 2GB), or free disk space."
        ) from error
    except duckdb.IOException as error:
        raise InputError(
            f"The disk refused a read or write ({_first_line(error)}). Free disk space, or choose "
            "another data_path."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


@contextmanager
def open_database(data_path: Path, name: str, memory: str = MEMORY) -> Iterator[Database]:
    """Yield a database that spills to a hidden folder of `data_path`, removed at the end."""
    folder = data_path / f".{name}.{uuid.uuid4().hex[:8]}.work"
    folder.mkdir(parents=True)
    try:
        database = Database(folder, memory)
        try:
            yield database
        finally:
            database.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
