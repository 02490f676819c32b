"""Commands on data set folders: convert, images, keywords, describe."""

from __future__ import annotations

import argparse
from pathlib import Path

from recbole_tpad.cli import images, keywords, tables
from recbole_tpad.cli.parser import Commands, Overrides, add_dataset
from recbole_tpad.cli.tables import summary_text


def add_commands(commands: Commands) -> None:
    """Add this module's commands."""
    convert = commands.add("convert", None, "Turn raw files into a data set folder.")
    _add_sources(convert)
    images.add_command(commands)
    keywords.add_command(commands)
    describe = commands.add(
        "describe", _describe, "Report what is in a data set, and where results would mislead."
    )
    add_dataset(describe)
    describe.add_argument("--json", action="store_true", help="print describe.json instead of text")


def _add_sources(parser: argparse.ArgumentParser) -> None:
    sources = parser.add_subparsers(title="sources", required=True, metavar="SOURCE")
    amazon = sources.add_parser(
        "amazon", help="Amazon review files as published", allow_abbrev=False
    )
    amazon.set_defaults(command=_convert_amazon)
    _add_amazon_options(amazon)
    sequences = sources.add_parser(
        "sequences", help="JSON files: user -> items, item -> texts", allow_abbrev=False
    )
    sequences.set_defaults(command=_convert_sequences)
    sequences.add_argument("--interactions", type=Path, required=True)
    sequences.add_argument("--items", type=Path, required=True)
    tables.add_sources(sources)
    for source in (amazon, sequences):
        add_dataset(source)
        source.add_argument("--augment", action=argparse.BooleanOptionalAction, default=None)
        source.add_argument("--max_len", type=int, default=50)
        source.add_argument("--overwrite", action="store_true")


def _add_amazon_options(amazon: argparse.ArgumentParser) -> None:
    amazon.add_argument("--reviews", type=Path, required=True)
    amazon.add_argument("--meta", type=Path, required=True)
    amazon.add_argument(
        "--release", choices=["2014", "2018", "2023"], help="default: told by content"
    )
    amazon.add_argument(
        "--sessions", metavar="RULE", help="first-day, day, gap:30m, timestamp or user"
    )
    amazon.add_argument("--split", default="temporal", help="temporal, dimo, leave-one-out, ratio")
    amazon.add_argument("--ratio", metavar="A:B:C", help="parts under temporal and ratio")
    amazon.add_argument("--ratio_order", choices=["shuffled", "session_id"], default="shuffled")
    amazon.add_argument("--seed", type=int, default=0, help="of the shuffled order")
    for name in ("drop_repeats", "needs_text", "needs_image"):
        amazon.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None)
    amazon.add_argument("--drop_consecutive", action="store_true")
    amazon.add_argument("--min_session_length", type=int, default=2)
    amazon.add_argument("--max_session_length", type=int)
    amazon.add_argument("--min_item_count", type=int)
    amazon.add_argument("--iterate_filters", action="store_true", help="filter until nothing goes")
    amazon.add_argument("--allow_truncated", action="store_true")
    amazon.add_argument("--max_rejected", type=float, default=0.01)
    amazon.add_argument("--memory", default="512MB", help="of the database; the rest goes to disk")
    amazon.add_argument("--exact", action="store_true", help="slower reading with the same result")


def _convert_amazon(args: argparse.Namespace, _: Overrides) -> None:
    from dataset_converters.amazon import convert_amazon

    summary = convert_amazon(
        args.dataset,
        args.reviews,
        args.meta,
        args.data_path,
        release=args.release,
        sessions=args.sessions,
        split=args.split,
        drop_repeats=args.drop_repeats,
        needs_text=args.needs_text,
        needs_image=args.needs_image,
        drop_consecutive=args.drop_consecutive,
        min_session_length=args.min_session_length,
        min_item_count=args.min_item_count,
        iterate_filters=args.iterate_filters,
        max_session_length=args.max_session_length,
        augment=args.augment,
        max_len=args.max_len,
        ratio=args.ratio,
        ratio_order=args.ratio_order,
        seed=args.seed,
        allow_truncated=args.allow_truncated,
        max_rejected=args.max_rejected,
        memory=args.memory,
        exact=args.exact,
        overwrite=args.overwrite,
    )
    print(summary_text(summary.path, summary.counts))
    for source in summary.truncated:
        print(f"{source.name} was cut: read to the end of line {source.truncated_after:,}")
    if rejected := summary.counts["lines_rejected"]:
        left = "1 line was" if rejected == 1 else f"{rejected:,} lines were"
        print(f"{left} left out: {summary.path / 'rejected.jsonl'} says why")


def _convert_sequences(args: argparse.Namespace, _: Overrides) -> None:
    from dataset_converters.sequences import convert_sequences

    summary = convert_sequences(
        args.dataset,
        args.interactions,
        args.items,
        args.data_path,
        augment=args.augment is not False,
        max_len=args.max_len,
        overwrite=args.overwrite,
    )
    print(summary_text(summary.path, summary.counts))


def _describe(args: argparse.Namespace, _: Overrides) -> None:
    import json

    from dataset_converters.describe import describe
    from dataset_converters.describe_text import card_text
    from recbole_tpad.data import DatasetFolder

    card = describe(DatasetFolder.open(args.data_path, args.dataset).path)
    print(json.dumps(card, indent=1, ensure_ascii=False) if args.json else card_text(card))
