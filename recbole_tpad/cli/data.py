"""Commands on data set folders: convert, images, keywords."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recbole_tpad.cli.parser import Commands, Overrides, add_dataset
from recbole_tpad.errors import InputError


def add_commands(commands: Commands) -> None:
    """Add this module's commands."""
    convert = commands.add("convert", None, "Turn raw files into a data set folder.")
    _add_sources(convert)
    images = commands.add("images", _images, "Download or attach item images.")
    add_dataset(images)
    _add_image_options(images)
    keywords = commands.add("keywords", _keywords, "Attach visual keywords to a data set.")
    add_dataset(keywords)
    keywords.add_argument("--annotator", choices=["file"], default="file")
    keywords.add_argument("--file", type=Path, help="CSV (item_id,keywords) or JSON lines")


def _add_image_options(images: argparse.ArgumentParser) -> None:
    images.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="take files named like the item ids or like the metadata's image URLs from this "
        "folder instead of downloading",
    )
    download = images.add_argument_group("download")
    # The defaults are DownloadOptions' own; None leaves an option to them.
    whole = {
        "size": "longest side of a stored image in pixels, 0: as downloaded; default: 512",
        "workers": "requests at a time; default: 16",
        "per_host": "requests at a time to one host; default: 4",
        "retries": "further attempts after a passing failure; default: 4",
        "max_bytes": "of one answer; default: 20,000,000",
        "max_pixels": "larger images are not decoded; default: 50,000,000",
        "min_side": "images with a shorter side stand for missing ones; default: 8",
    }
    seconds = {
        "connect_timeout": "for a connection; default: 10 s",
        "read_timeout": "without a byte; default: 20 s",
        "time_limit": "for one whole answer; default: 60 s",
        "max_wait": "longest wait before a retry, also when asked to; default: 300 s",
    }
    for name, text in whole.items():
        download.add_argument(f"--{name}", type=int, metavar="N", help=text)
    for name, text in seconds.items():
        download.add_argument(f"--{name}", type=float, metavar="S", help=text)
    download.add_argument(
        "--placeholders", type=Path, metavar="FILE", help="SHA-256 sums of 'no image' pictures"
    )
    download.add_argument(
        "--allow_private", action="store_true", help="also fetch from addresses that are not public"
    )
    download.add_argument(
        "--retry_dead", action="store_true", help="also retry missing, unreadable, refused ones"
    )


def _add_sources(parser: argparse.ArgumentParser) -> None:
    sources = parser.add_subparsers(title="sources", required=True, metavar="SOURCE")
    amazon = sources.add_parser(
        "amazon", help="Amazon review files as published", allow_abbrev=False
    )
    amazon.set_defaults(command=_convert_amazon)
    amazon.add_argument("--reviews", type=Path, required=True)
    amazon.add_argument("--meta", type=Path, required=True)
    amazon.add_argument("--release", choices=["2018"], default="2018")
    amazon.add_argument("--sessions", choices=["first-day", "day", "user"])
    amazon.add_argument(
        "--split", choices=["temporal", "dimo", "leave-one-out"], default="temporal"
    )
    amazon.add_argument("--min_session_length", type=int, default=2)
    amazon.add_argument("--max_session_length", type=int)
    amazon.add_argument("--min_item_count", type=int)
    amazon.add_argument("--allow_truncated", action="store_true")
    amazon.add_argument("--max_rejected", type=float, default=0.01)
    sequences = sources.add_parser(
        "sequences", help="JSON files: user -> items, item -> texts", allow_abbrev=False
    )
    sequences.set_defaults(command=_convert_sequences)
    sequences.add_argument("--interactions", type=Path, required=True)
    sequences.add_argument("--items", type=Path, required=True)
    for source in (amazon, sequences):
        add_dataset(source)
        source.add_argument("--augment", action=argparse.BooleanOptionalAction, default=None)
        source.add_argument("--max_len", type=int, default=50)
        source.add_argument("--overwrite", action="store_true")


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
        min_session_length=args.min_session_length,
        min_item_count=args.min_item_count,
        max_session_length=args.max_session_length,
        augment=args.augment,
        max_len=args.max_len,
        allow_truncated=args.allow_truncated,
        max_rejected=args.max_rejected,
        overwrite=args.overwrite,
    )
    print(summary_text(summary.path, summary.counts))


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


def summary_text(path: Path, counts: dict[str, int]) -> str:
    """One paragraph on a conversion."""
    return (
        f"{path}: {counts['sessions']:,} sessions, {counts['interactions']:,} interactions, "
        f"{counts['items']:,} items ({counts['items_in_train']:,} of them in training); "
        f"train/valid/test sessions {counts['sessions_train']:,}/{counts['sessions_valid']:,}/"
        f"{counts['sessions_test']:,}"
    )


def _images(args: argparse.Namespace, _: Overrides) -> None:
    from recbole_tpad.data import DatasetFolder

    folder = DatasetFolder.open(args.data_path, args.dataset)
    if args.source is None:
        _download(args, folder.path)
        return
    from dataset_converters.images import attach_images

    counts = attach_images(folder.path, args.source)
    print(
        f"{folder.path / 'images'}: {counts.ok:,} items with an image ({counts.copied:,} copied "
        f"now), {counts.missing:,} without, {counts.unreadable:,} unreadable"
    )


def _download(args: argparse.Namespace, folder: Path) -> None:
    from dataclasses import fields

    from dataset_converters.download import DownloadOptions, download_images, read_placeholders

    given = {field.name: getattr(args, field.name, None) for field in fields(DownloadOptions)}
    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen.get("size") == 0:
        chosen["size"] = None
    known = read_placeholders(args.placeholders) if args.placeholders else frozenset()
    summary = download_images(folder, DownloadOptions(**chosen), placeholders=known)
    told = ", ".join(f"{count:,} {status}" for status, count in summary.statuses.items() if count)
    print(
        f"{folder / 'images'}: {told} ({summary.fetched:,} fetched now with {summary.requests:,} "
        "requests)"
    )
    for host in summary.hosts_down.values():
        print(f"  given up: {host}", file=sys.stderr)
    for entry in summary.repeated[:10]:
        print(
            f"  the same picture for {entry.items:,} items, such as {entry.example}; if it says "
            f"that there is none, list it for --placeholders: {entry.sha256}",
            file=sys.stderr,
        )
    if summary.statuses["failed"]:
        print("  Run the command again for what failed.", file=sys.stderr)


def _keywords(args: argparse.Namespace, _: Overrides) -> None:
    from recbole_tpad.keywords.file import annotate_from_file

    if args.file is None:
        raise InputError("The annotator 'file' needs --file PATH (CSV or JSON lines).")
    print(annotate_from_file(args.data_path, args.dataset, args.file))
