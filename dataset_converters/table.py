"""Converts tables of interactions and items to a data set folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import duckdb
import numpy as np

from dataset_converters.errors import InputError
from dataset_converters.folder import (
    Conversion,
    ConversionSummary,
    Funnel,
    ItemContent,
    target_path,
    write_folder,
)
from dataset_converters.given_split import split_as_given
from dataset_converters.images import attach_images
from dataset_converters.sessions import IntArray, SessionTable, build_sessions
from dataset_converters.split import PARTS, Split, split_leave_one_out, split_temporal
from dataset_converters.table_columns import INTERACTION_COLUMNS, ITEM_COLUMNS, choose_columns
from dataset_converters.table_items import item_contents
from dataset_converters.table_options import ColumnNames, TableOptions
from dataset_converters.table_reading import (
    InteractionsRead,
    Table,
    open_table,
    read_interactions,
    read_rows,
    tables_connection,
)

# The words of a split column, by part.
_PART_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}


def convert_table(
    name: str,
    interactions: Path,
    data_path: Path,
    *,
    items: Path | None = None,
    images: Path | None = None,
    columns: ColumnNames | None = None,
    options: TableOptions | None = None,
    overwrite: bool = False,
) -> ConversionSummary:
    """Convert tables to ``<data_path>/<name>/``.

    Args:
        interactions: one row an interaction: user or session, item, and a time where there is one;
            without a time the rows are in order. CSV, TSV, Parquet, JSON or JSON lines, or
            RecBole's ``.inter``; all but Parquet may be gzipped.
        items: one row an item; of several rows of one item the one with most values is used.
        images: a folder of images named like the item ids, or like the ends of the image URLs.

    Raises:
        InputError: unusable file, column, id, time or option, nothing left after the filters, too
            few sessions for the split, or an existing folder.
    """
    target_path(data_path, name, overwrite=overwrite)
    named = columns or ColumnNames()
    options = options or TableOptions()
    if images is not None and not images.is_dir():
        raise InputError(f"{images} is not a folder: name the folder that holds the images.")
    with tables_connection() as connection:
        table = open_table(connection, interactions)
        item_table = None if items is None else open_table(connection, items)
        return convert_tables(
            connection,
            name,
            table,
            item_table,
            data_path,
            release="table",
            named=named,
            options=options,
            images=images,
            overwrite=overwrite,
        )


def convert_tables(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    table: Table,
    item_table: Table | None,
    data_path: Path,
    *,
    release: str,
    named: ColumnNames,
    options: TableOptions,
    images: Path | None,
    overwrite: bool,
    refine: Callable[[dict[str, ItemContent]], dict[str, ItemContent]] = lambda contents: contents,
) -> ConversionSummary:
    """Convert opened tables; `refine` may change the items' content. See `convert_table`."""
    chosen = _interaction_columns(table, named, options)
    options = _resolve(table, chosen, options, named.split)
    read = read_interactions(
        connection,
        table,
        user=chosen.get("session") or chosen["user"],
        item=chosen["item"],
        time=chosen.get("time"),
        time_unit=options.time_unit,
        rating=chosen.get("rating"),
        min_rating=options.min_rating,
        part=named.split,
    )
    contents: dict[str, ItemContent] = {}
    item_columns: dict[str, str] = {}
    duplicates = 0
    if item_table is not None:
        item_columns = _item_columns(item_table, named, chosen["item"])
        rest = {role: column for role, column in item_columns.items() if role != "item"}
        rows = read_rows(connection, item_table, rest, item_columns["item"])
        contents, duplicates = item_contents(rows)
        if not contents:
            raise InputError(
                f"{item_table.path}: the column '{item_columns['item']}' has none of the items of "
                f"{table.path}, column '{chosen['item']}'. Name the right one with "
                f"--items_id_column. Columns found: {', '.join(item_table.columns)}."
            )
        contents = refine(contents)
    funnel = Funnel(read.rows)
    if options.min_rating is not None:
        funnel.step(f"min_rating={options.min_rating:g}", len(read.interactions.items))
    sessions = _filtered(read, options, funnel)
    conversion = Conversion(
        name=name,
        release=release,
        sessions=options.sessions or "user",
        split_rule=options.split or "temporal",
        split=_split(table, sessions, read, options, chosen, named),
        contents=contents,
        sources=[table.source, *([] if item_table is None else [item_table.source])],
        options={
            **asdict(options),
            "columns": chosen | ({} if named.split is None else {"split": named.split}),
            "item_columns": item_columns,
        },
        counts={
            "rows_read": read.rows,
            "users_read": len(read.interactions.user_ids),
            "items_read": len(read.interactions.item_ids),
            "items_without_metadata": len(read.interactions.item_ids) - len(contents),
            "metadata_duplicates": duplicates,
        },
        filters=funnel.steps,
        augment=options.augment,
        max_len=options.max_len,
    )
    summary = write_folder(conversion, data_path, overwrite=overwrite)
    if images is not None:
        attach_images(summary.path, images)
    return summary


def _interaction_columns(table: Table, named: ColumnNames, options: TableOptions) -> dict[str, str]:
    wanted = {role: getattr(named, role) for role in INTERACTION_COLUMNS}
    if named.user is not None and named.session is None:
        known = {role: names for role, names in INTERACTION_COLUMNS.items() if role != "session"}
    else:
        known = dict(INTERACTION_COLUMNS)
    columns = list(table.columns)
    chosen = choose_columns(table.path, columns, known, wanted, required=["item"])
    if "session" not in chosen and "user" not in chosen:
        choose_columns(table.path, columns, {"user": ()}, {}, required=["user"])
    if "session" in chosen:
        chosen.pop("user", None)
    if options.min_rating is None:
        chosen.pop("rating", None)
    elif "rating" not in chosen:
        choose_columns(table.path, columns, {"rating": ()}, {}, required=["rating"])
    if named.split is not None:
        choose_columns(table.path, columns, {"split": ()}, {"split": named.split})
    return chosen


def _item_columns(table: Table, named: ColumnNames, item: str) -> dict[str, str]:
    wanted = {role: getattr(named, role, None) for role in ITEM_COLUMNS}
    wanted["item"] = named.items_id or (item if item in table.columns else None)
    try:
        return choose_columns(
            table.path, list(table.columns), ITEM_COLUMNS, wanted, required=["item"]
        )
    except InputError as error:
        told = str(error).replace("--item_column", "--items_id_column")
        raise InputError(told) from error


def _resolve(
    table: Table, chosen: Mapping[str, str], options: TableOptions, split_column: str | None
) -> TableOptions:
    """Settle the options that depend on the columns.

    Raises:
        InputError: the sessions or the split need a time column.
    """
    split = options.split or ("temporal" if "time" in chosen else "leave-one-out")
    if split_column is not None and options.split is None:
        split = "given"
    sessions = options.sessions or "user"
    if "session" in chosen and sessions != "user":
        raise InputError(
            f"{table.path}: the column '{chosen['session']}' says what a session is, so --sessions "
            f"{sessions} does not apply. Name --user_column to leave it aside."
        )
    if "time" not in chosen and (split == "temporal" or sessions != "user"):
        raise InputError(
            f"{table.path}: no column looks like a time, which '{split}' splits and '{sessions}' "
            "sessions need. Name it with --time_column, or use --split leave-one-out. Columns "
            f"found: {', '.join(table.columns)}."
        )
    if "time" not in chosen and options.drop_repeats:
        raise InputError(
            f"{table.path}: --drop_repeats compares times, and no column looks like one. Name it "
            f"with --time_column. Columns found: {', '.join(table.columns)}."
        )
    return replace(options, split=split, sessions=sessions)


def _filtered(read: InteractionsRead, options: TableOptions, funnel: Funnel) -> SessionTable:
    """Cut sessions; then short ones, rare items (once), those that became short, long ends."""
    interactions = read.interactions
    if options.drop_repeats:
        interactions = interactions.without_repeats()
        funnel.step("drop_repeats", len(interactions.items))
    table = build_sessions(interactions, options.sessions or "user")
    if not read.timed:
        table = replace(table, times=None)
    funnel.step(f"sessions={options.sessions}", len(table.items), len(table))
    shortest = options.min_session_length
    table = table.keep_sessions(table.lengths >= shortest)
    funnel.step(f"min_session_length={shortest}", len(table.items), len(table))
    if options.min_item_count > 1:
        table = table.keep_items(table.item_counts() >= options.min_item_count)
        funnel.step(f"min_item_count={options.min_item_count}", len(table.items), len(table))
        table = table.keep_sessions(table.lengths >= shortest)
        funnel.step(f"min_session_length={shortest}", len(table.items), len(table))
    if options.max_session_length is not None:
        longest = options.max_session_length
        table = table.first(longest)
        funnel.step(f"max_session_length={longest}", len(table.items), len(table))
    return table


def _split(
    table: Table,
    sessions: SessionTable,
    read: InteractionsRead,
    options: TableOptions,
    chosen: Mapping[str, str],
    named: ColumnNames,
) -> Split:
    if options.split == "leave-one-out":
        return split_leave_one_out(sessions)
    if options.split == "temporal":
        return split_temporal(
            sessions, train_share=options.train_share, valid_share=options.valid_share
        )
    if read.parts is None:
        raise InputError("The split 'given' needs the column that tells it: --split_column NAME.")
    parts = _user_parts(table, read, named.split or "")
    return split_as_given(sessions, parts[sessions.owners], valid_share=options.valid_share)


def _user_parts(table: Table, read: InteractionsRead, column: str) -> IntArray:
    """Return the part of each user: 0 train, 1 valid, 2 test.

    Raises:
        InputError: an unknown word, or a user with rows in several parts.
    """
    codes = []
    for word in read.part_names:
        part = _PART_WORDS.get(word.lower())
        if part is None:
            raise InputError(
                f"{table.path}: the column '{column}' says '{word}'; known are "
                f"{', '.join(_PART_WORDS)}."
            )
        codes.append(PARTS.index(part))
    users = read.interactions.users
    of_row = np.array(codes, dtype=np.int64)[read.parts]
    of_user = np.zeros(len(read.interactions.user_ids), dtype=np.int64)
    of_user[users] = of_row
    other = (of_user[users] != of_row).nonzero()[0]
    if len(other):
        user = read.interactions.user_ids[int(users[other[0]])]
        raise InputError(
            f"{table.path}: '{user}' has rows in several parts of '{column}'. A session lies in "
            "one part; give the parts of a user different session ids."
        )
    return of_user
