"""RecBole's own loading, evaluation and training against this package's, in one run.

Usage: ``python perf/recbole_speed.py [--data ../shared/data] [--repeats 3]``. Data: sequences of
Amazon's Scientific reviews (lists of up to 50 items) and the Cellphones sessions in RecBole's
benchmark files. Progress goes to stderr; the last line is JSON. Every ratio is RecBole's time over
ours, the best of the repeats of each, taken in turn:

- eval: ranking the Scientific test part with SASRec (equal parameters, equal metrics).
- augmentation: prefix rows of all Scientific sequences.
- collate: selecting 2,048 rows for a training batch.
- prep: from the files of a data set folder to the loaders, the check of its split included.
- train_bucketed: training SASRec, batches of similar length against mixed ones; train: without.

Autograd's anomaly mode, which importing RecBole's models turns on (SINE), is off on both sides;
``anomaly`` is what RecBole's training loses while it is on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataset_converters.sequences import convert_sequences
from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.dataset import SessionDataset, load_data
from recbole_tpad.bridge.models import build_model, model_class
from recbole_tpad.bridge.shims import set_numpy_names
from recbole_tpad.bridge.trainer import SessionTrainer

BATCH = 2048
TRAINED = 3  # batches that stand for an epoch of mixed lengths
SESSIONS = {
    "USER_ID_FIELD": "session_id",
    "load_col": {"inter": ["session_id", "item_id_list", "item_id"]},
    "alias_of_item_id": ["item_id_list"],
    "benchmark_filename": ["train", "valid", "test"],
}
COMMON = {
    "train_batch_size": BATCH,
    "eval_batch_size": 4096,
    "MAX_ITEM_LIST_LENGTH": 50,
    "metrics": ["Hit", "NDCG"],
    "topk": [10],
    "valid_metric": "NDCG@10",
    "train_neg_sample_args": None,
    "show_progress": False,
    "epochs": 1,
}


def say(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)


def pair(name: str, theirs: Callable[[], Any], ours: Callable[[], Any], repeats: int) -> float:
    """Return RecBole's best time over ours, measured in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for kept, call in zip(times, (theirs, ours), strict=True):
            start = time.perf_counter()
            call()
            kept.append(time.perf_counter() - start)
    best = min(times[0]), min(times[1])
    say(f"{name}: RecBole {best[0]:.3f} s, here {best[1]:.3f} s, ratio {best[0] / best[1]:.2f}")
    return best[0] / best[1]


def recboles_config(data_path: Path, dataset: str, **keys: Any) -> Any:
    """RecBole's own configuration, for SASRec."""
    from recbole.config import Config

    return Config("SASRec", dataset, None, {**COMMON, "data_path": str(data_path), **keys})


def recboles_loaders(config: Any) -> Any:
    """RecBole's own data set and loaders."""
    from recbole.data import create_dataset, data_preparation

    return data_preparation(config, create_dataset(config))


def our_config(data_path: Path, dataset: str, **keys: Any) -> SessionConfig:
    """Our configuration, for SASRec."""
    return SessionConfig("SASRec", dataset, None, {**COMMON, "data_path": str(data_path), **keys})


def write_plain(source: Path, folder: Path) -> None:
    """Write sequences as one RecBole ``.inter`` file, positions as time stamps."""
    folder.mkdir(parents=True)
    sequences = json.loads(source.read_text(encoding="utf-8"))
    with (folder / f"{folder.name}.inter").open("w", encoding="utf-8") as stream:
        stream.write("session_id:token\titem_id:token\ttimestamp:float\n")
        for user, items in sequences.items():
            for place, item in enumerate(items):
                stream.write(f"{user}\t{item}\t{place}\n")


def measure_augmentation(data_path: Path, repeats: int) -> float:
    """Prefix rows of all sequences."""
    from recbole.data.dataset import Dataset, SequentialDataset

    keys = {
        "USER_ID_FIELD": "session_id",
        "load_col": {"inter": ["session_id", "item_id", "timestamp"]},
    }
    made = []
    for kind, config in (
        (SequentialDataset, recboles_config(data_path, "plain", **keys)),
        (SessionDataset, our_config(data_path, "plain", **keys)),
    ):
        dataset = kind(config)
        Dataset._change_feat_format(dataset)
        made.append((dataset, dataset.inter_feat))

    def augment(index: int) -> Any:
        dataset, rows = made[index]
        dataset.inter_feat = type(rows)(dict(rows.interaction))
        dataset.data_augmentation()
        return dataset.inter_feat

    first, second = augment(0), augment(1)
    # Users are numbered otherwise, hence in another order.
    if not torch.equal(first["item_length"].sort().values, second["item_length"].sort().values):
        raise SystemExit("the augmented rows differ")
    say(f"augmentation: {len(first)} rows")
    return pair("augmentation", lambda: augment(0), lambda: augment(1), repeats)


def measure_model(data_path: Path, repeats: int) -> dict[str, float]:
    """Evaluation, batches and training on the Scientific data set."""
    from recbole.trainer import Trainer

    theirs = recboles_config(data_path, "scientific", **SESSIONS)
    train, _, test = recboles_loaders(theirs)
    ours = our_config(data_path, "scientific")
    loaders = load_data(ours)
    torch.manual_seed(0)
    model = build_model(ours, loaders.train._dataset)
    twin = model_class("SASRec")(theirs, train._dataset)
    # The same parameters; RecBole numbers items by first appearance.
    state = dict(model.state_dict())
    tokens = [str(t) for t in train._dataset.field2id_token["item_id"][1:]]
    rows = loaders.train._dataset.token2id("item_id", np.array(tokens))
    table = state["item_embedding.weight"].clone()
    table[1:] = state["item_embedding.weight"][torch.from_numpy(rows)]
    twin.load_state_dict({**state, "item_embedding.weight": table})
    trainer, ranker = Trainer(theirs, twin), SessionTrainer(ours, model)
    bucketed = SessionTrainer(our_config(data_path, "scientific", length_bucketing=True), model)

    def evaluate() -> Any:
        return trainer.evaluate(test, load_best_model=False)

    said, found = evaluate(), ranker.evaluate(loaders.test)
    if any(abs(said[key] - found[key]) > 1e-3 for key in found):
        raise SystemExit(f"the metrics differ: {said} and {found}")
    say(f"metrics of both: {dict(said)}")
    index = [
        np.random.default_rng(k).integers(len(loaders.train._dataset), size=BATCH)
        for k in range(20)
    ]
    ratios = {
        "eval": pair("eval", evaluate, lambda: ranker.rank(loaders.test), repeats),
        "collate": pair(
            "collate",
            lambda: [train.collate_fn(rows) for rows in index],
            lambda: [loaders.train.collate_fn(rows) for rows in index],
            repeats,
        ),
    }
    few = Few(train, TRAINED), Few(loaders.train, TRAINED)
    anomaly_off("before training")

    def with_anomaly() -> None:
        with torch.autograd.set_detect_anomaly(True):
            trainer._train_epoch(few[0], 0)

    ratios["train"] = pair(
        "train", lambda: trainer._train_epoch(few[0], 0), lambda: epoch(ranker, few[1]), repeats
    )
    ratios["anomaly"] = pair("anomaly", with_anomaly, lambda: trainer._train_epoch(few[0], 0), 1)
    # Batches of similar length differ in cost: a whole epoch, against as many mixed batches.
    whole = pair(
        "train_bucketed, an epoch",
        lambda: trainer._train_epoch(few[0], 0),
        lambda: epoch(bucketed, loaders.train),
        repeats,
    )
    ratios["train_bucketed"] = whole * len(loaders.train) / TRAINED
    return ratios


class Few:
    """The first batches of a loader's epoch."""

    def __init__(self, loader: Any, count: int) -> None:
        self.loader, self.count, self.generator = loader, count, loader.generator

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        return itertools.islice(iter(self.loader), self.count)


def epoch(trainer: SessionTrainer, train: Any) -> None:
    """Train an epoch from its start."""
    trainer.progress.batch, trainer.progress.loss = 0, 0.0
    trainer._train_epoch(train, 0)


def anomaly_off(when: str) -> None:
    """Stop where autograd's anomaly mode is on."""
    if torch.is_anomaly_enabled():
        raise SystemExit(f"anomaly mode is on {when}")


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    data, repeats = args.data.resolve(), args.repeats
    warnings.simplefilter("ignore")
    set_numpy_names()
    model_class("SASRec")  # imports RecBole's models and leaves anomaly mode off
    anomaly_off("at the start")
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # RecBole writes log_tensorboard and saved here
        data_path = Path(scratch) / "dataset"
        source = data / "amazon2018_scientific"
        convert_sequences(
            "scientific",
            source / "Scientific.inter.json",
            source / "Scientific.item.json",
            data_path,
        )
        write_plain(source / "Scientific.inter.json", data_path / "plain")
        phones = data_path / "cellphones"
        phones.mkdir()
        for part, file in (("train", "train"), ("valid", "test"), ("test", "test")):
            shutil.copy(
                data / "session_ids" / "cellphones" / f"cellphones.{file}.inter",
                phones / f"cellphones.{part}.inter",
            )
        (phones / "cellphones.inter").touch()
        ratios = {"augmentation": measure_augmentation(data_path, repeats)}
        for key, name in (("prep", "scientific"), ("prep_cellphones", "cellphones")):
            ratios[key] = pair(
                f"{key} ({name})",
                lambda name=name: recboles_loaders(recboles_config(data_path, name, **SESSIONS)),
                lambda name=name: load_data(our_config(data_path, name, **SESSIONS)),
                repeats,
            )
        ratios.update(measure_model(data_path, repeats))
    result = {key: round(value, 2) for key, value in ratios.items()}
    print(json.dumps({**result, "threads": torch.get_num_threads(), "repeats": repeats}))


if __name__ == "__main__":
    main()
