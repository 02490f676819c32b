"""`recbole-tpad demo`: makes a small shop, then runs the commands a user types."""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path

from recbole_tpad.demo.shop import ShopFiles, make_shop
from recbole_tpad.files import sha256_file

NAME = "shop"
GENERATOR = "tpad-tiny"

_OWN_DATA = """\
For your own data, for example Amazon's 2018 release:

  recbole-tpad convert amazon --dataset grocery \\
      --reviews Grocery_and_Gourmet_Food_5.json.gz --meta meta_Grocery_and_Gourmet_Food.json.gz
  recbole-tpad images   --dataset grocery
  recbole-tpad keywords --dataset grocery --file keywords.csv
  recbole-tpad embed    --dataset grocery --generator tpad
  recbole-tpad run      --dataset grocery --model DIMO --item_embeddings tpad
  recbole-tpad run      --dataset grocery --model SASRec --item_embeddings tpad

The tiny backbone of this demo has small random weights, trained here. Real towers (BLIP-2 and
Llama-2-7B) are the preset 'tpad'; they need a GPU and the two checkpoints."""


def run_demo(folder: Path, *, seed: int, jobs: int | None = None) -> Path:
    """Make the shop and run the whole line on it.

    Args:
        folder: everything goes here; a second run with the same seed reuses finished work.
        seed: of the shop.
        jobs: recommenders trained at a time; None: one a core.

    Returns:
        Path of results.json; report.html lies beside it.

    Raises:
        InputError: a command refused its input.
    """
    started = time.perf_counter()
    print(f"Making a small shop in the raw Amazon 2018 format: {folder / 'raw'}", flush=True)
    shop = make_shop(folder / "raw", seed=seed)
    data = ["--dataset", NAME, "--data_path", str(folder / "dataset")]
    jobs = jobs or os.cpu_count() or 1
    raw = ["--reviews", str(shop.reviews), "--meta", str(shop.meta)]
    commands = [
        ["convert", "amazon", *data, *raw, "--sessions", "day", "--overwrite"],
        ["images", *data, "--from", str(shop.images)],
        ["keywords", *data, "--file", str(shop.keywords)],
        ["embed", *data, "--generator", GENERATOR],
        ["evaluate", *data, "--suite", "demo", "--jobs", str(jobs), "--output", str(folder)],
    ]
    if _is_converted(folder / "dataset" / NAME, shop):
        print("The shop is converted already; finished work is reused.", flush=True)
        commands = commands[1:]
    for command in commands:
        _type(command)
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Open {folder / 'report.html'}\n")
    print(_OWN_DATA)
    return folder / "results.json"


def _type(command: list[str]) -> None:
    """Show and run one command line."""
    from recbole_tpad.cli import run_command

    print(f"\n$ recbole-tpad {shlex.join(command)}", flush=True)
    started = time.perf_counter()
    run_command(command)
    print(f"  ({time.perf_counter() - started:.1f} s)", flush=True)


def _is_converted(dataset: Path, shop: ShopFiles) -> bool:
    """Whether the data set folder was made from exactly these raw files."""
    try:
        source = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["source"]
        recorded = {file["name"]: file["sha256"] for file in source["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(recorded.get(f.name) == sha256_file(f) for f in (shop.reviews, shop.meta))
