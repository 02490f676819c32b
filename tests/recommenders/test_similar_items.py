"""What unseen and rare items take from similar ones, against dense references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dense_dimo import adjacency, pair_counts

from recbole_tpad.recommenders import propagation
from recbole_tpad.recommenders.context_kernel import nearest_trained
from recbole_tpad.recommenders.item_features import Settings, load_item_features
from recbole_tpad.recommenders.sessions import training_item_counts, training_sessions

SMALL = {"embedding_size": 8, "n_heads": 2, "n_layers": 3, "n_partners": 4, "n_strangers": 5}


def mixture(
    rows: np.ndarray, items: list[int], trained: np.ndarray, k: int, temperature: float
) -> np.ndarray:
    """w as a dense matrix, (len(items), N), by the definition."""
    x = rows.astype(np.float64) - rows[trained].mean(axis=0)
    found = np.zeros((len(items), len(rows)))
    for line, i in zip(found, items, strict=True):
        cosine = {
            j: x[i] @ x[j] / (np.linalg.norm(x[i]) * np.linalg.norm(x[j]))
            for j in np.flatnonzero(trained)
            if j != i
        }
        for j in sorted(cosine, key=lambda j: -cosine[j])[:k]:
            line[j] = np.exp((cosine[j] - 1) / temperature)
        line /= line.sum()
    return found


@pytest.mark.parametrize(("k", "temperature"), [(3, 0.1), (1, 0.5), (500, 0.002)])
def test_similar_items_are_the_nearest_that_training_knows(k: int, temperature: float) -> None:
    rng = np.random.default_rng(1)
    rows, trained = rng.normal(size=(40, 6)).astype(np.float32), rng.random(40) < 0.7
    trained[0] = False
    items = np.arange(1, 40)
    near, shares = nearest_trained(rows, items, trained, temperature, k)
    dense = np.zeros((39, 40))
    np.put_along_axis(dense, near, shares, axis=1)
    expected = mixture(rows, items.tolist(), trained, k, temperature)
    np.testing.assert_allclose(dense, expected, atol=2e-3 if temperature < 0.01 else 1e-5)
    assert trained[near].all()


@pytest.mark.parametrize("in_pieces", [False, True])
def test_an_unseen_item_co_occurs_as_similar_items_do(
    build: Any, monkeypatch: pytest.MonkeyPatch, in_pieces: bool
) -> None:
    if in_pieces:  # as large tables are worked on
        for name, value in (("_SMALL_TABLE", 0), ("_COLUMNS", 3), ("_PIECE", 64)):
            monkeypatch.setattr(propagation, name, value)
    keys = {**SMALL, "item_embeddings": "content", "kernel_neighbours": 5}
    config, model, loaders = build("DIMO", **keys)
    _, own, _ = build("DIMO", **keys, unseen_edges="own")
    train = loaders.train._dataset
    trained = training_item_counts(train) > 0
    unseen = [i for i in range(1, model.n_items) if not trained[i]]
    assert unseen
    own.load_state_dict(model.state_dict())
    model.eval(), own.eval()
    features = load_item_features(Settings(config), train)
    weights = torch.tensor(mixture(features.rows, unseen, trained, 5, 0.1))

    counts = pair_counts([s.tolist() for s in training_sessions(train)[1]], model.n_items)
    step = adjacency(counts)
    step[unseen] = weights @ step
    power = torch.matrix_power(torch.eye(model.n_items) + step, 3)
    with torch.no_grad():
        ids = model.item_embedding.weight.double() * torch.tensor(trained)[:, None]
        expected = torch.cat([power @ ids, power @ model.modality_table().double()], dim=1)
        found, alone = model.tables(), own.tables()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    seen = torch.tensor([i for i in range(model.n_items) if i not in unseen])
    torch.testing.assert_close(found[seen], alone[seen])
    assert not torch.allclose(found[unseen], alone[unseen], atol=0.1)
    # Training has nothing of it.
    model.train(), own.train()
    model.table_dropout = own.table_dropout = 0.0
    torch.testing.assert_close(model.tables(), own.tables())


def test_what_training_never_saw_was_not_bought_together(build: Any) -> None:
    _, model, loaders = build("DIMO", **SMALL, item_embeddings="content")
    trained = training_item_counts(loaders.train._dataset) > 0
    unseen = int(np.flatnonzero(~trained)[-1])
    model.eval()
    with torch.no_grad():  # the ID view carries every score
        model.adapter.requires_grad_(False)
        for parameter in model.modality_attention.parameters():
            parameter.zero_()
    rows = loaders.test.collate_fn(np.arange(6))[0]
    items = torch.full((6,), unseen)
    found = model.explain(rows["item_id_list"], rows["item_length"], items)
    assert {e.reason for e in found} == {"similar"}
    assert any(abs(e.id_share) > 1e-6 for e in found)  # which is that of similar items


@pytest.mark.parametrize(("fusion", "strength"), [("init", 2.0), ("add", 0.5), ("init", 1e9)])
def test_smoothed_rows_equal_the_formula(build: Any, fusion: str, strength: float) -> None:
    keys = {"item_embeddings": "content", "item_embeddings_fusion": fusion}
    config, model, loaders = build("SASRec", **keys, row_smoothing=strength, kernel_neighbours=4)
    _, plain, _ = build("SASRec", **keys)
    plain.load_state_dict(model.state_dict())  # a given strength is no part of it
    n = training_item_counts(loaders.train._dataset)
    model.eval(), plain.eval()
    with torch.no_grad():
        table, found = plain.item_embedding.weight.double(), model.item_embedding.weight.double()
    items = [i for i in range(1, len(n)) if n[i] or fusion == "init"]
    stay = [i for i in range(len(table)) if i not in items]
    torch.testing.assert_close(found[stay], table[stay])

    features = load_item_features(Settings(config), loaders.train._dataset)
    w = torch.tensor(mixture(features.rows, items, n > 0, 4, 0.1))
    seen = torch.tensor(n > 0)
    mean = table[: len(n)][seen].mean(dim=0)
    share = torch.tensor([1.0 if not n[i] else strength / (strength + n[i]) for i in items])
    centred = table[: len(n)] - mean
    drawn = (1 - share)[:, None] * centred[items] + share[:, None] * (w @ centred)
    usual = centred[seen].norm(dim=1).mean()
    length = torch.stack([centred[i].norm() if n[i] else usual for i in items])
    expected = mean + drawn / drawn.norm(dim=1, keepdim=True) * length[:, None]
    torch.testing.assert_close(found[items], expected, rtol=0, atol=1e-5)
    model.train()
    assert not torch.allclose(model.item_embedding.weight[items].double(), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("model", "mode"),
    [("DIMO", "calibrated"), ("GRU4Rec", "calibrated"), ("CoOccurrence", "score")],
)
def test_cold_items_are_calibrated_where_unseen_rows_are_like_the_others(
    build: Any, model: str, mode: str
) -> None:
    _, built, _ = build(model, item_embeddings="content", cold_items=None)
    assert built.score_adjustments.mode == mode
    _, alone, _ = build("GRU4Rec", cold_items=None)
    assert not hasattr(alone, "score_adjustments")
