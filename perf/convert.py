"""Converting raw Amazon files: time against a plain pandas script, and peak memory by size.

Usage: python perf/convert.py [--reviews 5000000] [--large 20000000] [--runs 1] [--folder DIR]

Writes raw files of the 2018 format, converts them by DIMO's recipe with `convert_amazon` and with
`convert_with_pandas.py`, each in a process of its own, and compares the bytes of what both write.
The last line is a JSON object:
    speedup: seconds of the script / seconds of `convert_amazon`, the best of `runs` each,
        alternating.
    peak_mb_5m, peak_mb_20m: largest resident memory of `convert_amazon` at `reviews` and at
        `large` reviews, in MB of 10^6 bytes. peak_mb_20m is null with --large 0.
    mb_per_s: decompressed MB of reviews a second, at `reviews`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = ("x.inter", "x.train.inter", "x.valid.inter", "x.test.inter", "x.item")
OURS = (
    "import sys; from pathlib import Path; from dataset_converters.amazon import convert_amazon; "
    "a, b, c = map(Path, sys.argv[1:4]); convert_amazon('x', a, b, c, split='dimo')"
)


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def timed(command: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds and its largest resident memory in MB."""
    start = time.perf_counter()
    path = os.pathsep.join((str(HERE.parent), os.environ.get("PYTHONPATH", "")))
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e6


def write_raw(folder: Path, reviews: int) -> tuple[Path, Path]:
    """Write the raw files in a process of its own.

    A child's largest resident memory starts at its parent's of the moment: this one stays small.
    """
    program = str(HERE / "raw_reviews.py")
    subprocess.run([sys.executable, program, str(folder), str(reviews)], check=True)
    return folder / "reviews.json.gz", folder / "meta.json.gz"


def ours(raw: tuple[Path, Path], folder: Path) -> tuple[float, float]:
    shutil.rmtree(folder, ignore_errors=True)
    return timed([sys.executable, "-c", OURS, *map(str, raw), str(folder)])


def script(raw: tuple[Path, Path], folder: Path) -> tuple[float, float]:
    shutil.rmtree(folder, ignore_errors=True)
    program = str(HERE / "convert_with_pandas.py")
    return timed([sys.executable, program, *map(str, raw), str(folder), "x"])


def compare(folder: Path) -> None:
    for file in FILES:
        mine, other = folder / "ours" / "x" / file, folder / "script" / file
        if mine.read_bytes() != other.read_bytes():
            raise SystemExit(f"{file} differs between the two")


def decompressed(path: Path) -> int:
    with gzip.open(path, "rb") as stream:
        size = 0
        while data := stream.read(1 << 20):
            size += len(data)
    return size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--reviews", type=int, default=5_000_000)
    parser.add_argument("--large", type=int, default=20_000_000)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for 3.5 GB of raw files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        raw = write_raw(folder / "raw", args.reviews)
        log(f"{args.reviews:,} reviews: {raw[0].stat().st_size / 1e6:.0f} MB gzip")
        mine, theirs = [], []
        for run in range(args.runs):
            mine.append(ours(raw, folder / "ours"))
            theirs.append(script(raw, folder / "script"))
            log(f"run {run + 1}: ours {mine[-1]}, script {theirs[-1]} (seconds, MB)")
        compare(folder)
        seconds = min(s for s, _ in mine)
        result = {
            "speedup": min(s for s, _ in theirs) / seconds,
            "peak_mb_5m": max(mb for _, mb in mine),
            "peak_mb_20m": None,
            "mb_per_s": decompressed(raw[0]) / 1e6 / seconds,
            "seconds": seconds,
            "reviews": args.reviews,
            "large": args.large,
        }
        if args.large:
            shutil.rmtree(folder / "raw")
            raw = write_raw(folder / "raw", args.large)
            log(f"{args.large:,} reviews: {raw[0].stat().st_size / 1e6:.0f} MB gzip")
            seconds, result["peak_mb_20m"] = ours(raw, folder / "ours")
            log(f"{args.large:,} reviews: {seconds:.1f} s, {result['peak_mb_20m']:.0f} MB")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
