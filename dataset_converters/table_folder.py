"""Writes the data set folder's files from the sessions and items of a database."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dataset_converters.amazon_records import Release
from dataset_converters.database import Database
from dataset_converters.files import sha256_file
from dataset_converters.folder import BENCHMARK_HEADER, write_items
from dataset_converters.item_rows import make_rows, spooled_items
from dataset_converters.item_table import write_records
from dataset_converters.split import PARTS

_TAB = "'\t'"


@dataclass(frozen=True, slots=True)
class TablesWritten:
    """Counts for ``dataset.json``, the parts' fingerprints, the longest list in the files."""

    counts: dict[str, int]
    fingerprints: dict[str, str]
    longest_list: int


@contextmanager
def items_beside(database: Database, release: Release) -> Iterator[Future[Path]]:
    """Make the rows of the items in `events` while the block inside runs; the result is their file.

    The items to come are known once the filters are through, but for what a cut of long sessions or
    a split drops.
    """
    database.execute("CREATE TABLE staying AS SELECT DISTINCT item_id FROM events")
    records, rows = database.folder / "records.tsv", database.folder / "items.tsv"
    write_records(database, "staying", records)
    count = int(database.value("SELECT count(*) FROM staying"))

    def make() -> Path:
        make_rows(records, rows, release, count)
        return rows

    with ThreadPoolExecutor(max_workers=1) as worker:
        yield worker.submit(make)


def write_tables(
    database: Database,
    folder: Path,
    name: str,
    items: Future[Path],
    *,
    augment: bool,
    max_len: int,
) -> TablesWritten:
    """Write every file of the folder but ``split.json`` and ``dataset.json``.

    The database has the tables of `split_sessions`; `items` are those of `items_beside`.
    """
    database.execute(
        "CREATE TABLE occurring AS SELECT DISTINCT unnest(items) AS item_id FROM everything"
    )
    written = _write_sessions(database, folder, name, augment=augment, max_len=max_len)
    occurring = database.stream("SELECT item_id FROM occurring ORDER BY item_id")
    ids = (item_id for rows in occurring for (item_id,) in rows)
    counts = written.counts | write_items(folder, name, spooled_items(items.result(), ids))
    counts["items_in_train"] = int(database.value("SELECT count(*) FROM in_train"))
    return replace(written, counts=counts)


def _write_sessions(
    database: Database, folder: Path, name: str, *, augment: bool, max_len: int
) -> TablesWritten:
    counts = _write_interactions(database, folder / f"{name}.inter")
    parts = {part: _cut(part, max_len, augment) for part in PARTS}
    database.execute(
        f"CREATE TABLE in_train AS SELECT DISTINCT unnest(items) AS item_id FROM {parts['train']}"
    )
    fingerprints = {}
    for part, sessions in parts.items():
        counts |= _write_part(database, folder / name, part, sessions, augment, max_len)
        fingerprints[part] = _fingerprint(database, sessions)
    longest = max(
        int(database.value(f"SELECT max(len(items)) FROM {table}")) for table in parts.values()
    )
    return TablesWritten(counts, fingerprints, min(max_len, longest - 1))


def _cut(part: str, max_len: int, augment: bool) -> str:
    """Return a part's sessions as the benchmark files hold them: at most ``max_len + 1`` items.

    A training session of which every prefix is a row stays whole.
    """
    if part == "train" and augment:
        return part
    last = f"items[greatest(1, len(items) - {max_len}) :]"
    return f"(SELECT rowid AS place, id, {last} AS items FROM {part})"


def _write_interactions(database: Database, path: Path) -> dict[str, int]:
    header = "session_id:token\titem_id:token\ttimestamp:float"
    database.write_lines(
        f"SELECT id || {_TAB} || unnest(items) || {_TAB} || unnest(times) FROM everything",
        path,
        header,
    )
    names = (
        "sessions",
        "interactions",
        "sessions_with_repeated_item",
        "sessions_with_one_time",
        "users",
    )
    values = database.row(
        "SELECT count(*), sum(len(items)), count(*) FILTER (list_unique(items) < len(items)), "
        "count(*) FILTER (times[1] = times[-1]), count(DISTINCT user_id) FROM everything"
    )
    counts = {name: int(value) for name, value in zip(names, values, strict=True)}
    counts["items"] = int(database.value("SELECT count(*) FROM occurring"))
    return counts


def _write_part(
    database: Database, stem: Path, part: str, sessions: str, augment: bool, max_len: int
) -> dict[str, int]:
    header = BENCHMARK_HEADER.rstrip("\n")
    prefixes = part == "train" and augment
    if prefixes:
        rows = f"(SELECT id, items, unnest(range(2, len(items) + 1)) AS k FROM {sessions})"
    else:
        rows = f"(SELECT place, id, items, len(items) AS k FROM {sessions})"
    # RecBole keeps the first entries of an over-long list, hence the cut to the last ones here.
    line = (
        f"id || {_TAB} || array_to_string(items[greatest(1, k - {max_len}) : k - 1], ' ') "
        f"|| {_TAB} || items[k]"
    )
    database.write_lines(f"SELECT {line} FROM {rows}", _named(stem, part), header)
    count, interactions, repeats = database.row(
        f"SELECT count(*), sum(len(items)), count(*) FILTER (items[-1] = items[-2]) FROM {sessions}"
    )
    written = interactions - count if prefixes else count
    counts = {
        f"sessions_{part}": int(count),
        f"interactions_{part}": int(interactions),
        f"rows_{part}": int(written),
        f"target_repeats_last_{part}": int(repeats),
    }
    if part != "train":
        unseen = "items[k] NOT IN (SELECT item_id FROM in_train)"
        cold = f"SELECT {line} FROM {rows} WHERE {unseen} ORDER BY place"
        database.write_lines(cold, _named(stem, f"{part}-cold"), header)
        counts[f"rows_{part}_cold"] = int(
            database.value(f"SELECT count(*) FROM {rows} WHERE {unseen}")
        )
    return counts


def _named(stem: Path, part: str) -> Path:
    return stem.with_name(f"{stem.name}.{part}.inter")


def _fingerprint(database: Database, sessions: str) -> str:
    """Return what `split_sha256` returns, without holding the sessions in memory."""
    path = database.folder / "part.txt"
    database.write_lines(
        f"SELECT id || {_TAB} || array_to_string(items, ' ') FROM {sessions} ORDER BY id", path
    )
    digest = sha256_file(path)
    path.unlink()
    return digest
