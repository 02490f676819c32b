"""Ranks and metrics against brute force and RecBole's own evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.evaluator import Collector, Evaluator

from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.ranking import (
    EvaluationError,
    metrics_at,
    recbole_metrics,
    refuse_constant,
    rows_per_batch,
    slices_by_frequency,
    sorted_ranks,
    target_ranks,
)
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.errors import InputError


def brute_force(scores: np.ndarray, target: int, history: list[int]) -> int:
    candidates = [i for i in range(1, len(scores)) if i == target or i not in history]
    order = sorted(candidates, key=lambda i: (-scores[i], i))
    return order.index(target) + 1


@pytest.mark.parametrize("ranked", [target_ranks, sorted_ranks])
@pytest.mark.parametrize("masked", [False, True])
def test_ranks_equal_sorting_with_many_ties(masked: bool, ranked: Any) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, size=(200, 40)).astype(np.float32)
    targets = rng.integers(1, 40, size=200)
    history = rng.integers(0, 40, size=(200, 7))
    expected = [
        brute_force(scores[b], targets[b], history[b].tolist() if masked else [])
        for b in range(200)
    ]
    found, constant = ranked(
        torch.tensor(scores), torch.tensor(targets), torch.tensor(history) if masked else None
    )
    assert found.tolist() == expected
    assert not constant.any()


def test_metrics_equal_recboles_evaluator(shop: Path) -> None:
    names, topk = ["Recall", "MRR", "NDCG", "Hit", "Precision"], [1, 5, 10]
    keys = {"data_path": str(shop), "metrics": names, "topk": topk, "metric_decimal_place": 10}
    scores = torch.randn(300, 60, generator=torch.Generator().manual_seed(1))
    scores[:, 0] = float("-inf")
    targets = torch.randint(1, 60, (300,), generator=torch.Generator().manual_seed(2))
    with numpy_names():
        config = SessionConfig("SASRec", "shop", None, keys)
        collector, evaluator = Collector(config), Evaluator(config)
        collector.eval_batch_collect(scores.clone(), None, torch.arange(300), targets)
        expected = evaluator.evaluate(collector.get_data_struct())
    ranks = target_ranks(scores.clone(), targets)[0].numpy()
    found = recbole_metrics(ranks, names, topk)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-8)
    ours = metrics_at(ranks, [5, 10])
    assert ours["HR@10"] == pytest.approx(expected["hit@10"], abs=1e-8)
    assert ours["NDCG@10"] == pytest.approx(expected["ndcg@10"], abs=1e-8)


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    scores = torch.randn(3, 9)
    scores[1, 4] = float("nan")
    with pytest.raises(EvaluationError, match="NaN in 1 of 3 rows"):
        target_ranks(scores, torch.tensor([1, 2, 3]))
    for ranked in (sorted_ranks, target_ranks):
        ranks, constant = ranked(torch.ones(3, 9), torch.tensor([1, 4, 8]))
        assert constant.all()
    assert ranks.tolist() == [1, 4, 8]
    with pytest.raises(EvaluationError, match="the same score"):
        refuse_constant(constant.numpy(), "SASRec")
    refuse_constant(np.array([True, False]), "SASRec")


def test_slices_and_unknown_metrics() -> None:
    ranks, frequency = np.array([1, 3, 20, 2]), np.array([9, 4, 1, 0])
    found = slices_by_frequency(ranks, frequency, [5])
    assert {name: part["rows"] for name, part in found.items()} == {
        "warm": 1,
        "rare": 2,
        "unseen": 1,
    }
    assert found["rare"]["HR@5"] == 0.5
    assert found["unseen"]["NDCG@5"] == pytest.approx(1 / np.log2(3))
    assert slices_by_frequency(ranks[:1], frequency[:1], [5])["unseen"] == {"rows": 0}
    with pytest.raises(InputError, match="not supported"):
        recbole_metrics(ranks, ["AUC"], [5])


def test_memory_budget_bounds_the_batch() -> None:
    assert rows_per_batch(1_000_000, 120, 4096) * 1_000_000 * 12 <= 120 * 2**20
    assert rows_per_batch(100, 512, 4096) == 4096
    assert rows_per_batch(10**9, 1, 4096) == 1
