"""What nobody may win: random vectors, and the same generator under two names. Real training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset_converters.sequences import convert_sequences
from recbole_tpad.evaluation import evaluate
from recbole_tpad.evaluation.statistics import comparisons

pytestmark = pytest.mark.slow

ITEMS, USERS, SEEDS = 60, 600, 10
CONFIG = {
    "epochs": 25,
    "stopping_step": 4,
    "train_batch_size": 256,
    "learning_rate": 0.005,
    "mask_history": True,
}
SMALL = {
    "SASRec": {
        "hidden_size": 32,
        "inner_size": 64,
        "n_layers": 1,
        "n_heads": 2,
        "initializer_range": 0.1,
    },
    "DIMO": {"embedding_size": 32, "n_heads": 2, "n_layers": 1},
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data path with the data set 'ring': item k is mostly followed by k + 1."""
    path = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(5)
    sequences = {}
    for user in range(USERS):
        item = int(rng.integers(ITEMS))
        items = [item]
        for _ in range(int(rng.integers(3, 7))):
            step = 1 if rng.random() < 0.7 else int(rng.integers(2, ITEMS))
            item = (item + step) % ITEMS
            items.append(item)
        sequences[f"u{user:04d}"] = [f"i{k:02d}" for k in items]
    records = {f"i{k:02d}": {"title": f"thing {k}", "categories": "Things"} for k in range(ITEMS)}
    (path / "items.json").write_text(json.dumps(records))
    (path / "sequences.json").write_text(json.dumps(sequences))
    convert_sequences("ring", path / "sequences.json", path / "items.json", path)
    return path


def results(shop: Path, suite: dict[str, Any], output: str) -> dict[str, Any]:
    found = evaluate(shop, "ring", suite, output_dir=shop / output, progress=lambda line: None)
    content: dict[str, Any] = json.loads(found.read_text())
    assert [row["error"] for row in content["rows"] if row["error"]] == []
    return content


def test_random_vectors_never_win(shop: Path) -> None:
    suite = {
        "models": list(SMALL),
        "item_embeddings": ["none", "noise"],
        "generators": {"noise": {"generator": "random", "dimension": 32}},
        "seeds": 3,
        "config": CONFIG,
        "model_config": SMALL,
    }
    content = results(shop, suite, "random")
    plain = [c for c in content["comparisons"] if c["kind"] == "without embeddings"]
    assert {c["model"] for c in plain} == set(SMALL)
    for entry in plain:
        assert not (entry["low"] > 0 and entry["p_holm"] < 0.05), entry
    # The models have learned: otherwise nothing could be told apart at all.
    assert all(row["metrics"]["HR@10"] > 0.5 for row in content["rows"])


def test_one_generator_under_two_names_rarely_differs(shop: Path) -> None:
    """Seeds of one row are dealt to two names, in twenty small suites of two times three seeds."""
    suite = {
        "models": ["SASRec"],
        "item_embeddings": ["noise"],
        "generators": {"noise": {"generator": "random", "dimension": 32}},
        "seeds": SEEDS,
        "config": {**CONFIG, "epochs": 8},
        "model_config": {"SASRec": SMALL["SASRec"]},
    }
    results(shop, suite, "twice")
    outcomes = [
        json.loads(file.read_text()) for file in sorted((shop / "ring/runs").glob("*.json"))
    ]
    ranks = [
        np.array(outcome["ranks"])
        for outcome in outcomes
        if outcome.get("item_embeddings") == "noise" and len(outcome["curve"]) <= 8
    ]
    assert len(ranks) >= SEEDS
    assert len({tuple(row) for row in ranks}) == len(ranks)  # seeds do differ
    rng = np.random.default_rng(0)
    different = 0
    for _ in range(20):
        dealt = rng.permutation(len(ranks))[:6]
        first, second = ("SASRec", None), ("SASRec", "twin")
        sides = {first: [ranks[i] for i in dealt[:3]], second: [ranks[i] for i in dealt[3:]]}
        entry = comparisons(sides, {first: 0.0, second: 0.0}, {second: first}, metrics=["NDCG@10"])[
            -1
        ]
        different += entry["p_holm"] < 0.05
    # At the nominal rate of one in twenty, more than three have a probability below 2%.
    assert different <= 3
