"""What batches of similar length (``length_bucketing``) do to the metric and the time.

Usage: ``python perf/length_bucketing.py [--data PATH] [--seeds 2] [--epochs 5]``. GRU4Rec, 32 wide,
on Amazon's Scientific sequences, leave one out, with and without. Progress goes to stderr; the last
line is JSON: ``hr_ratio`` and ``ndcg_ratio`` (test, with over without, means over the seeds),
``spread`` (the largest difference between seeds without it, over the mean) and ``time_ratio``
(seconds without over seconds with).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

from dataset_converters.sequences import convert_sequences
from recbole_tpad.bridge.runner import RunResult, run


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    source = args.data / "amazon2018_scientific"
    found: dict[bool, list[RunResult]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as scratch:
        convert_sequences(
            "scientific",
            source / "Scientific.inter.json",
            source / "Scientific.item.json",
            Path(scratch),
        )
        for seed in range(1, args.seeds + 1):
            for bucketed in (False, True):
                result = run(
                    {
                        "model": "GRU4Rec",
                        "dataset": "scientific",
                        "data_path": scratch,
                        "seed": seed,
                        "embedding_size": 32,
                        "hidden_size": 32,
                        "learning_rate": 0.003,
                        "epochs": args.epochs,
                        "length_bucketing": bucketed,
                    }
                )
                found[bucketed].append(result)
                print(
                    f"seed {seed}, bucketed {bucketed}: HR@10 {result.hr:.4f}, NDCG@10 "
                    f"{result.ndcg:.4f}, {result.seconds:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
    mean = {
        (key, name): statistics.fmean(getattr(r, name) for r in results)
        for key, results in found.items()
        for name in ("hr", "ndcg", "seconds")
    }
    plain = [r.ndcg for r in found[False]]
    ratios = {
        "hr_ratio": mean[True, "hr"] / mean[False, "hr"],
        "ndcg_ratio": mean[True, "ndcg"] / mean[False, "ndcg"],
        "spread": (max(plain) - min(plain)) / mean[False, "ndcg"],
        "time_ratio": mean[False, "seconds"] / mean[True, "seconds"],
    }
    rounded = {key: round(value, 3) for key, value in ratios.items()}
    print(json.dumps({**rounded, "seeds": args.seeds, "epochs": args.epochs}))


if __name__ == "__main__":
    main()
