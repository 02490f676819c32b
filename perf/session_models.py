"""Which session recommender beats plain co-occurrence: the same small search for each.

Runs on data set folders of sessions of ids (``recbole-tpad convert session-ids``), without item
embeddings. Every trained model tries two learning rates for a few epochs, every counting one up to
four settings; validation NDCG@10 chooses. The chosen setting trains until validation no longer
improves, that of the best three trained models with three seeds. Finished runs are kept in the
output file and unfinished ones beside it, so an interrupted study goes on where it stopped. Test
metrics are those of all rows and items, and "new" those of the rows whose target is not in the
context, ranked among the items that are not in it either (the same trained parameters).

    python perf/session_models.py --data_path dataset --datasets cellphones grocery \\
        --output study.jsonl

Last line: JSON with, per data set and model, the chosen setting, test metrics, seeds and minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_tpad.bridge.ranking import metrics_at
from recbole_tpad.bridge.runner import RunResult, evaluate_saved_run, run
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.files import write_json

SIZE = 100
COMMON: dict[str, Any] = {
    "epochs": 15,
    "stopping_step": 1,
    "train_batch_size": 512,
    "eval_batch_size": 2048,
    # Nine of ten sessions have at most four context items and the longest nineteen.
    "length_bucketing": True,
    "show_progress": False,
    "resume": True,
}
SEARCH_EPOCHS = 3
RATES = {"learning_rate": [0.001, 0.003]}
TRAINED: dict[str, dict[str, list[Any]]] = {
    "DIMO": RATES,
    "SASRec": RATES,
    "GRU4Rec": RATES,
    "NARM": RATES,
    "STAMP": RATES,
    "SRGNN": RATES,
}
SIZES: dict[str, dict[str, Any]] = {
    "DIMO": {"embedding_size": SIZE, "n_layers": 1},
    "SASRec": {"hidden_size": SIZE, "inner_size": 2 * SIZE, "n_layers": 2, "n_heads": 2},
    "GRU4Rec": {"embedding_size": SIZE, "hidden_size": SIZE, "num_layers": 1},
    "NARM": {"embedding_size": SIZE, "hidden_size": SIZE, "n_layers": 1},
    "STAMP": {"embedding_size": SIZE},
    "SRGNN": {"embedding_size": SIZE, "step": 1},
}
COUNTED: dict[str, dict[str, list[Any]]] = {
    "CoOccurrence": {"max_order": [0, 3], "history_decay": [1.0, 0.8]},
    "SKNN": {
        "n_neighbours": [100, 500],
        "weights": [("none", 0.0), ("linear", 5.0)],
    },
    "SPop": {},
    "RepeatLast": {},
    "Popularity": {},
}


def settings(grid: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Yield every combination of a grid."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def keys_of(model: str, setting: dict[str, Any]) -> dict[str, Any]:
    """Translate a setting into RecBole's keys."""
    found = {**SIZES.get(model, {}), **setting}
    if "weights" in found:
        kind, idf = found.pop("weights")
        found.update(position_weighting=kind, vote_weighting=kind, idf_weight=idf)
        found["sample_size"] = 5 * found["n_neighbours"]
    return found


class Study:
    """Runs, kept in a JSON-lines file under what determines them."""

    def __init__(self, output: Path, data_path: Path, overrides: dict[str, Any]) -> None:
        self.output, self.data_path, self.overrides = output, data_path, overrides
        lines = output.read_text().splitlines() if output.is_file() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        self.rows = {row["key"]: row for row in rows}

    def new_rows(self, dataset: str, result: RunResult) -> npt.NDArray[np.bool_]:
        """Say which test rows' targets are not in the context, (rows,)."""
        sessions = dict(DatasetFolder.open(self.data_path, dataset).sessions("test"))
        contexts = [sessions[name][:-1] for name in result.sessions]
        pairs = zip(contexts, result.targets, strict=True)
        return np.array([target not in context for context, target in pairs])

    def run(
        self,
        dataset: str,
        model: str,
        setting: dict[str, Any],
        seed: int,
        epochs: int | None = None,
    ) -> dict[str, Any]:
        """Return a run's row, from the file if it is there; `epochs` instead of the study's."""
        keys = {**COMMON, **self.overrides, **keys_of(model, setting), "seed": seed}
        if epochs is not None:
            keys["epochs"] = epochs
        key = json.dumps([dataset, model, keys], sort_keys=True)
        if key not in self.rows:
            config = {"model": model, "dataset": dataset, "data_path": str(self.data_path), **keys}
            config["checkpoint_dir"] = str(self.output.with_suffix(".unfinished"))
            result = run(config, saved=True)
            others = evaluate_saved_run(str(result.checkpoint), {"mask_history": True})
            Path(str(result.checkpoint)).unlink()
            Path(str(result.checkpoint)).with_suffix(".json").unlink()
            self.rows[key] = {
                "key": key,
                "dataset": dataset,
                "model": model,
                "setting": setting,
                "seed": seed,
                "valid": result.valid,
                "test": result.metrics,
                "test_new": metrics_at(others.ranks[self.new_rows(dataset, others)], (5, 10)),
                "seconds": result.seconds,
                "epochs": result.epochs,
                "best_epoch": result.best_epoch,
                "loss": result.loss,
            }
            with self.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.rows[key]) + "\n")
        row: dict[str, Any] = self.rows[key]
        print(
            f"{dataset} {model} {setting} seed {seed}: valid NDCG@10 "
            f"{row['valid']['NDCG@10']:.4f}, {row['epochs']} epochs, {row['seconds']:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        return row


def study(found: Study, dataset: str, models: list[str]) -> dict[str, Any]:
    """Search, choose on validation, repeat the best three trained models with more seeds."""
    chosen: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = defaultdict(float)
    for model in models:
        tried = list(settings({**TRAINED, **COUNTED}[model]))
        epochs = SEARCH_EPOCHS if model in TRAINED else 1
        rows = [found.run(dataset, model, s, 1, epochs) for s in tried] if len(tried) > 1 else []
        best_row = max(rows, key=lambda row: row["valid"]["NDCG@10"], default=None)
        setting = best_row["setting"] if best_row else tried[0]
        if model in TRAINED:
            chosen[model] = found.run(dataset, model, setting, 1)
        else:
            chosen[model] = best_row or found.run(dataset, model, setting, 1, 1)
        seconds[model] = sum(row["seconds"] for row in [*rows, chosen[model]])
    trained = [m for m in models if m in TRAINED]
    best = sorted(trained, key=lambda m: -chosen[m]["valid"]["NDCG@10"])[:3]
    table = {}
    for model, row in chosen.items():
        rows = [row]
        if model in best:
            rows += [found.run(dataset, model, row["setting"], seed) for seed in (2, 3)]
        tests = {name: [r["test"][name] for r in rows] for name in row["test"]}
        tests |= {f"{name} new": [r["test_new"][name] for r in rows] for name in row["test_new"]}
        table[model] = {
            "setting": row["setting"],
            "loss": row["loss"],
            "seeds": len(rows),
            "valid": round(statistics.mean(r["valid"]["NDCG@10"] for r in rows), 4),
            "epochs": row["epochs"],
            "test": {name: round(statistics.mean(v), 4) for name, v in tests.items()},
            "sd": {name: round(statistics.stdev(v), 4) for name, v in tests.items()}
            if len(rows) > 1
            else None,
            "minutes_of_search": round(seconds[model] / 60, 1),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--datasets", nargs="+", required=True)
    parser.add_argument("--models", nargs="+", default=[*COUNTED, *TRAINED])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=COMMON["epochs"])
    parser.add_argument(
        "--learning_rates", type=float, nargs="+", default=RATES["learning_rate"], help="to try"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.models) - {*COUNTED, *TRAINED}
    if unknown:
        raise InputError(f"Unknown models: {', '.join(sorted(unknown))}.")
    RATES["learning_rate"] = arguments.learning_rates
    found = Study(arguments.output, arguments.data_path, {"epochs": arguments.epochs})
    tables = {name: study(found, name, arguments.models) for name in arguments.datasets}
    write_json(arguments.output.with_suffix(".table.json"), tables)
    print(json.dumps(tables))


if __name__ == "__main__":
    main()
