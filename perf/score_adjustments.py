"""What a trained model gains from counts, similar items, smoothed rows and calibrated own items.

Usage: ``python perf/score_adjustments.py --data_path dataset --dataset cellphones --profile
sessions --rows DIMO CoOccurrence --seeds 3 --output rows.jsonl``. A row is MODEL, MODEL:STORE or
MODEL:STORE:FUSION. Each is trained once a seed; the test part is then ranked by its scores alone,
with each adjustment that it can take (``counts``: cooccurrence_kernel, ``kernel``:
embedding_kernel, ``similar``: similarity_kernel, ``own``: history_items, ``smoothed``:
row_smoothing), with some together, and with all of them, weights chosen on the validation part.
Profile ``sessions`` has the settings of perf/session_models.py and keeps a session's own
items in the ranking, ``sequences`` those of perf/fusions.py and leaves them out. Finished lines are
kept in the output file, so a killed run goes on where it was.

Last line: JSON; for each row and adjustment ``hr1``, ``hr10``, ``ndcg10``, their ``_sd`` over
``seeds``, the same for slices of the test targets (``in session``; new and ``linked`` by a shared
training session with an item of the context, or ``unlinked``; ``rare``: fewer than five training
interactions) with their ``share``, and ``vs_baseline``: the difference in NDCG@10 from the best row
without item embeddings (by validation) with its 95% interval, paired bootstrap over sessions and
seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import fusions
import numpy as np
import numpy.typing as npt
import session_models

from recbole_tpad.bridge.adjustments import fit_adjustments
from recbole_tpad.bridge.config import parse_value
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.evaluation.statistics import gains, paired_bootstrap
from recbole_tpad.recommenders.item_graph import cooccurrence_counts
from recbole_tpad.recommenders.row_smoothing import AUTO, RowSmoothing
from recbole_tpad.recommenders.sessions import training_item_counts, training_sessions
from recbole_tpad.results import WARM_FROM

RATE = 0.003  # what the search of perf/session_models.py chooses for every trained model
PROFILES: dict[str, dict[str, Any]] = {
    "sessions": {**session_models.COMMON, "learning_rate": RATE, "resume": False},
    "sequences": {"epochs": 60, **fusions.KEYS},
}
SIZES = ("hidden_size", "inner_size", "n_layers", "n_heads")  # of fusions.KEYS, for SASRec
WEIGHTS = {
    "counts": "cooccurrence_weight",
    "similar": "similarity_weight",
    "kernel": "kernel_weight",
    "own": "history_shift",
    "smoothed": "row_smoothing",
}


def keys_of(row: str, profile: str) -> dict[str, Any]:
    """Return the configuration of a row, every adjustment it can take included."""
    model, store, fusion = [*row.split(":"), "", ""][:3]
    keys = {**PROFILES[profile], "model": model}
    if profile == "sessions":
        keys |= session_models.SIZES.get(model, {})
        keys |= {"history_items": "calibrated"}
    elif model != "SASRec":
        keys = {key: value for key, value in keys.items() if key not in SIZES}
    if model != "CoOccurrence":
        keys |= {"cooccurrence_kernel": True}
    if store:
        keys |= {"item_embeddings": store}
        keys |= {"item_embeddings_fusion": fusion} if fusion else {}
        if model != "CoOccurrence":  # which has similarity_kernel by itself, and no other
            keys |= {"similarity_kernel": True, "embedding_kernel": True, "row_smoothing": AUTO}
    return keys


def slices(loaders: Any) -> dict[str, npt.NDArray[np.bool_]]:
    """Return which test rows belong to each slice."""
    train, test = loaders.train._dataset, loaders.test._dataset
    counts = cooccurrence_counts(training_sessions(train)[1], train.item_num)
    targets = test.inter_feat[test.iid_field].numpy()
    contexts = test.inter_feat[test.item_id_list_field].numpy()
    own = (contexts == targets[:, None]).any(axis=1)
    linked = np.zeros(len(targets), dtype=np.bool_)
    for row, (context, target) in enumerate(zip(contexts, targets, strict=True)):
        linked[row] = counts[context[context > 0], target].sum() > 0
    return {
        "in session": own,
        "linked": linked & ~own,
        "unlinked": ~linked & ~own,
        "rare": training_item_counts(train)[targets] < WARM_FROM,
    }


def train(keys: dict[str, Any]) -> dict[str, Any]:
    """Train once; return validation scores, weights and test ranks under each adjustment."""
    with numpy_names():
        config, loaders, trainer = fusions.prepared(keys)
        trainer.fit(loaders.train, loaders.valid, saved=False)
        terms = set(getattr(getattr(trainer.model, "score_adjustments", None), "terms", ()))
        if any(isinstance(module, RowSmoothing) for module in trainer.model.modules()):
            terms.add("row_smoothing")
        names = [name for name, weight in WEIGHTS.items() if weight in terms]
        sets = [(), *((name,) for name in names), ("counts", "similar")]
        sets += [("smoothed", "similar"), ("smoothed", "counts", "similar"), tuple(names)]
        every = dict.fromkeys(used for used in sets if set(used) <= set(names))
        found: dict[str, Any] = {"best_epoch": trainer.best_epoch, "valid": {}, "ranks": {}}
        found["weights"] = {}
        for used in every:
            for name in names:
                config[WEIGHTS[name]] = None if name in used else 0.0
            chosen = fit_adjustments(config, trainer.model, trainer, loaders, saved=False)
            title = " + ".join(used) or "alone"
            valid = trainer._recbole_result(trainer.rank(loaders.valid))
            found["valid"][title] = valid["ndcg@10"]
            found["weights"][title] = {name: chosen[WEIGHTS[name]] for name in used}
            found["ranks"][title] = trainer.rank(loaders.test).ranks.tolist()
        found["slices"] = {
            name: np.flatnonzero(rows).tolist() for name, rows in slices(loaders).items()
        }
    return found


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last line's JSON."""
    table: dict[str, Any] = {}
    ranks: dict[str, npt.NDArray[np.int64]] = {}
    plain: dict[str, float] = {}
    for row in dict.fromkeys(line["row"] for line in lines):
        own = [line for line in lines if line["row"] == row]
        for title in own[0]["ranks"]:
            name = row if title == "alone" else f"{row} + {title}"
            ranks[name] = np.array([line["ranks"][title] for line in own])
            valid = statistics.fmean(line["valid"][title] for line in own)
            if ":" not in row:
                plain[name] = valid
            entry: dict[str, Any] = {"seeds": len(own), "valid_ndcg10": round(valid, 4)}
            entry |= figures(ranks[name])
            entry["weights"] = [line["weights"][title] for line in own]
            for part, rows in own[0]["slices"].items():
                share = len(rows) / ranks[name].shape[1]
                entry[part] = {"share": round(share, 4), **figures(ranks[name][:, rows])}
            table[name] = entry
    if plain:
        baseline = max(plain, key=lambda name: plain[name])
        for name, entry in table.items():
            a, b = (gains(ranks[n], "NDCG@10") for n in (name, baseline))
            found = paired_bootstrap(a, b)
            interval = [round(v, 4) for v in (found.difference, found.low, found.high)]
            entry["vs_baseline"] = {"baseline": baseline, "difference_low_high": interval}
    return table


def figures(ranks: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return HR@1, HR@10 and NDCG@10 over seeds; `ranks` is (seeds, rows)."""
    found = {}
    for name, metric in (("hr1", "HR@1"), ("hr10", "HR@10"), ("ndcg10", "NDCG@10")):
        by_seed = [float(gains(own, metric).mean()) if own.size else 0.0 for own in ranks]
        found[name] = round(statistics.fmean(by_seed), 4)
        if len(by_seed) > 1:
            found[f"{name}_sd"] = round(statistics.stdev(by_seed), 4)
    return found


def main() -> None:
    """Run what is not in the output file yet, and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--profile", choices=list(PROFILES), required=True)
    parser.add_argument("--rows", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    changes = dict(change.split("=", 1) for change in args.changes)
    given = {key: parse_value(value) for key, value in changes.items()}
    texts = args.output.read_text().splitlines() if args.output.is_file() else []
    lines = [json.loads(text) for text in texts if text.endswith("}")]
    done = {(line["row"], line["seed"]) for line in lines}
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    for seed, row in itertools.product(seeds, args.rows):
        # Models that only count are the same for every seed.
        counted = row.split(":")[0] in session_models.COUNTED
        if (row, seed) in done or (counted and seed > args.first_seed):
            continue
        keys = {**keys_of(row, args.profile), **given, "seed": seed, "dataset": args.dataset}
        line = {"row": row, "seed": seed, **train({**keys, "data_path": str(args.data_path)})}
        shown = {title: round(value, 4) for title, value in line["valid"].items()}
        print(f"{row}, seed {seed}, epoch {line['best_epoch']}: {shown}", file=sys.stderr)
        lines.append(line)
        with args.output.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
    print(json.dumps(summary(lines)))


if __name__ == "__main__":
    main()
