"""Converting raw Amazon files: time against a plain pandas script, and peak memory by size.

Usage: python perf/convert.py [--reviews 5000000] [--others 1000000 10000000 20000000] [--runs 1]
    [--sports] [--folder DIR] [--raw DIR]

Writes raw files of the 2018 format, converts them by DIMO's recipe with `convert_amazon` and with
`convert_with_pandas.py`, each in a process of its own, and compares the bytes of what both write.
With --raw they are kept in a folder, one for each shape, and the next run takes them from there.
The sizes in `others` and, with --sports, a file of the shape of Amazon's Sports (2,839,940 reviews
of 104,687 items by 332,447 users, metadata of 962,876 items) are converted by `convert_amazon`
alone. All times and peaks are logged. The last line is a JSON object:
    speedup: seconds of the script / seconds of `convert_amazon`, the best of `runs` each,
        alternating.
    peak_mb_5m, peak_mb_20m: largest resident memory of `convert_amazon` at `reviews` and at the
        largest size, in MB of 10^6 bytes.
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

SPORTS = (2_839_940, 332_447, 104_687, 962_876 - 104_687)
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
    load = os.getloadavg()[0]
    start = time.perf_counter()
    path = os.pathsep.join((str(HERE.parent), os.environ.get("PYTHONPATH", "")))
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    seconds, peak = time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e6
    cpu = usage.ru_utime + usage.ru_stime
    log(f"{seconds:.1f} s, {cpu:.1f} s of CPU, {peak:.0f} MB; load before: {load:.1f}")
    return seconds, peak


def write_raw(folder: Path, *shape: int) -> tuple[Path, Path]:
    """Write the raw files in a process of its own; see `raw_reviews.py` for `shape`.

    A child's largest resident memory starts at its parent's of the moment: this one stays small.
    """
    program = str(HERE / "raw_reviews.py")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, program, str(folder), *map(str, shape)], check=True)
    log(f"{shape[0]:,} reviews: {(folder / 'reviews.json.gz').stat().st_size / 1e6:.0f} MB gzip")
    return folder / "reviews.json.gz", folder / "meta.json.gz"


def raw_files(kept: Path | None, temporary: Path, *shape: int) -> tuple[Path, Path]:
    """Return raw files of a shape: those in `kept` from another run, else written now."""
    if kept is None:
        return write_raw(temporary / "raw", *shape)
    folder = kept / "-".join(map(str, shape))
    whole = folder / "whole"  # made last
    if not whole.exists():
        write_raw(folder, *shape)
        whole.touch()
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


def alone(kept: Path | None, folder: Path, name: str, *shape: int) -> float:
    """Convert a file of a shape with `convert_amazon`; return the peak memory in MB."""
    seconds, peak = ours(raw_files(kept, folder, *shape), folder / "ours")
    counts = json.loads((folder / "ours" / "x" / "dataset.json").read_text())["counts"]
    log(
        f"{name}: {seconds:.1f} s, {peak:.0f} MB; {counts['sessions']:,} sessions, "
        f"{counts['interactions']:,} interactions, {counts['items']:,} items"
    )
    return peak


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--reviews", type=int, default=5_000_000)
    parser.add_argument(
        "--others", type=int, nargs="*", default=[1_000_000, 10_000_000, 20_000_000]
    )
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--sports", action="store_true", help="a file shaped like Amazon's Sports")
    parser.add_argument("--folder", type=Path, help="for up to 3 GB of raw files")
    parser.add_argument("--raw", type=Path, help="keep the raw files here, for the next run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        if args.sports:
            alone(args.raw, folder, "Sports", *SPORTS)
        raw = raw_files(args.raw, folder, args.reviews)
        mine, theirs = [], []
        for run in range(args.runs):
            mine.append(ours(raw, folder / "ours"))
            theirs.append(script(raw, folder / "script"))
            log(f"run {run + 1}: {theirs[-1][0] / mine[-1][0]:.1f} times as fast as the script")
        compare(folder)
        seconds = min(s for s, _ in mine)
        result = {
            "speedup": min(s for s, _ in theirs) / seconds,
            "peak_mb_5m": max(mb for _, mb in mine),
            "peak_mb_20m": max(mb for _, mb in mine),
            "mb_per_s": decompressed(raw[0]) / 1e6 / seconds,
        }
        for size in sorted(args.others):
            peak = alone(args.raw, folder, f"{size:,} reviews", size)
            if size > args.reviews:
                result["peak_mb_20m"] = peak
    print(json.dumps(result))


if __name__ == "__main__":
    main()
