"""DIMO against a dense reference written from the formulas, and its artefacts against leaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_dimo import adjacency, pair_counts, partners_of, reference
from tiny_data import planted_sessions, write_data_set

from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.dataset import load_data
from recbole_tpad.bridge.runner import build_model
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.dimo import DIMO
from recbole_tpad.recommenders.dimo_tables import propagated_tables
from recbole_tpad.recommenders.sessions import training_sessions

# Unseen items with their own edges: what training sees, for the references below.
SMALL = {"embedding_size": 8, "n_heads": 2, "n_layers": 3, "n_partners": 4, "n_strangers": 5}
SMALL |= {"unseen_edges": "own"}


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def strangers_of(model: DIMO) -> list[list[int]]:
    crow, col = model.strangers.crow.tolist(), model.strangers.col.tolist()
    return [col[crow[i] : crow[i + 1]] for i in range(model.n_items)]


def unseen_in(sessions: Any, n_items: int) -> list[int]:
    return sorted(set(range(1, n_items)) - {int(i) for session in sessions for i in session})


def batch_of(loaders: Any, size: int = 12) -> tuple[Any, list[list[int]], list[int]]:
    rows = loaders.train.collate_fn(np.arange(0, size * 5, 5))
    contexts = [
        seq[:length].tolist()
        for seq, length in zip(rows["item_id_list"], rows["item_length"], strict=True)
    ]
    return rows, contexts, rows["item_id"].tolist()


CASES = {
    "two views": {"item_embeddings": "content"},
    "ID view alone": {},
    "official": {"variant": "official"},
}


@pytest.mark.parametrize("keys", CASES.values(), ids=CASES.keys())
def test_logits_losses_and_gradients_equal_the_dense_reference(build: Any, keys: Any) -> None:
    _, model, loaders = build("DIMO", **SMALL, **keys)
    model.double().eval()
    rows, contexts, targets = batch_of(loaders)
    _, sessions = training_sessions(loaders.train._dataset)
    counts = pair_counts([s.tolist() for s in sessions], model.n_items)

    modality = model.modality_table()
    logits, expected = reference(
        model,
        modality,
        counts,
        strangers_of(model),
        contexts,
        targets,
        layers=3,
        heads=2,
        k=4,
        official=model.variant == "official",
        unseen=[] if model.variant == "official" else unseen_in(sessions, model.n_items),
    )
    found = model.losses(rows)
    scores = model.full_sort_predict(rows)
    torch.testing.assert_close(scores[:, 1:], logits, rtol=0, atol=1e-5)
    assert bool(torch.isneginf(scores[:, 0]).all())
    rows_of_batch = torch.arange(len(targets))
    torch.testing.assert_close(model.predict(rows), scores[rows_of_batch, torch.tensor(targets)])

    parameters = [p for p in model.parameters() if p.requires_grad]
    for name, loss in expected.items():
        ours = getattr(found, name)
        torch.testing.assert_close(ours, loss.to(ours), rtol=0, atol=1e-5, msg=name)
        if not loss.requires_grad:
            continue
        ours_grad = torch.autograd.grad(ours, parameters, retain_graph=True, allow_unused=True)
        reference_grad = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for ours_g, reference_g in zip(ours_grad, reference_grad, strict=True):
            assert (ours_g is None or not ours_g.any()) or reference_g is not None
            if reference_g is not None:
                # The reference lets gradients into the padding row; the model must not.
                if reference_g.shape == model.item_embedding.weight.shape:
                    reference_g = reference_g.clone()
                    reference_g[0] = 0
                expected_g = torch.zeros_like(reference_g) if ours_g is None else ours_g
                torch.testing.assert_close(expected_g, reference_g, rtol=0, atol=1e-5, msg=name)


def test_total_loss_is_the_weighted_sum_and_mean_reduction_divides(build: Any) -> None:
    _, model, loaders = build("DIMO", **SMALL, item_embeddings="content", auxiliary_weight=0.5)
    model.double().eval()
    rows, _, targets = batch_of(loaders)
    parts = model.losses(rows)
    total = parts.recommendation + 0.5 * (parts.cooccurrence + parts.proxy + parts.criterion)
    torch.testing.assert_close(model.calculate_loss(rows), total)
    model.reduction = "mean"
    means = model.losses(rows)
    torch.testing.assert_close(means.proxy, parts.proxy / len(targets))
    with_partners = int(model.partners.nonempty.sum())
    torch.testing.assert_close(means.cooccurrence, parts.cooccurrence / with_partners)


def test_sparse_propagation_equals_dense_with_gradient(build: Any) -> None:
    _, model, loaders = build("DIMO", **SMALL)
    _, sessions = training_sessions(loaders.train._dataset)
    counts = pair_counts([s.tolist() for s in sessions], model.n_items)
    unseen = unseen_in(sessions, model.n_items)
    assert unseen  # the data set has such items, so their rule is tested
    dense = adjacency(counts, unseen)
    rows = torch.randn(model.n_items, 6, requires_grad=True)
    everything = torch.ones(model.n_items, dtype=torch.bool)
    real = (torch.arange(model.n_items) > 0).double()[:, None]  # no padding row
    expected = torch.matrix_power(torch.eye(model.n_items) + dense, 3) @ (rows * real)
    found = propagated_tables(rows, None, everything, 0.0, model.propagation, 3)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), rows)
    theirs = torch.autograd.grad((expected * weights).sum(), rows)
    torch.testing.assert_close(ours, theirs)


def test_artefacts_equal_brute_force(build: Any) -> None:
    _, model, loaders = build("DIMO", **SMALL)
    _, sessions = training_sessions(loaders.train._dataset)
    counts = pair_counts([s.tolist() for s in sessions], model.n_items)
    np.testing.assert_array_equal(model.counts.toarray(), counts)
    for item, strangers in enumerate(strangers_of(model)):
        partners = partners_of(counts, item, 4)
        found = [p for p in model.partner_table[item].tolist() if p >= 0]
        assert sorted(found) == sorted(partners)
        assert not any(counts[item, s] for s in strangers)
        assert item not in strangers
        assert 0 not in strangers
        available = sum(counts[item, j] == 0 for j in range(1, model.n_items) if j != item)
        assert len(set(strangers)) == (min(5, available) if item else 0)


def artefacts(data_path: Path, seed_of_split: int) -> tuple[Any, ...]:
    train, valid, test = planted_sessions()
    rng = np.random.default_rng(seed_of_split)
    # The same items as targets, in another order: another test set on the same training part.
    held_out = [*valid, *test]
    targets = rng.permutation([items[-1] for _, items in held_out])
    held_out = [(s, [*items[:-1], str(t)]) for (s, items), t in zip(held_out, targets, strict=True)]
    write_data_set(data_path, "shop", train, held_out[: len(valid)], held_out[len(valid) :])
    with numpy_names():
        config = SessionConfig("DIMO", "shop", None, {"data_path": str(data_path), **SMALL})
        loaders = load_data(config)
        model = build_model(config, loaders.train._dataset)
    flags = []
    for rows in (loaders.train.collate_fn(np.arange(40)),):
        near = model.partner_table[rows["item_id_list"]] == rows["item_id"][:, None, None]
        flags.append(near.flatten(1).any(1))
    tensors = (model.propagation.values, model.propagation.col, model.partners.values)
    tensors += (model.partner_table, model.strangers.col)
    return *(t.numpy() for t in tensors), model.counts.toarray(), flags[0].numpy()


def test_permuting_held_out_targets_changes_no_training_artefact(tmp_path: Path) -> None:
    first, second = artefacts(tmp_path / "a", 1), artefacts(tmp_path / "b", 2)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_padding_row_stays_zero_and_widths_do_not_matter(build: Any) -> None:
    _, model, loaders = build("DIMO", **SMALL, item_embeddings="content")
    rows, _, _ = batch_of(loaders)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model.double().train()
    for _ in range(3):
        optimizer.zero_grad()
        model.calculate_loss(rows).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        assert not model.tables()[0].any()
        before = model.full_sort_predict(rows)
        wider = {**rows.interaction}
        wider["item_id_list"] = torch.nn.functional.pad(rows["item_id_list"], (0, 9))
        torch.testing.assert_close(model.full_sort_predict(wider), before)


def test_tables_are_kept_in_evaluation_until_a_parameter_changes(build: Any) -> None:
    _, model, loaders = build("DIMO", **SMALL, item_embeddings="content")
    rows, _, _ = batch_of(loaders)
    model.double().eval()
    with torch.no_grad():
        first = model.tables()
        assert model.tables() is first
        model.item_embedding.weight[3] += 1.0
        changed = model.tables()
        assert changed is not first
        model.load_state_dict(model.state_dict())
        assert model.tables() is not changed
    model.train()
    assert model.tables().requires_grad
    assert model.calculate_loss(rows).requires_grad


def test_features_are_the_stores_rows_and_not_in_the_state(build: Any, shop: Path) -> None:
    from recbole_tpad.store import open_store

    _, model, loaders = build("DIMO", **SMALL, item_embeddings="content")
    tokens = loaders.train._dataset.field2id_token["item_id"]
    store = open_store(shop / "shop" / "embeddings" / "content")
    np.testing.assert_array_equal(
        model.adapter.features[1:].numpy(), store.rows([str(t) for t in tokens[1:]])
    )
    assert not model.adapter.features[0].any()
    assert not any("features" in key for key in model.state_dict())


def test_shuffled_features_change_the_scores(build: Any) -> None:
    scores = []
    for store in ("content", "shuffled"):
        _, model, loaders = build("DIMO", **SMALL, item_embeddings=store)
        model.double().eval()
        scores.append(model.full_sort_predict(batch_of(loaders)[0]))
    assert (scores[0][:, 1:] - scores[1][:, 1:]).abs().max() > 1e-3


def test_explanation_names_the_larger_share(build: Any) -> None:
    _, model, loaders = build("DIMO", **SMALL, item_embeddings="content")
    model.double().eval()
    rows, contexts, targets = batch_of(loaders)
    scores = model.full_sort_predict(rows).detach()
    # The last row asks about an item of its own session.
    targets[-1] = contexts[-1][-1]
    items = torch.tensor(targets)
    found = model.explain(rows["item_id_list"], rows["item_length"], items)
    for b, explanation in enumerate(found):
        total = explanation.id_share + explanation.modality_share
        assert total == pytest.approx(float(scores[b, targets[b]]))
        assert explanation.context_item in contexts[b]
        met = {i: model.counts[targets[b], i] for i in contexts[b]}
        assert explanation.shared_sessions == met[explanation.context_item]
        by_id = explanation.id_share > explanation.modality_share
        if by_id and any(met.values()):
            assert explanation.reason == "bought together"
            assert explanation.shared_sessions == max(met.values()) > 0
        elif targets[b] in contexts[b]:
            assert explanation.reason == "repeated"
            assert explanation.context_item == targets[b]
        else:
            assert explanation.reason == ("connected" if by_id else "similar")
    assert {e.reason for e in found} >= {"similar", "bought together"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"variant": "offical"}, "Did you mean 'official'"),
        ({"auxiliary_reduction": "max"}, "auxiliary_reduction"),
        ({"variant": "official", "item_embeddings": "content"}, "ignores item_embeddings"),
        ({"embedding_size": 9}, "multiple of n_heads"),
        ({"propagate_every": 0}, "propagate_every=0 must be at least 1"),
    ],
)
def test_bad_keys_are_refused(build: Any, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("DIMO", **{**SMALL, **keys})


def test_a_group_of_batches_gives_the_tables_the_mean_of_their_gradients(build: Any) -> None:
    still = {**SMALL, "item_embeddings": "content", "attn_dropout_prob": 0.0}
    for dropout in (0.0, 0.4):
        _, model, loaders = build("DIMO", **still, table_dropout_prob=dropout, propagate_every=3)
        model.double().train()
        batches = [loaders.train.collate_fn(np.arange(k, 60, 3)) for k in range(3)]
        of_tables = [model.item_embedding.weight, *model.adapter.parameters()]

        model.train()
        torch.manual_seed(5)
        losses = []
        for k, batch in enumerate(batches):
            assert all(p.grad is None for p in of_tables)
            assert model.resumable == (k == 0)
            loss = model.calculate_loss(batch)
            loss.backward()
            losses.append(float(loss.detach()))
        assert model.resumable
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        shared = {id(p) for p in of_tables}

        # The same mask in every batch, one propagation each.
        model.zero_grad(set_to_none=True)
        model._group.every = 1
        for batch, loss in zip(batches, losses, strict=True):
            torch.manual_seed(5)
            again = model.calculate_loss(batch)
            again.backward()
            assert float(again.detach()) == pytest.approx(loss)
        used = [p for p in model.parameters() if p.grad is not None]
        for p, gradient in zip(used, found, strict=True):
            expected = p.grad / 3 if id(p) in shared else p.grad
            torch.testing.assert_close(gradient, expected)


def test_sessions_that_only_repeat_themselves_make_no_graph(tmp_path: Path) -> None:
    train, valid, test = planted_sessions()
    alone = [(name, [items[0]] * 3) for name, items in train]
    write_data_set(tmp_path, "shop", alone, valid, test)
    with numpy_names():
        config = SessionConfig("DIMO", "shop", None, {"data_path": str(tmp_path), **SMALL})
        loaders = load_data(config)
        with pytest.raises(InputError, match="no training session holds two different items"):
            build_model(config, loaders.train._dataset)
