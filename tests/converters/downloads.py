"""What the tests of downloads share: options for a server on this machine, small folders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from dataset_converters.download import DownloadOptions, DownloadSummary, download_images
from dataset_converters.images import read_records

QUICK = DownloadOptions(
    backoff=0.02, connect_timeout=5, read_timeout=5, time_limit=10, retries=2, allow_private=True
)


def data_set(folder: Path, urls: dict[str, list[str]], **more: Any) -> Path:
    """A folder with as much of a data set as the download reads."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"item_id": i, "image_urls": u, **more}) for i, u in urls.items()]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def run(folder: Path, **options: Any) -> DownloadSummary:
    return download_images(folder, dataclasses.replace(QUICK, **options))


def one(folder: Path, *urls: str, **options: Any) -> dict[str, Any]:
    """Download one item with these addresses; return its record."""
    run(data_set(folder, {"i": list(urls)}), **options)
    return read_records(folder)["i"]
