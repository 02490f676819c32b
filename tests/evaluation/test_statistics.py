"""Bootstrap intervals against closed forms and simulated suites; Holm against the definition."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_tpad.evaluation.statistics import comparisons, gains, holm, paired_bootstrap


def test_gains_are_the_metrics() -> None:
    ranks = np.array([1, 2, 10, 11])
    np.testing.assert_allclose(gains(ranks, "HR@10"), [1, 1, 1, 0])
    np.testing.assert_allclose(gains(ranks, "NDCG@10"), [1, 1 / np.log2(3), 1 / np.log2(11), 0])
    np.testing.assert_allclose(gains(ranks, "HR@5"), [1, 1, 0, 0])


def test_one_seed_gives_the_paired_standard_error() -> None:
    rng = np.random.default_rng(0)
    b = rng.random((1, 4000))
    a = b + 0.02 + 0.1 * rng.normal(size=b.shape)
    found = paired_bootstrap(a, b)
    error = float((a - b).std() / 4000**0.5)
    assert found.difference == pytest.approx(float((a - b).mean()))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert found.p < 0.01


def test_identical_sides_never_differ() -> None:
    a = np.random.default_rng(0).random((3, 200))
    found = paired_bootstrap(a[:1], a[:1])
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


@pytest.mark.parametrize(("seeds", "session_noise"), [(3, 0.4), (3, 0.05), (5, 0.05), (2, 0.05)])
def test_no_difference_is_called_one_at_no_more_than_the_nominal_rate(
    seeds: int, session_noise: float
) -> None:
    rng = np.random.default_rng(seeds)
    wrong, trials = 0, 200
    for trial in range(trials):
        hard = rng.random(300)

        def side(hard: np.ndarray = hard) -> np.ndarray:
            shift = 0.02 * rng.normal(size=(seeds, 1))
            return hard + shift + session_noise * rng.normal(size=(seeds, len(hard)))

        found = paired_bootstrap(side(), side(), draws=400, seed=trial)
        wrong += not found.low <= 0 <= found.high
    # 5% of 200 is 10; 21 has a chance of under one in a thousand at 5%.
    assert wrong <= 21


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(1)
    hard = rng.random(500)
    found = 0
    for trial in range(40):
        a, b = (
            hard + up + 0.005 * rng.normal(size=(3, 1)) + 0.1 * rng.normal(size=(3, 500))
            for up in (0.05, 0.0)
        )
        found += paired_bootstrap(a, b, draws=400, seed=trial).low > 0
    assert found >= 36


def test_holm_against_the_definition() -> None:
    p = [0.04, 0.001, 0.03, 0.5]
    assert holm(p) == pytest.approx([0.09, 0.004, 0.09, 0.5])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_best_baseline_is_chosen_on_validation() -> None:
    rng = np.random.default_rng(3)
    ranks = {
        ("SASRec", None): [rng.integers(1, 60, 100) for _ in range(2)],
        ("GRU4Rec", None): [rng.integers(1, 20, 100) for _ in range(2)],
        ("SASRec", "tpad"): [rng.integers(1, 12, 100) for _ in range(2)],
    }
    valid = {("SASRec", None): 0.3, ("GRU4Rec", None): 0.2, ("SASRec", "tpad"): 0.4}
    own = {("SASRec", "tpad"): ("SASRec", None)}
    found = comparisons(ranks, valid, own, metrics=["HR@10"])
    assert [(c["kind"], c["model"], c["item_embeddings"]) for c in found] == [
        ("best baseline", "GRU4Rec", None),
        ("best baseline", "SASRec", "tpad"),
        ("without embeddings", "SASRec", "tpad"),
    ]
    # The test part favours GRU4Rec, validation SASRec.
    assert found[1]["against"] == {"model": "SASRec", "item_embeddings": None}
    hits = {group: np.mean([r <= 10 for r in rows]) for group, rows in ranks.items()}
    assert found[1]["difference"] == pytest.approx(hits["SASRec", "tpad"] - hits["SASRec", None])
    assert found[1]["p_holm"] >= found[1]["p"]
    assert found[1]["seeds"] == [2, 2]
    assert found[1]["sessions"] == 100
    assert comparisons({("SASRec", "tpad"): ranks["SASRec", "tpad"]}, valid, {}) == []


def test_a_reference_is_compared_with_every_other_row_of_its_model() -> None:
    rng = np.random.default_rng(4)
    groups = [("SASRec", name) for name in ("full", "no-text", "no-image")]
    ranks = {group: [rng.integers(1, 30, 80) for _ in range(2)] for group in groups}
    valid = dict.fromkeys(groups, 0.1)
    others = dict.fromkeys(groups[1:], groups[0])
    found = comparisons(ranks, valid, {}, others, metrics=["HR@10"])
    assert [(c["kind"], c["item_embeddings"]) for c in found] == [
        ("reference", "no-text"),
        ("reference", "no-image"),
    ]
    hits = {group: np.mean([r <= 10 for r in rows]) for group, rows in ranks.items()}
    for entry, group in zip(found, groups[1:], strict=True):
        assert entry["against"] == {"model": "SASRec", "item_embeddings": "full"}
        assert entry["difference"] == pytest.approx(hits[group] - hits[groups[0]])
    assert max(c["p_holm"] / c["p"] for c in found) == pytest.approx(2, rel=0.5)
