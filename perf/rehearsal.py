"""Every command at the paper's scale, unattended: time and memory of each stage.

Usage: ``python perf/rehearsal.py [--folder FOLDER] [--items 14650] [--users 35598] [--sessions
90000] [--epochs 2] [--generator tpad-tiny] [--key=value …]``. Makes raw files of Amazon's 2018
format with a photograph for every item, as many items and sessions as the paper's Sports set, and
runs the commands that a user would type, each in a process of its own. The towers are small random
ones and the recommenders stop after few epochs, so the scores say nothing. With ``--folder`` a run
that was stopped goes on after its last whole stage. Progress goes to stderr; the last line is JSON
with, for each stage, ``seconds``, ``cpu_seconds`` and ``peak_mb`` (of its largest process), the
``disk_mb`` it left, and ``scores`` as a check that there are any.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from recbole_tpad.demo.shop import shop_files
from recbole_tpad.files import write_json

NAME = "rehearsal"
SUITE = {
    "models": ["DIMO", "SASRec", "CoOccurrence"],
    "item_embeddings": ["none", "towers"],
    "seeds": 1,
    "config": {
        "train_batch_size": 512,
        "eval_batch_size": 1024,
        "learning_rate": 0.001,
        "length_bucketing": True,
    },
    "model_config": {"SASRec": {"hidden_size": 64, "inner_size": 256, "n_layers": 2, "n_heads": 2}},
}


class Record:
    """What each stage took, in a file, so that a stopped rehearsal goes on where it was.

    Args:
        path: of the file.
        arguments: of the rehearsal; a record of others is not used.
    """

    def __init__(self, path: Path, arguments: dict[str, Any]) -> None:
        self._path = path
        self._found: dict[str, Any] = {"arguments": arguments}
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["arguments"] != arguments:
                raise SystemExit(f"{path} is of other arguments: {found['arguments']}")
            self._found = found

    def once(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures of a stage, which runs only where there are none."""
        if name not in self._found:
            self._found[name] = run()
            write_json(self._path, self._found)
        print(f"{name}: {self._found[name]}", file=sys.stderr, flush=True)
        taken: dict[str, Any] = self._found[name]
        return taken


def stage(name: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    """Run Python with these arguments in a process of its own; return what it took."""
    print(f"$ python {shlex.join(arguments)}", file=sys.stderr, flush=True)
    before, started = disk_mb(folder), time.perf_counter()
    with (folder / f"{name}.log").open("w", encoding="utf-8") as log:
        actions = [(os.POSIX_SPAWN_DUP2, log.fileno(), place) for place in (1, 2)]
        command = [sys.executable, *arguments]
        child = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
        _, status, used = os.wait4(child, 0)
    seconds = time.perf_counter() - started
    if status != 0:
        raise SystemExit(f"{name} failed; its output:\n{(folder / f'{name}.log').read_text()}")
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        # Of a command's own process, and never less than this small one's: Linux counts the memory
        # before exec, too. That of the recommenders' processes is in results.json.
        "peak_mb": round(used.ru_maxrss / 1024),
        "disk_mb": round(disk_mb(folder) - before, 1),
    }


def disk_mb(folder: Path) -> float:
    """Size of all files below a folder."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20


def main() -> None:
    """Run every stage, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    parser.add_argument("--items", type=int, default=14_650)
    parser.add_argument("--users", type=int, default=35_598)
    parser.add_argument("--sessions", type=int, default=90_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--generator", default="tpad-tiny")
    args, args.keys = parser.parse_known_args()  # the rest: --key=value of the generator
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(rehearse(args.folder or Path(temporary), args)))


def rehearse(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run every command on a made shop in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder / "rehearsal.json", vars(args) | {"folder": None})
    size = {name: getattr(args, name) for name in ("items", "users", "sessions")}
    draw = (
        "from pathlib import Path; from recbole_tpad.demo.shop import make_shop; "
        f"make_shop(Path({str(folder / 'raw')!r}), **{size})"
    )
    shop = shop_files(folder / "raw")
    suite = folder / "suite.yaml"
    own = {**SUITE, "config": {**SUITE["config"], "epochs": args.epochs}}
    suite.write_text(json.dumps(own), encoding="utf-8")  # JSON is YAML
    data = ["--dataset", NAME, "--data_path", str(folder / "dataset")]
    raw = ["--reviews", str(shop.reviews), "--meta", str(shop.meta)]
    tool = ["-m", "recbole_tpad"]
    commands = {
        "raw files": ["-c", draw],
        "convert": [*tool, "convert", "amazon", *data, *raw, "--sessions", "day", "--overwrite"],
        "images": [*tool, "images", *data, "--from", str(shop.images)],
        "describe": [*tool, "describe", *data],
        "keywords": [*tool, "keywords", *data, "--file", str(shop.keywords)],
        "embed": [
            *tool,
            "embed",
            *data,
            "--generator",
            args.generator,
            "--name",
            "towers",
            *args.keys,
        ],
        "verify": [*tool, "embeddings", "verify", *data, "--name", "towers"],
        "evaluate": [
            *tool,
            "evaluate",
            *data,
            "--suite",
            str(suite),
            "--output",
            str(folder / "report"),
        ],
    }
    stages = {
        name: record.once(name, partial(stage, name, command, folder))
        for name, command in commands.items()
    }
    results = json.loads((folder / "report" / "results.json").read_text(encoding="utf-8"))
    stages["embed"]["by_stage"] = {
        part["name"]: round(part["seconds"], 1)
        for entry in results["generators"].values()
        for part in entry["stages"]
    }
    stages["evaluate"]["runs"] = {
        f"{row['model']} + {row['item_embeddings'] or 'none'}": {
            "seconds": round(row["seconds"], 1),
            "peak_mb": round(row["peak_mb"]),
        }
        for row in results["rows"]
    }
    stages["evaluate"]["peak_mb"] = round(max(row["peak_mb"] for row in results["rows"]))
    scores = {
        f"{row['model']} + {row['item_embeddings'] or 'none'}": row["metrics"]["HR@10"]
        for row in results["rows"]
    }
    shown = ("items", "sessions", "interactions", "reviews_read")
    counts = {name: results["dataset"]["counts"][name] for name in shown}
    return {"counts": counts, **stages, "scores": scores}


if __name__ == "__main__":
    main()
