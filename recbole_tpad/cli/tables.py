"""The sources table, movielens and session-ids of the convert command."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from recbole_tpad.cli.parser import Overrides, add_dataset

_COLUMNS = {
    "user": "user id",
    "session": "session id; its rows are one session",
    "item": "item id",
    "time": "time of the interaction",
    "rating": "rating, for --min_rating",
    "split": "train, valid or test, for --split given",
    "items_id": "item id in the items table",
    "title": "title in the items table",
    "brand": "brand",
    "category": "category: a list, or names separated by '|' or '>', general to specific",
    "description": "description",
    "price": "price",
    "image_url": "image addresses: a list, or separated by white space or '|'",
}


def add_sources(sources: Any) -> None:
    """Add the sources to ``convert``'s sub-parsers."""
    table = sources.add_parser(
        "table", help="tables: CSV, TSV, Parquet, JSON lines, .inter", allow_abbrev=False
    )
    table.set_defaults(command=_convert_table)
    table.add_argument("--interactions", type=Path, required=True, metavar="FILE")
    table.add_argument("--items", type=Path, metavar="FILE")
    named = table.add_argument_group(
        "columns", "Without these, common names such as user_id, itemId or timestamp are found."
    )
    for role, text in _COLUMNS.items():
        option = "--items_id_column" if role == "items_id" else f"--{role}_column"
        named.add_argument(option, metavar="NAME", help=text)
    table.add_argument("--time_unit", choices=["auto", "s", "ms", "us"], default="auto")
    movielens = sources.add_parser(
        "movielens", help="a MovieLens folder as published", allow_abbrev=False
    )
    movielens.set_defaults(command=_convert_movielens)
    movielens.add_argument("--folder", type=Path, required=True, metavar="DIR")
    for source, splits in (
        (table, ["temporal", "leave-one-out", "given"]),
        (movielens, ["temporal", "leave-one-out"]),
    ):
        source.add_argument("--images", type=Path, metavar="DIR", help="files named by item id")
        source.add_argument("--sessions", choices=["first-day", "day", "user"])
        source.add_argument("--split", choices=splits)
        source.add_argument("--min_rating", type=float)
        source.add_argument("--drop_repeats", action="store_true")
        source.add_argument("--min_session_length", type=int)
        source.add_argument("--max_session_length", type=int)
        source.add_argument("--min_item_count", type=int)
        source.add_argument("--train_share", type=float)
    session_ids = sources.add_parser(
        "session-ids", help="RecBole benchmark files of sessions", allow_abbrev=False
    )
    session_ids.set_defaults(command=_convert_session_ids)
    session_ids.add_argument("--train", type=Path, required=True, metavar="FILE")
    session_ids.add_argument("--test", type=Path, required=True, metavar="FILE")
    session_ids.add_argument(
        "--valid", type=Path, metavar="FILE", help="default: the last of the training sessions"
    )
    for source in (table, movielens, session_ids):
        add_dataset(source)
        source.add_argument("--valid_share", type=float, help="default: 0.1")
        source.add_argument("--augment", action=argparse.BooleanOptionalAction, default=None)
        source.add_argument("--max_len", type=int, default=50)
        source.add_argument("--overwrite", action="store_true")


def _chosen(args: argparse.Namespace, kind: Any) -> dict[str, Any]:
    """The given arguments that are fields of a dataclass; its defaults stand for the others."""
    given = {field.name: getattr(args, field.name, None) for field in fields(kind)}
    return {name: value for name, value in given.items() if value is not None}


def _convert_table(args: argparse.Namespace, _: Overrides) -> None:
    from dataset_converters.table import convert_table
    from dataset_converters.table_options import ColumnNames, TableOptions

    named = {role: getattr(args, f"{role}_column") for role in _COLUMNS}
    summary = convert_table(
        args.dataset,
        args.interactions,
        args.data_path,
        items=args.items,
        images=args.images,
        columns=ColumnNames(**named),
        options=TableOptions(**_chosen(args, TableOptions)),
        overwrite=args.overwrite,
    )
    _tell(summary.path, summary.counts)


def _convert_movielens(args: argparse.Namespace, _: Overrides) -> None:
    from dataset_converters.movielens import convert_movielens
    from dataset_converters.table_options import TableOptions

    summary = convert_movielens(
        args.dataset,
        args.folder,
        args.data_path,
        images=args.images,
        options=TableOptions(**_chosen(args, TableOptions)),
        overwrite=args.overwrite,
    )
    _tell(summary.path, summary.counts)


def _convert_session_ids(args: argparse.Namespace, _: Overrides) -> None:
    from dataset_converters.session_ids import convert_session_ids

    summary = convert_session_ids(
        args.dataset,
        args.train,
        args.test,
        args.data_path,
        valid=args.valid,
        valid_share=0.1 if args.valid_share is None else args.valid_share,
        augment=bool(args.augment),
        max_len=args.max_len,
        overwrite=args.overwrite,
    )
    print(summary_text(summary.path, summary.counts))


def _tell(path: Path, counts: dict[str, int]) -> None:
    """Print what a conversion wrote, and the images where there are any."""
    from dataset_converters.images import read_records

    print(summary_text(path, counts))
    records = read_records(path).values()
    if records:
        ok = sum(record["status"] == "ok" for record in records)
        unreadable = sum(record["status"] == "unreadable" for record in records)
        print(f"{path / 'images'}: {ok:,} items with an image, {unreadable:,} unreadable")


def summary_text(path: Path, counts: dict[str, int]) -> str:
    """One paragraph on a conversion."""
    return (
        f"{path}: {counts['sessions']:,} sessions, {counts['interactions']:,} interactions, "
        f"{counts['items']:,} items ({counts['items_in_train']:,} of them in training); "
        f"train/valid/test sessions {counts['sessions_train']:,}/{counts['sessions_valid']:,}/"
        f"{counts['sessions_test']:,}"
    )
