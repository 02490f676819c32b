"""Item embeddings in SASRec: fusions, the scale they start with, and the kernel, over seeds.

Usage: ``python perf/fusions.py --data_path dataset --dataset scientific --output rows.jsonl
[--stores tfidf] [--rows none add init init:0.02] [--seeds 3] [--epochs 60]``. The data set is a
converted folder with the stores named. A row is ``none``, or a fusion for every store, with
``:NUMBER`` for ``item_embeddings_scale``. Every training is one line of the output file, which a
further call goes on with. Progress goes to stderr; the last line is JSON: for each row mean and
deviation of the test part's NDCG@10 and HR@10 (``ndcg``, ``ndcg_std``, ``hr``, ``hr_std``), the
same with the embedding kernel added to the trained model's scores (``kernel_…``), ``seeds``, and
``ndcg_ratio``, the mean over that of ``none``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

from recbole.utils import init_seed

from recbole_tpad.bridge.adjustments import fit_adjustments
from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.dataset import load_data
from recbole_tpad.bridge.models import build_model
from recbole_tpad.bridge.ranking import metrics_at
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.bridge.trainer import SessionTrainer

KEYS: dict[str, Any] = {
    "hidden_size": 64,
    "inner_size": 256,
    "n_layers": 2,
    "n_heads": 2,
    "train_batch_size": 256,
    "length_bucketing": True,
    "mask_history": True,
    "learning_rate": 0.001,
    "eval_step": 1,
    "stopping_step": 2,
    "show_progress": False,
}


def prepared(keys: dict[str, Any]) -> tuple[Any, Any, SessionTrainer]:
    """Return configuration, loaders and trainer, seeded as `run` seeds them."""
    config = SessionConfig(None, None, None, keys)
    init_seed(config["seed"], config["reproducibility"])
    loaders = load_data(config)
    init_seed(config["seed"], config["reproducibility"])
    return config, loaders, SessionTrainer(config, build_model(config, loaders.train._dataset))


def train(keys: dict[str, Any]) -> dict[str, Any]:
    """Train once; return the test metrics without and with the kernel."""
    with numpy_names():
        config, loaders, trainer = prepared(keys)
        trainer.fit(
            loaders.train,
            loaders.valid,
            saved=False,
            callback_fn=lambda epoch, score: print(epoch, f"{score:.4f}", file=sys.stderr),
        )
        found: dict[str, Any] = {
            "best_epoch": trainer.best_epoch,
            "valid": trainer.best_valid_score,
            "alone": metrics_at(trainer.rank(loaders.test).ranks, [10]),
        }
        chosen = fit_adjustments(config, trainer.model, trainer, loaders, saved=False)
        if chosen:
            found |= chosen
            found["kernel"] = metrics_at(trainer.rank(loaders.test).ranks, [10])
    return found


def summary(lines: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return means and deviations over the seeds, by row."""
    rows: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(line["row"] for line in lines):
        own = [line for line in lines if line["row"] == name]
        row: dict[str, float] = {"seeds": len(own)}
        for kind, prefix in (("alone", ""), ("kernel", "kernel_")):
            for metric, key in (("NDCG@10", "ndcg"), ("HR@10", "hr")):
                values = [line[kind][metric] for line in own if kind in line]
                if values:
                    row[prefix + key] = round(statistics.fmean(values), 4)
                if len(values) > 1:
                    row[f"{prefix}{key}_std"] = round(statistics.stdev(values), 4)
        rows[name] = row
    for row in rows.values():
        if "none" in rows:
            row["ndcg_ratio"] = round(row["ndcg"] / rows["none"]["ndcg"], 3)
    return rows


def main() -> None:
    """Run what is not in the output file yet, and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--dataset", default="scientific")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--stores", nargs="+", default=["tfidf"])
    parser.add_argument("--rows", nargs="+", default=["none", "add", "init"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = []
    if args.output.is_file():
        lines = [json.loads(text) for text in args.output.read_text().splitlines()]
    done = {(line["row"], line["seed"]) for line in lines}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for row in args.rows:
            for store in [None] if row == "none" else args.stores:
                name = row if store is None else f"{row} {store}"
                if (name, seed) in done:
                    continue
                keys = {**KEYS, "model": "SASRec", "dataset": args.dataset, "seed": seed}
                keys |= {"data_path": str(args.data_path), "epochs": args.epochs}
                if store is not None:
                    fusion, _, scale = row.partition(":")
                    keys |= {"item_embeddings": store, "item_embeddings_fusion": fusion}
                    keys |= {"embedding_kernel": True}
                    keys |= {"item_embeddings_scale": float(scale)} if scale else {}
                print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
                line = {"row": name, "seed": seed, "epochs": args.epochs, **train(keys)}
                print(json.dumps(line), file=sys.stderr, flush=True)
                lines.append(line)
                with args.output.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
    print(json.dumps(summary(lines)))


if __name__ == "__main__":
    main()
