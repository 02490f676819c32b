"""Calibration of cold items: exact counts, and a planted world whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_tpad.recommenders.cold_items import (
    calibrated_shift,
    cold_errors,
    entry_shifts,
)

INFINITY = float("inf")


def random_scores(rows: int, items: int, seed: int = 0) -> torch.Tensor:
    scores = torch.randn(rows, items, generator=torch.Generator().manual_seed(seed))
    scores[:, 0] = -INFINITY
    return scores


def cold_places(scores: torch.Tensor, cold: torch.Tensor, shift: float, k: int) -> torch.Tensor:
    """By sorting: how many cold items each row's top k holds."""
    order = (scores + shift * cold).argsort(dim=1, descending=True)[:, :k]
    return cold[order].sum(dim=1)


@pytest.mark.parametrize("n_cold", [1, 4, 15])
def test_entry_shifts_count_cold_items_at_every_shift(n_cold: int) -> None:
    scores, cold = random_scores(50, 40), torch.zeros(40, dtype=torch.bool)
    cold[40 - n_cold :] = True
    shifts = entry_shifts(scores, cold, 10)
    assert bool((shifts.diff(dim=1)[:, : n_cold - 1] >= 0).all())
    assert bool((shifts[:, n_cold:] == INFINITY).all())
    for shift in (-2.0, -0.3, 0.0, 0.7, 3.0, 50.0):
        found = (shifts < shift).sum(dim=1)
        torch.testing.assert_close(found, cold_places(scores, cold, shift, 10))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5])
def test_the_shift_gives_cold_items_their_share_of_places(share: float) -> None:
    scores, cold = random_scores(300, 60), torch.zeros(60, dtype=torch.bool)
    cold[45:] = True
    shift = calibrated_shift(entry_shifts(scores, cold, 10), share)
    places = cold_places(scores, cold, shift, 10).sum()
    assert abs(int(places) - share * 3000) <= 1
    moved = calibrated_shift(entry_shifts(scores + 3.0 * cold, cold, 10), share)
    assert moved == pytest.approx(shift - 3.0, abs=1e-4)


def test_a_share_out_of_reach_and_no_cold_items() -> None:
    scores, cold = random_scores(20, 30), torch.zeros(30, dtype=torch.bool)
    assert calibrated_shift(entry_shifts(scores, cold, 10), 0.3) == 0.0
    cold[1:3] = True
    shift = calibrated_shift(entry_shifts(scores, cold, 10), 0.9)
    assert int(cold_places(scores, cold, shift, 10).sum()) == 40


def test_errors_equal_loops() -> None:
    scores, cold = random_scores(200, 30, 3), torch.zeros(30, dtype=torch.bool)
    cold[20:] = True
    targets = torch.randint(1, 30, (200,), generator=torch.Generator().manual_seed(1))
    flooded = buried = places = 0
    for row, target in zip(scores, targets.tolist(), strict=True):
        top = row.argsort(descending=True)[:5].tolist()
        among_cold = [j for j in row.argsort(descending=True).tolist() if cold[j]][:5]
        places += sum(bool(cold[j]) for j in top)
        if cold[target]:
            buried += target not in top and target in among_cold
        else:
            flooded += any(bool(cold[j]) for j in top)
    found = cold_errors(scores, targets, cold, 5)
    expected = (int((~cold[targets]).sum()), flooded, int(cold[targets].sum()), buried, places)
    assert found[:5] == expected
    halves = [cold_errors(scores[s], targets[s], cold, 5) for s in (slice(90), slice(90, 200))]
    assert halves[0] + halves[1] == found


@pytest.mark.parametrize("bias", [-5.0, 0.0, 5.0])
def test_calibration_undoes_burying_and_flooding_in_a_planted_world(bias: float) -> None:
    """Sessions want an item of their taste; a tenth of the wants are for cold items."""
    rng = np.random.default_rng(4)
    n_rows, n_items, n_cold = 3000, 200, 40
    taste, content = rng.normal(size=(n_rows, 6)), rng.normal(size=(n_items, 6))
    logits = 2.0 * taste @ content.T
    cold = np.arange(n_items) >= n_items - n_cold
    wants_cold = rng.random(n_rows) < 0.1
    gumbel = rng.gumbel(size=logits.shape)
    allowed = np.where(wants_cold[:, None], cold, ~cold)
    allowed[:, 0] = False
    targets = np.where(allowed, logits + gumbel, -np.inf).argmax(axis=1)
    # What a model knows: tastes with an error, and cold items at a wrong level.
    seen = torch.from_numpy(logits + rng.normal(size=logits.shape) + bias * cold)
    seen[:, 0] = -INFINITY
    is_cold = torch.from_numpy(cold)
    half = n_rows // 2
    shift = calibrated_shift(entry_shifts(seen[:half], is_cold, 10), 0.1)
    wanted = torch.from_numpy(targets)[half:]

    def rates(scores: torch.Tensor) -> tuple[float, float, float]:
        found = cold_errors(scores[half:], wanted, is_cold, 10)
        return (
            found.flooded / found.warm_rows,
            found.buried / found.cold_rows,
            found.cold_slots / found.slots,
        )

    raw, calibrated = rates(seen), rates(seen + shift * is_cold)
    assert calibrated[2] == pytest.approx(0.1, abs=0.02)
    if bias < 0:
        assert raw[1] > 0.8
        assert calibrated[1] < raw[1] - 0.3
    if bias > 0:
        assert raw[0] > 0.95
        assert calibrated[0] < raw[0] - 0.3
    # The same whatever the bias was: the calibration removes it exactly.
    reference = calibrated_shift(entry_shifts(seen[:half] - bias * is_cold, is_cold, 10), 0.1)
    assert shift + bias == pytest.approx(reference, abs=1e-6)
