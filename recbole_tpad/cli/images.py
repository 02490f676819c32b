"""The images command: download, or take files of this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recbole_tpad.cli.parser import Commands, Overrides, add_dataset


def add_command(commands: Commands) -> None:
    """Add the command."""
    images = commands.add("images", _images, "Download or attach item images.")
    add_dataset(images)
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
