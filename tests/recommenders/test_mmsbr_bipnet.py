"""MMSBR and BiPNet against dense references of their equations, and what they read of items."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_baselines import (
    bipnet_preferences,
    bipnet_tables,
    mmsbr_contrast,
    mmsbr_items,
    mmsbr_scores,
)

from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.item_attributes import FIRST, UNKNOWN, codes, price_levels
from recbole_tpad.recommenders.mmsbr_parts import pseudo_contrast
from recbole_tpad.recommenders.sessions import training_sessions

MMSBR = {
    "embedding_size": 8,
    "feature_size": 6,
    "n_heads": 2,
    "n_pivots": 2,
    "n_rounds": 2,
    "n_negatives": 5,
    "price_levels": 4,
}
BIPNET = {"embedding_size": 8, "n_heads": 2, "price_levels": 3}


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def items(shop: Path) -> Path:
    """Prices, categories and brands; some of them missing."""
    lines = ["item_id:token\ttitle:token_seq\tbrand:token\tcategory:token\tprice:float"]
    for k in range(30):
        price = "" if k % 7 == 3 else f"{1.5 * k + 1}"
        brand = "" if k % 9 == 4 else f"b{k % 3}"
        lines.append(f"i{k:02d}\tmug {k}\t{brand}\tc{k % 4}\t{price}")
    lines.append("new\tmug\tb1\tc1\t12.0")
    file = shop / "shop" / "shop.item"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def batch_of(loaders: Any, size: int = 6) -> tuple[Any, list[list[int]]]:
    rows = loaders.train.collate_fn(np.arange(0, size * 7, 7))
    sessions = [
        seq[:n].tolist() for seq, n in zip(rows["item_id_list"], rows["item_length"], strict=True)
    ]
    assert len({len(s) for s in sessions}) > 1
    return rows, sessions


@pytest.mark.parametrize("modalities", [None, ["text"], ["visual", "text"]], ids=str)
def test_mmsbr_equals_its_equations(build: Any, modalities: list[str] | None) -> None:
    keys: dict[str, Any] = {**MMSBR}
    if modalities is not None:
        keys |= {"item_embeddings": "content", "item_embeddings_modalities": modalities}
    _, model, loaders = build("MMSBR", **keys)
    model.eval()
    rows, sessions = batch_of(loaders)
    assert len(model.modalities) == len(modalities or [])
    torch.testing.assert_close(model.item_vectors(), mmsbr_items(model))
    wanted = mmsbr_scores(model, sessions)
    found = model.full_sort_predict(rows)
    assert torch.isinf(found[:, 0]).all()
    torch.testing.assert_close(found[:, 1:], wanted)
    loss = torch.nn.functional.cross_entropy(wanted, rows["item_id"] - 1)
    if modalities is not None and len(modalities) == 2:
        loss = loss + 0.01 * mmsbr_contrast(model)
    torch.testing.assert_close(model.calculate_loss(rows), loss)
    picked = model.predict(rows)
    torch.testing.assert_close(picked, found.gather(1, rows["item_id"][:, None])[:, 0])


def test_mmsbr_scores_unseen_items_as_it_does_others_unless_told(build: Any) -> None:
    """A shift found on the validation part does not keep its share on other contexts."""
    keys = {**MMSBR, "item_embeddings": "content"}
    _, model, _ = build("MMSBR", **keys, cold_items=None)
    assert not hasattr(model, "score_adjustments")
    _, told, _ = build("MMSBR", **keys, cold_items="calibrated")
    assert told.score_adjustments.mode == "calibrated"


@pytest.mark.slow
def test_mmsbr_gradients_equal_the_references(build: Any) -> None:
    _, model, loaders = build("MMSBR", **MMSBR, item_embeddings="content")
    model.eval()
    rows, sessions = batch_of(loaders, 3)
    loss = torch.nn.functional.cross_entropy(mmsbr_scores(model, sessions), rows["item_id"] - 1)
    (loss + 0.01 * mmsbr_contrast(model)).backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.calculate_loss(rows).backward()
    for name, parameter in model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], msg=name)


def test_mmsbr_in_blocks_is_the_same(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {**MMSBR, "fusion_dropout_prob": 0.0, "dropout_prob": 0.0}
    _, model, loaders = build("MMSBR", **keys, item_embeddings="content")
    model.train()
    rows, _ = batch_of(loaders)
    whole = model.calculate_loss(rows)
    (gradient,) = torch.autograd.grad(whole, [model.pivots.weight])
    monkeypatch.setattr("recbole_tpad.recommenders.mmsbr._BLOCK", 7)
    monkeypatch.setattr("recbole_tpad.recommenders.mmsbr_parts._BLOCK", 4)
    parts = model.calculate_loss(rows)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, [model.pivots.weight])[0], gradient)


def test_mmsbr_starts_from_the_features(build: Any) -> None:
    # In the public code the uniform start comes after the features are copied in, and wipes them.
    _, first, _ = build("MMSBR", **MMSBR, item_embeddings="content")
    _, other, _ = build("MMSBR", **MMSBR, item_embeddings="shuffled")
    text, shuffled = (m.modalities[0].weight[1:] for m in (first, other))
    torch.testing.assert_close(text.std(), torch.tensor((3 * 8) ** -0.5), atol=0.03, rtol=0)
    assert not torch.allclose(text, shuffled)
    assert all(m.weight.requires_grad for m in first.modalities)


def test_mmsbr_generated_modalities(build: Any) -> None:
    keys = {**MMSBR, "item_embeddings": "content", "pseudo_item_embeddings": "shuffled"}
    _, model, _ = build("MMSBR", **keys)
    assert len(model.pseudo) == 2
    torch.testing.assert_close(model.contrast(), mmsbr_contrast(model))
    with pytest.raises(InputError, match="pseudo_item_embeddings stands beside"):
        build("MMSBR", **MMSBR, pseudo_item_embeddings="shuffled")


def test_the_contrast_by_hand() -> None:
    x, g = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [1.0]])
    # Both negatives: log10(e^3 + e^1) − 3/ln 10, and log10(e^6 + e^2) − 2/ln 10.
    wanted = [
        (math.log(math.exp(3) + math.exp(1)) - 3) / math.log(10),
        (math.log(math.exp(6) + math.exp(2)) - 2) / math.log(10),
    ]
    torch.testing.assert_close(pseudo_contrast(x, g, 2), torch.tensor(wanted))
    one = pseudo_contrast(x, g, 1)
    torch.testing.assert_close(one, torch.tensor([0.0, (6 - 2) / math.log(10)]))


@pytest.mark.parametrize("variant", ["corrected", "official"])
def test_bipnet_equals_its_equations(build: Any, variant: str) -> None:
    _, model, loaders = build("BiPNet", **BIPNET, variant=variant)
    model.eval()
    rows, sessions = batch_of(loaders)
    _, training = training_sessions(loaders.train._dataset)
    tables = bipnet_tables(model, training)
    found = model.propagated()
    for kind, table in tables.items():
        torch.testing.assert_close(found[kind][1:], table[1:], msg=kind)
    interest, price = map(
        torch.stack, zip(*(bipnet_preferences(model, tables, s) for s in sessions), strict=True)
    )
    level = model.graph.get_buffer("price_of_item")
    by_item, by_price = interest @ tables["item"][1:].T, price @ tables["price"][1:].T
    target = rows["item_id"]
    loss = torch.nn.functional.cross_entropy(by_item, target - 1)
    loss = loss + torch.nn.functional.cross_entropy(by_price, level[target] - 1)
    torch.testing.assert_close(model.calculate_loss(rows), loss)
    wanted = by_item.softmax(1) + by_price[:, level[1:] - 1].softmax(1)
    scores = model.full_sort_predict(rows)
    assert torch.isinf(scores[:, 0]).all()
    torch.testing.assert_close(scores[:, 1:], wanted)
    # Gradients through the sparse products and the edge softmax.
    loss.backward()
    dense = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.calculate_loss(rows).backward()
    for name, parameter in model.named_parameters():
        if name in dense:
            grad = dense[name].clone()
            if name.startswith("tables."):
                grad[0] = 0  # padding takes no part
            torch.testing.assert_close(parameter.grad, grad, msg=name)


def test_bipnet_variants_differ_and_test_sessions_change_nothing(build: Any, shop: Path) -> None:
    _, model, loaders = build("BiPNet", **BIPNET)
    _, official, _ = build("BiPNet", **BIPNET, variant="official")
    rows, _ = batch_of(loaders)
    assert not torch.allclose(model.eval().predict(rows), official.eval().predict(rows))
    before = model.graph.transitions["item"].values.clone()
    test = shop / "shop" / "shop.test.inter"
    head, *lines = test.read_text().splitlines()
    turned = [line.rsplit("\t", 1)[0] + "\ti03" for line in lines]
    test.write_text("\n".join([head, *turned]) + "\n")
    _, again, _ = build("BiPNet", **BIPNET)
    torch.testing.assert_close(again.graph.transitions["item"].values, before)


def test_what_is_refused(build: Any, items: Path) -> None:
    with pytest.raises(InputError, match=r"BiPNet cannot take item_embeddings: it reads prices"):
        build("BiPNet", **BIPNET, item_embeddings="content")
    with pytest.raises(InputError, match="variant='offical' is unknown"):
        build("BiPNet", **BIPNET, variant="offical")
    with pytest.raises(InputError, match="price_scale='log' is unknown"):
        build("MMSBR", **MMSBR, price_scale="log")
    with pytest.raises(InputError, match="embedding_size=9 must be a multiple of n_heads=2"):
        build("MMSBR", **{**MMSBR, "embedding_size": 9})
    text = items.read_text()
    items.write_text(text.replace("brand:token", "maker:token"))
    with pytest.raises(InputError, match=r"shop\.item has no column 'brand'"):
        build("BiPNet", **BIPNET)
    items.write_text(text.replace("1.0\n", "one\n", 1))
    with pytest.raises(InputError, match="'price' holds 'one', which is not a number"):
        build("MMSBR", **MMSBR)
    items.unlink()
    with pytest.raises(InputError, match="needs items' prices and categories"):
        build("BiPNet", **BIPNET)


def test_price_levels_by_hand() -> None:
    category = codes(["", "a", "a", "a", "b", "b", "", "a"]).of_item
    assert category.tolist() == [0, 2, 2, 2, 3, 3, UNKNOWN, 2]
    prices = ["", "10", "14.9", "20", "7", "7", "3", "0"]
    found = price_levels(prices, category, 4)
    # a: 10 … 20 in four levels of 2.5; b has one price: the middle; 0 is unknown.
    assert found.of_item.tolist() == [0, FIRST, FIRST + 1, FIRST + 3, 4, 4, 4, UNKNOWN]
    assert found.count == FIRST + 4
    logistic = price_levels(prices, category, 4, "logistic").of_item
    own = np.array([10, 14.9, 20])
    cdf = 1 / (1 + np.exp(-(own - own.mean()) / (own.std() * math.sqrt(3) / math.pi)))
    level = int((cdf[1] - cdf[0]) / (cdf[2] - cdf[0]) * 4)
    assert logistic[1:4].tolist() == [FIRST, FIRST + level, FIRST + 3]


def test_both_learn_the_planted_rule(build: Any, shop: Path) -> None:
    from recbole_tpad.bridge.runner import run

    torch.set_default_dtype(torch.float32)
    common = {"dataset": "shop", "data_path": str(shop), "train_batch_size": 64}
    fit = {"epochs": 12, "learning_rate": 0.01}
    bipnet = run({**common, **fit, **BIPNET, "model": "BiPNet", "embedding_size": 16})
    popular = run({**common, "model": "Popularity"})
    assert bipnet.ndcg > popular.ndcg + 0.15
    mmsbr = {**MMSBR, "fusion_dropout_prob": 0.0, "embedding_size": 16}
    found = run({**common, **fit, **mmsbr, "model": "MMSBR", "item_embeddings": "content"})
    assert found.ndcg > popular.ndcg + 0.1
