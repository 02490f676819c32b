"""Kernel and cold items in whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import planted_sessions, write_data_set

from recbole_tpad.bridge import runner
from recbole_tpad.bridge.adjustments import (
    HISTORY_SHIFTS,
    KERNEL_DECAYS,
    KERNEL_WEIGHTS,
    ROW_STRENGTHS,
    fit_adjustments,
    flooding_warning,
)
from recbole_tpad.bridge.runner import load_run, run
from recbole_tpad.bridge.trainer import SessionTrainer
from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.row_smoothing import RowSmoothing
from recbole_tpad.store import write_store


@pytest.fixture
def content(shop: Path) -> None:
    ids = [*(f"i{k:02d}" for k in range(30)), "new"]
    angles = np.arange(31) * 2 * np.pi / 30
    angles[30] = angles[1] + 0.05  # the cold item is what follows i01, nearly i02
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    write_store(
        shop / "shop" / "embeddings" / "circle",
        ids,
        {"circle": rows},
        role="other",
        generator="import",
        dataset="shop",
        split_fingerprint=None,
        inputs={},
    )


@pytest.mark.usefixtures("content")
def test_the_kernels_weight_is_chosen_on_validation_and_kept(quick: dict[str, Any]) -> None:
    keys = {**quick, "model": "GRU4Rec", "item_embeddings": "circle", "epochs": 1}
    plain = run(keys)
    result = run({**keys, "embedding_kernel": True}, saved=True)
    weight = result.adjustments["kernel_weight"]
    assert weight in KERNEL_WEIGHTS[1:]  # after one epoch counting knows more than the model
    assert result.ndcg > plain.ndcg
    decay = result.adjustments["kernel_decay"]
    given = {"kernel_weight": weight, "kernel_decay": decay}
    fixed = run({**keys, "embedding_kernel": True, **given})
    np.testing.assert_array_equal(fixed.ranks, result.ranks)
    assert run({**keys, "embedding_kernel": True, "kernel_weight": 0.0}).metrics == plain.metrics

    _, model, loaders = load_run(str(result.checkpoint))
    rows = loaders.test.collate_fn(np.arange(8))[0]
    adjusted = model.full_sort_predict(rows)
    kernel = model.score_adjustments.term("kernel_weight", rows["item_id_list"])
    model.score_adjustments.kernel_weight.zero_()
    torch.testing.assert_close(adjusted, model.full_sort_predict(rows) + weight * kernel)
    assert float(kernel.max()) > 0


@pytest.mark.usefixtures("content")
@pytest.mark.parametrize("model", ["GRU4Rec", "DIMO"])
def test_several_weights_are_chosen_together_and_kept(quick: dict[str, Any], model: str) -> None:
    keys = {**quick, "model": model, "epochs": 1, "item_embeddings": "circle"}
    wanted = {"cooccurrence_kernel": True, "similarity_kernel": True, "embedding_kernel": True}
    every = {**keys, **wanted, "history_items": "calibrated", "cold_items": "score"}
    result = run(every, saved=True)
    choices = {
        "cooccurrence_weight": KERNEL_WEIGHTS,
        "similarity_weight": KERNEL_WEIGHTS,
        "kernel_weight": KERNEL_WEIGHTS,
        "history_shift": HISTORY_SHIFTS,
        "kernel_decay": KERNEL_DECAYS,
    }
    assert set(result.adjustments) == set(choices)
    assert all(result.adjustments[name] in values for name, values in choices.items())
    assert max(result.adjustments[k] for k in choices if k.endswith("weight")) > 0

    # The choice against a whole run for each weight: no other one is better on validation.
    def validated(**given: float) -> float:
        config, model, loaders = load_run(str(result.checkpoint))
        for name, value in given.items():
            getattr(model.score_adjustments, name).fill_(value)
        ranks = SessionTrainer(config, model).rank(loaders.valid).ranks
        return float(((ranks <= 10) / np.log2(ranks + 1)).mean())

    chosen = validated()
    # Of what is recommended; the best epoch's own score is in the curve.
    assert result.valid["NDCG@10"] == pytest.approx(chosen)
    assert result.valid != result.curve[result.best_epoch]["valid"]
    last = list(choices)[-1]  # the others may have lost a little by what was chosen after them
    assert chosen == max(validated(**{last: value}) for value in choices[last])
    zero = {name: 0.0 for name in choices if name != "kernel_decay"}
    assert chosen > validated(**zero)

    # Fitting again does not start from what was fitted before.
    config, model, loaders = load_run(str(result.checkpoint))
    model.score_adjustments.kernel_decay.fill_(0.4)
    again = fit_adjustments(config, model, SessionTrainer(config, model), loaders, saved=False)
    assert again == result.adjustments

    fixed = run({**every, **result.adjustments})
    np.testing.assert_array_equal(fixed.ranks, result.ranks)
    _, model, loaders = load_run(str(result.checkpoint))
    rows = loaders.test.collate_fn(np.arange(8))[0]
    model.score_adjustments.history_shift.fill_(-3.0)
    moved = model.full_sort_predict(rows)
    model.score_adjustments.history_shift.zero_()
    expected = model.full_sort_predict(rows)
    for row, items in enumerate(rows["item_id_list"].tolist()):
        for item in {*items} - {0}:
            expected[row, item] -= 3.0
    torch.testing.assert_close(moved, expected)


def test_a_shift_of_own_items_far_below_is_a_masked_history(quick: dict[str, Any]) -> None:
    keys = {**quick, "model": "GRU4Rec", "epochs": 1}
    shifted = run({**keys, "history_items": "calibrated", "history_shift": -1e6}, saved=True)
    masked = run({**keys, "mask_history": True})
    _, _, loaders = load_run(str(shifted.checkpoint))
    test = loaders.test._dataset.inter_feat
    new = ~(test["item_id_list"] == test["item_id"][:, None]).any(dim=1).numpy()
    assert new.any()
    np.testing.assert_array_equal(masked.ranks[new], shifted.ranks[new])


@pytest.mark.usefixtures("content")
@pytest.mark.parametrize("model", ["GRU4Rec", "DIMO"])
def test_the_strength_of_row_smoothing_is_chosen_on_validation_and_kept(
    quick: dict[str, Any], model: str
) -> None:
    keys = {**quick, "model": model, "epochs": 1, "item_embeddings": "circle"}
    keys |= {"item_embeddings_fusion": "init", "similarity_kernel": True, "cold_items": "score"}
    # One pass: what is chosen after the strength is held.
    keys |= {"similarity_weight": 0.0, "kernel_decay": 1.0}
    result = run({**keys, "row_smoothing": "auto"}, saved=True)
    strength = result.adjustments["row_smoothing"]
    assert strength in ROW_STRENGTHS[1:]  # neighbours on the circle say more than one epoch

    def ranked(part: str, value: float) -> Any:
        config, model, loaders = load_run(str(result.checkpoint))
        (smoothing,) = (m for m in model.modules() if isinstance(m, RowSmoothing))
        assert float(smoothing.strength) == pytest.approx(strength)
        smoothing.strength.fill_(value)
        return SessionTrainer(config, model).rank(getattr(loaders, part)).ranks

    by_choice = {value: ranked("valid", value) for value in ROW_STRENGTHS}
    scores = {v: float(((r <= 10) / np.log2(r + 1)).mean()) for v, r in by_choice.items()}
    assert scores[strength] == max(scores.values()) > scores[0.0]
    np.testing.assert_array_equal(ranked("test", strength), result.ranks)
    fixed = run({**keys, "row_smoothing": strength})
    np.testing.assert_array_equal(fixed.ranks, result.ranks)
    assert "row_smoothing" not in fixed.adjustments
    without = run({**keys, "row_smoothing": "none"})
    assert without.ranks.tolist() != result.ranks.tolist()


@pytest.mark.usefixtures("content")
def test_epochs_and_weights_are_chosen_before_cold_items_come_in(quick: dict[str, Any]) -> None:
    """Where they are, is settled last; until then they would push trained items down as they like.

    DIMO with `unseen_edges: own` scores them on a scale that nothing in training holds.
    """
    keys = {**quick, "model": "DIMO", "item_embeddings": "circle", "epochs": 3}
    keys |= {"similarity_kernel": True, "unseen_edges": "own"}
    free, left_out, found = (
        run({**keys, "cold_items": mode, "cold_share": 0.05})
        for mode in ("score", "exclude", "calibrated")
    )
    assert found.curve == left_out.curve
    assert found.curve != free.curve
    shared = {"similarity_weight", "kernel_decay"}
    assert {k: found.adjustments[k] for k in shared} == left_out.adjustments
    assert found.slices["unseen"]["cold_places@10"] > 0


@pytest.mark.parametrize(
    ("flooded", "places", "unseen", "warned"),
    [(0.49, 0.08, 9, True), (0.49, 0.08, 40, False), (0.05, 0.08, 9, False), (0.1, 0.03, 0, True)],
)
def test_cold_items_beyond_their_share_are_pointed_out(
    flooded: float, places: float, unseen: int, warned: bool
) -> None:
    slices: dict[str, dict[str, float]] = {
        "warm": {"rows": 900, "flooding@10": flooded},
        "rare": {"rows": 100 - unseen},
        "unseen": {"rows": unseen, "cold_places@10": places},
    }
    text = flooding_warning(slices, 10)
    assert (text is not None) == warned
    assert text is None or "cold_items=calibrated" in text
    assert flooding_warning({name: {"rows": 5} for name in slices}, 10) is None


@pytest.mark.usefixtures("content")
def test_a_run_that_floods_says_so(
    quick: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "flooding_warning", lambda slices, k: f"too many in {k}")
    caplog.set_level("WARNING", logger="recbole_tpad")
    keys = {**quick, "model": "GRU4Rec", "item_embeddings": "circle", "epochs": 1}
    run({**keys, "cold_items": "score"})
    assert "too many in 10" in caplog.text
    caplog.clear()
    for mode in (None, "exclude"):
        run({**keys, "cold_items": mode})
    assert "too many" not in caplog.text


@pytest.mark.usefixtures("content")
def test_cold_items_can_be_calibrated_or_excluded(quick: dict[str, Any]) -> None:
    keys = {**quick, "model": "GRU4Rec", "item_embeddings": "circle"}
    plain = run({**keys, "cold_items": "score"})
    assert plain.adjustments == {}
    assert set(plain.slices["unseen"]) >= {"burying@10", "cold_places@10"}
    assert 0 <= plain.slices["warm"]["flooding@10"] <= 1
    row = plain.targets.index("new")

    none = run({**keys, "cold_items": "exclude"})
    assert none.ranks[row] >= 30
    assert none.slices["warm"]["flooding@10"] == 0
    places = []
    for share in (0.0, 0.05):
        found = run({**keys, "cold_items": "calibrated", "cold_share": share}, saved=share > 0)
        assert found.adjustments["cold_share"] == share
        places.append(found.slices["unseen"]["cold_places@10"])
    assert places[0] < 0.02
    assert 0.02 < places[1] < 0.1
    warm = [k for k, target in enumerate(plain.targets) if target != "new"]
    assert np.abs(found.ranks[warm] - none.ranks[warm]).max() <= 1  # one cold item comes in

    _, model, loaders = load_run(str(found.checkpoint))
    assert float(model.score_adjustments.cold_shift) == pytest.approx(
        found.adjustments["cold_shift"]
    )
    rows = loaders.test.collate_fn(np.arange(4))[0]
    picked = model.predict(rows)
    scores = model.full_sort_predict(rows)
    torch.testing.assert_close(picked, scores.gather(1, rows["item_id"][:, None])[:, 0])

    held_out = loaders.valid.collate_fn(np.arange(len(loaders.valid._dataset)))[0]
    top = model.full_sort_predict(held_out).topk(10).indices
    new = loaders.train._dataset.token2id("item_id", "new")
    assert float((top == new).sum()) == pytest.approx(0.05 * top.numel(), abs=0.5)

    estimated = run({**keys, "cold_items": "calibrated"})
    assert estimated.adjustments["cold_share"] == 0  # no target of the validation part is new
    by_default = run(keys)
    assert by_default.adjustments == estimated.adjustments
    np.testing.assert_array_equal(by_default.ranks, estimated.ranks)
    without = run({**keys, "item_embeddings": None})
    assert without.adjustments == {}  # nothing is known of cold items


@pytest.mark.usefixtures("content")
def test_the_share_of_cold_items_is_that_of_the_validation_part(
    shop: Path, quick: dict[str, Any]
) -> None:
    train, valid, test = planted_sessions()
    some = [("a", ["i01", "new"]), ("b", ["i20", "i21", "new"]), ("c", ["i07", "new"])]
    write_data_set(shop, "shop", train, [*valid, *some], [*test, ("cold", ["i01", "new"])])
    keys = {**quick, "model": "GRU4Rec", "item_embeddings": "circle"}
    found = run(keys)
    share = len(some) / (len(valid) + len(some))
    assert found.adjustments["cold_share"] == pytest.approx(share)
    assert found.slices["unseen"]["cold_places@10"] == pytest.approx(share, abs=0.04)
    known = run({**keys, "cold_share": 0.0})
    assert known.slices["unseen"]["cold_places@10"] < 0.02


@pytest.mark.usefixtures("content")
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cold_items": "calibratd", "item_embeddings": "circle"}, "Did you mean 'calibrated'"),
        ({"cold_items": "calibrated"}, "needs item_embeddings"),
        ({"embedding_kernel": True}, "embedding_kernel needs item_embeddings"),
        ({"history_items": "calibratd"}, "Did you mean 'calibrated'"),
        ({"history_items": "calibrated", "mask_history": True}, "Drop one of the two keys"),
        ({"history_items": "calibrated", "history_shift": float("nan")}, "a finite number"),
        ({"cooccurrence_kernel": True, "cooccurrence_weight": -1.0}, "cooccurrence_weight"),
        ({"cooccurrence_kernel": True, "model": "CoOccurrence"}, "leave cooccurrence_kernel out"),
        ({"similarity_kernel": True}, "similarity_kernel needs item_embeddings"),
        ({"cooccurrence_kernel": True, "kernel_decay": 0.0}, "kernel_decay=0.0 must be in"),
        (
            {"embedding_kernel": True, "kernel_temperature": 0.0, "item_embeddings": "circle"},
            "kernel_temperature",
        ),
        ({"row_smoothing": 3}, "row_smoothing=3 needs item_embeddings"),
        ({"row_smoothing": "auto", "model": "DIMO"}, "row_smoothing=auto needs item_embeddings"),
        ({"row_smoothing": "aut", "item_embeddings": "circle"}, "must be a number of 0 or more"),
        ({"row_smoothing": -1.0, "item_embeddings": "circle"}, "must be a number of 0 or more"),
        (
            {"row_smoothing": 1.0, "item_embeddings": "circle", "model": "CoOccurrence"},
            "changes item tables made from item_embeddings, and this model has none",
        ),
        ({"model": "DIMO", "unseen_edges": "simlar"}, "Did you mean 'similar'"),
        (
            {"cold_items": "calibrated", "cold_share": 1.5, "item_embeddings": "circle"},
            "cold_share",
        ),
        (
            {"embedding_kernel": True, "kernel_weight": -1.0, "item_embeddings": "circle"},
            "kernel_weight",
        ),
    ],
)
def test_bad_keys_are_refused(quick: dict[str, Any], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run({**quick, "model": "GRU4Rec", "epochs": 1, **keys})


@pytest.mark.usefixtures("content")
def test_counts_beside_similar_items_need_no_training(quick: dict[str, Any]) -> None:
    counted = {**quick, "model": "CoOccurrence"}
    plain = run(counted)
    similar = {**counted, "item_embeddings": "circle"}
    alone = run({**similar, "similarity_weight": 0.0})
    np.testing.assert_array_equal(alone.ranks, plain.ranks)  # another scale, the same order
    both = run(similar)
    assert both.adjustments["similarity_weight"] > 0
    row = both.targets.index("new")  # never in training: only its content can find it
    assert both.ranks[row] < plain.ranks[row]


def circle_shop(path: Path, seed: int = 0) -> None:
    """60 items on a circle, each mostly followed by its neighbours; every fifth is sold late.

    The late items are never in training; about a tenth of the test sessions end with one.
    """
    rng = np.random.default_rng(seed)
    late = set(range(0, 60, 5))

    def walk(name: str, end_late: bool, allow_late: bool) -> tuple[str, list[str]]:
        while True:
            items = [int(rng.integers(60))]
            for _ in range(int(rng.integers(2, 6))):
                items.append((items[-1] + int(rng.choice([-1, 1, 2, -2]))) % 60)
            head = not set(items[:-1]) & late
            if head and ((items[-1] in late) == end_late) and (allow_late or items[-1] not in late):
                return name, [f"c{k:02d}" for k in items]

    train = [walk(f"t{n:04d}", False, False) for n in range(900)]
    valid = [walk(f"v{n:04d}", False, False) for n in range(100)]
    test = [walk(f"x{n:04d}", n % 10 == 0, True) for n in range(400)]
    folder = write_data_set(path, "circle", train, valid, test)
    angles = np.arange(60) * 2 * np.pi / 60
    waves = [f(k * angles) for k in (1, 2, 3, 5) for f in (np.cos, np.sin)]
    write_store(
        folder / "embeddings" / "circle",
        [f"c{k:02d}" for k in range(60)],
        {"circle": np.stack(waves, axis=1)},
        role="other",
        generator="import",
        dataset="circle",
        split_fingerprint=None,
        inputs={},
    )


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["add", "init"])
def test_calibrated_cold_items_hold_their_share_on_unseen_sessions(
    tmp_path: Path, quick: dict[str, Any], fusion: str
) -> None:
    circle_shop(tmp_path)
    keys = {
        **quick,
        "data_path": str(tmp_path),
        "dataset": "circle",
        "model": "GRU4Rec",
        "epochs": 15,
        "learning_rate": 0.003,
        "item_embeddings": "circle",
        "item_embeddings_fusion": fusion,
        "mask_history": True,
    }
    found = {
        share: run({**keys, "cold_items": "calibrated", "cold_share": share})
        for share in (0.02, 0.1, 0.5)
    }
    for share, result in found.items():
        # Fitted on training sessions, counted on test sessions.
        assert result.slices["unseen"]["cold_places@10"] == pytest.approx(share, rel=0.25, abs=0.01)
    flooding = [found[s].slices["warm"]["flooding@10"] for s in (0.02, 0.1, 0.5)]
    burying = [found[s].slices["unseen"]["burying@10"] for s in (0.02, 0.1, 0.5)]
    assert flooding == sorted(flooding)
    assert burying == sorted(burying, reverse=True)
    assert flooding[0] < 0.25
    assert burying[2] < 0.25
    truth, excluded = found[0.1], run({**keys, "cold_items": "exclude"})
    assert excluded.slices["unseen"]["HR@10"] == 0
    assert truth.slices["unseen"]["HR@10"] > 0.1
