"""What it brings that a process on a CPU keeps the memory it frees.

Usage: ``python perf/host_memory.py [--data PATH] [--rounds 3] [--batches 256 2048]``. One epoch of
SASRec on Amazon's Scientific sequences (scores of a batch over 4,344 items), training and ranking,
one torch thread, each time in a process of its own, in turns with and without
`recbole_tpad.host_memory`; the best turn of each. Progress goes to stderr, the last line is JSON:
for each batch size ``seconds_ratio`` and ``peak_ratio``, with over without; ``system_s``, seconds
the system spent on either side; ``same_metrics``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dataset_converters.sequences import convert_sequences

RUN = """
import json, resource, sys, torch
torch.set_num_threads(1)
from recbole_tpad.bridge.runner import run
found = run(json.loads(sys.argv[1]))
spent = resource.getrusage(resource.RUSAGE_SELF).ru_stime
print(json.dumps([found.seconds, found.peak_mb, spent, dict(found.metrics)]))
"""
SETTINGS = {
    "dataset": "scientific",
    "model": "SASRec",
    "mask_history": True,
    "epochs": 1,
    "seed": 1,
    "learning_rate": 0.003,
    "show_progress": False,
}


def measured(settings: dict[str, Any], keep: bool) -> tuple[float, float, float, Any]:
    """Seconds, peak MB, seconds of the system, metrics of one run."""
    clean = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    # Set, if to nothing, it says that the allocator is the user's affair.
    environment = clean if keep else clean | {"GLIBC_TUNABLES": ""}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, json.dumps(settings)],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    seconds, peak, system, metrics = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak, system, metrics


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="*", default=[256, 2048])
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        source = args.data / "amazon2018_scientific"
        files = source / "Scientific.inter.json", source / "Scientific.item.json"
        convert_sequences("scientific", *files, Path(made))
        for size in args.batches:
            settings = SETTINGS | {
                "data_path": made,
                "checkpoint_dir": made,
                "train_batch_size": size,
            }
            turns: dict[bool, list[tuple[float, float, float, Any]]] = {True: [], False: []}
            for _ in range(args.rounds):
                for keep in turns:
                    turns[keep].append(measured(settings, keep))
                    print(size, keep, turns[keep][-1][:3], file=sys.stderr, flush=True)
            best = {keep: [min(t[k] for t in turns[keep]) for k in range(3)] for keep in turns}
            metrics = [t[3] for keep in turns for t in turns[keep]]
            found[str(size)] = {
                "seconds_ratio": round(best[True][0] / best[False][0], 3),
                "peak_ratio": round(best[True][1] / best[False][1], 3),
                "system_s": [round(best[keep][2], 1) for keep in (True, False)],
                "same_metrics": all(m == metrics[0] for m in metrics),
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
