"""Every fusion with every adapter against numpy, and what must hold for all of them."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recbole_tpad.bridge.checkpoints import save_checkpoint
from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.fused_tables import FUSIONS
from recbole_tpad.recommenders.whitening import fit_whitened_pca
from recbole_tpad.store import open_store

Array = np.ndarray[Any, Any]
ADAPTERS = ("mlp", "linear", "pca", "moe")
COMBINATIONS = [("init", None), *((f, a) for f in FUSIONS if f != "init" for a in ADAPTERS)]
# erf from the standard library: numpy has none.
ERF = np.vectorize(math.erf)


def fused_model(
    build: Any, fusion: str, adapter: str | None = None, **keys: Any
) -> tuple[Any, Any]:
    name = keys.pop("model", "SASRec")
    chosen = {"item_embeddings": "content", "item_embeddings_fusion": fusion, **keys}
    chosen.setdefault("row_smoothing", "none")  # which is test_similar_items.py's
    if adapter is not None:
        chosen["adapter"] = adapter
    _, model, loaders = build(name, **chosen)
    return model, loaders


def numbers(module: Any) -> dict[str, Array]:
    return {k: v.detach().double().numpy() for k, v in module.named_parameters()}


def whitened(rows: Array, seen: Array, widths: list[int], size: int) -> Array:
    """Independent: scale each block to unit total variance, SVD, divide by singular values."""
    x = rows - rows[seen].mean(0)
    blocks = np.split(x, np.cumsum(widths)[:-1], axis=1)
    scaled = np.hstack([b / np.sqrt((b[seen] ** 2).sum() / seen.sum()) for b in blocks])
    _, singular, right = np.linalg.svd(scaled[seen], full_matrices=False)
    k = min(size, int(seen.sum()) - 1, rows.shape[1])
    found = scaled @ right[:k].T / singular[:k] * np.sqrt(seen.sum())
    return np.asarray(found)


def adapted(kind: str, p: dict[str, Array], raw: Array, seen: Array, size: int) -> Array:
    """Return adapter(features) before its constant factor, from its parameters."""
    if kind == "pca":
        raise AssertionError("compared up to signs, see its own test")
    x = (raw - raw[seen].mean(0)) / np.maximum(raw[seen].std(0), 1e-3)
    if kind == "linear":
        return np.asarray(x @ p["output.weight"].T + p["output.bias"])
    if kind == "mlp":
        z = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        h = (z * p["norm.weight"] + p["norm.bias"]) @ p["hidden.weight"].T + p["hidden.bias"]
        h = h * (1 + ERF(h / np.sqrt(2))) / 2
        return np.asarray(h @ p["output.weight"].T + p["output.bias"])
    total = np.zeros((len(raw), size))
    logits = x @ p["gate.weight"].T
    gates = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for k in range(len(p["weight"])):
        total += gates[:, k : k + 1] * ((x - p["bias"][k]) @ p["weight"][k])
    return total


def rms(rows: torch.Tensor) -> float:
    return float(rows.detach().pow(2).mean().sqrt())


def stirred(model: Any) -> Any:
    """Move every parameter of the fused table, so that zeros and identities hide nothing."""
    fused = model.item_embedding
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return fused


@pytest.mark.parametrize(("fusion", "adapter"), COMBINATIONS)
def test_the_table_equals_numpy(build: Any, shop: Any, fusion: str, adapter: str | None) -> None:
    model, loaders = fused_model(build, fusion, adapter)
    model.eval()
    start = numbers(model.item_embedding)
    start = {k: v.copy() for k, v in start.items()}
    fused = stirred(model)
    tokens = [str(t) for t in loaders.train._dataset.field2id_token["item_id"]]
    store = open_store(shop / "shop" / "embeddings" / "content")
    raw = np.vstack([np.zeros((1, 12)), store.rows(tokens[1:])]).astype(np.float64)
    seen = np.array([t not in ("[PAD]", "new") for t in tokens])
    p, size = numbers(fused), fused.embedding_dim
    with torch.no_grad():
        table = fused.weight.double().numpy()  # first use: now the adapter has its scale
    if fusion == "init":
        expected = np.where(seen[:, None], p["id_embedding.weight"], start["id_embedding.weight"])
    else:
        if adapter == "pca":
            content = fused.adapter.features.double().numpy() @ p["adapter.output.weight"].T
            content = content + p["adapter.output.bias"]
        else:
            own = {k.removeprefix("adapter."): v for k, v in p.items() if "adapter." in k}
            content = adapted(str(adapter), own, raw, seen, size)
        content = content * float(fused.adapter.output_scale)
        content[0] = 0
        ids = p.get("id_embedding.weight", np.zeros_like(content)) * seen[:, None]
        both = np.hstack([ids, content])
        if fusion == "add":
            expected = ids + content
        elif fusion == "gate":
            gate = 1 / (1 + np.exp(-(both @ p["gate.weight"].T + p["gate.bias"])))
            expected = gate * ids + (1 - gate) * content
        elif fusion == "concat":
            expected = both @ p["projection.weight"].T + p["projection.bias"]
        else:
            expected = content
    expected[0] = 0
    np.testing.assert_allclose(table, expected, atol=2e-5 * np.abs(expected).max())
    model.train()
    expected[~seen] = 0
    if adapter != "moe":  # its gates are noisy in training
        trained = fused.weight.detach().double().numpy()
        np.testing.assert_allclose(trained, expected, atol=2e-5 * np.abs(expected).max())
    assert not fused.weight[0].any()
    assert not fused.weight[~torch.from_numpy(seen)].any()


def test_whitening_has_identity_covariance_on_the_fitted_items_only() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 20)) @ rng.normal(size=(20, 20)) + 5
    seen = np.arange(300) < 200
    pca = fit_whitened_pca(rows[seen], 8, (5, 15))
    y = pca(rows)
    np.testing.assert_allclose(y[seen].mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(y[seen].T, bias=True), np.eye(8), atol=1e-8)
    assert np.abs(np.cov(y[~seen].T, bias=True) - np.eye(8)).max() > 0.05
    expected = whitened(rows, seen, [5, 15], 8)
    signs = np.sign((y * expected).sum(0))
    np.testing.assert_allclose(y, expected * signs, atol=1e-8)


def test_whitening_of_wide_and_of_poor_features() -> None:
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(80, 6)) @ rng.normal(size=(6, 2500))
    wide += 0.01 * rng.normal(size=wide.shape)
    y = fit_whitened_pca(wide, 6)(wide)
    np.testing.assert_allclose(np.cov(y.T, bias=True), np.eye(6), atol=1e-8)
    centred = wide - wide.mean(0)
    left = np.linalg.svd(centred, full_matrices=False)[0][:, :6]
    cosines = np.linalg.svd(left.T @ np.linalg.qr(y)[0])[1]
    assert cosines.min() > 1 - 1e-6  # the same subspace as the exact one
    assert fit_whitened_pca(np.ones((5, 3)), 2)(np.ones((5, 3))).shape == (5, 0)
    flat = rng.normal(size=(50, 2)) @ rng.normal(size=(2, 9))
    assert fit_whitened_pca(flat, 9)(flat).shape == (50, 2)


@pytest.mark.parametrize(
    ("name", "fusion", "adapter"),
    [*(("SASRec", *c) for c in COMBINATIONS), ("GRU4Rec", "add", "mlp"), ("GRU4Rec", "init", None)],
)
def test_the_scale_a_fused_table_starts_at(
    build: Any, name: str, fusion: str, adapter: str | None
) -> None:
    _, plain, loaders = build(name)
    tokens = loaders.train._dataset.field2id_token["item_id"]
    seen = torch.tensor([t not in ("[PAD]", "new") for t in tokens])
    # That of the table it replaces; init's rows, which every step moves freely, have length one.
    replaced = rms(plain.item_embedding.weight[1:])
    wanted = max(replaced, plain.item_embedding.embedding_dim**-0.5)
    wanted = wanted if fusion == "init" else replaced
    model, _ = fused_model(build, fusion, adapter, model=name)
    model.eval()
    # Within what the near-zero ID rows, or the random columns of init, add.
    assert rms(model.item_embedding.weight[seen]) == pytest.approx(wanted, rel=0.1)
    model, _ = fused_model(build, fusion, adapter, model=name, item_embeddings_scale=1.5)
    model.eval()
    assert rms(model.item_embedding.weight[seen]) == pytest.approx(1.5, rel=0.1)


@pytest.mark.parametrize(("fusion", "adapter"), COMBINATIONS)
def test_unseen_content_reaches_no_gradient(build: Any, fusion: str, adapter: str | None) -> None:
    model, loaders = fused_model(build, fusion, adapter)
    model.eval()  # no dropout, no noise
    fused = stirred(model)
    fused.train()
    fused.id_dropout = 0.0
    tokens = loaders.train._dataset.field2id_token["item_id"]
    cold = int(np.flatnonzero(tokens == "new")[0])
    rows = loaders.train.collate_fn(np.arange(16))
    gradients = []
    for shown in (100.0, -100.0):
        with torch.no_grad():
            if fusion == "init":
                fused.unseen_rows[cold] = shown
            else:
                fused.adapter.features[cold] = shown
        model.zero_grad()
        torch.manual_seed(0)
        model.calculate_loss(rows).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert any(bool(g.any()) for g in gradients[0])
    torch.testing.assert_close(*gradients)
    if fusion != "replace":
        # Not only for what it shows: its own row gets no gradient at all.
        assert not fused.id_embedding.weight.grad[cold].any()


@pytest.mark.parametrize(("fusion", "adapter"), COMBINATIONS)
def test_features_are_no_state_and_a_checkpoint_restores_the_table(
    build: Any, fusion: str, adapter: str | None
) -> None:
    model, loaders = fused_model(build, fusion, adapter)
    stirred(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    fused = model.item_embedding
    assert fused.adapter.store == "content" if fusion != "init" else fused.store == "content"
    frozen = {k for k, _ in model.named_buffers()} & set(state)
    assert {k.rpartition(".")[2] for k in frozen} <= {"output_scale"}
    other, _ = fused_model(build, fusion, adapter, seed=99)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_state_dict(state)
    rows = loaders.train.collate_fn(np.arange(8))
    model.eval()
    other.eval()
    torch.testing.assert_close(other.full_sort_predict(rows), model.full_sort_predict(rows))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_another_items_features_change_the_scores(build: Any, fusion: str) -> None:
    scores = []
    for store in ("content", "shuffled"):
        _, model, loaders = build("SASRec", item_embeddings=store, item_embeddings_fusion=fusion)
        model.eval()
        scores.append(model.full_sort_predict(loaders.train.collate_fn(np.arange(8))))
    assert (scores[0] - scores[1]).abs().max() > 1e-3


def test_init_keeps_the_content_of_unseen_items(build: Any) -> None:
    model, loaders = fused_model(build, "init")
    tokens = loaders.train._dataset.field2id_token["item_id"]
    cold = int(np.flatnonzero(tokens == "new")[0])
    before = model.item_embedding.id_embedding.weight.detach().clone()
    assert before[cold, :12].any()
    assert not before[cold, 12:].any()  # 12 features: the other columns are noise elsewhere
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.calculate_loss(loaders.train.collate_fn(np.arange(32))).backward()
        optimizer.step()
    model.eval()
    after = model.item_embedding.weight.detach()
    torch.testing.assert_close(after[cold], before[cold], rtol=0, atol=0)
    assert (after - before)[1:].abs().max() > 1e-3


def test_mask_token_rows_stay_id_rows_and_biases_of_unseen_items_do_not_move(build: Any) -> None:
    keys = {"item_embeddings": "content", "train_neg_sample_args": None, "weight_decay": 0.0}
    _, model, loaders = build("BERT4Rec", **keys)
    fused, n_items = model.item_embedding, loaders.train._dataset.item_num
    assert fused.weight.shape[0] == n_items + 1
    tokens = loaders.train._dataset.field2id_token["item_id"]
    cold = int(np.flatnonzero(tokens == "new")[0])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    mask_row = fused.weight[n_items].detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model.calculate_loss(loaders.train.collate_fn(np.arange(32))).backward()
        optimizer.step()
    assert (fused.weight[n_items] - mask_row).abs().max() > 1e-4
    assert float(model.output_bias[cold].detach()) == 0
    assert bool((model.output_bias[1:] != 0).sum() >= n_items - 3)


def test_a_deep_copy_is_independent(build: Any) -> None:
    model, loaders = fused_model(build, "add")
    rows = loaders.train.collate_fn(np.arange(8))
    model.eval()
    twin = copy.deepcopy(model)
    before = model.full_sort_predict(rows)
    with torch.no_grad():
        twin.item_embedding.id_embedding.weight.normal_()
    assert (twin.full_sort_predict(rows) - before).abs().max() > 1e-2
    torch.testing.assert_close(model.full_sort_predict(rows), before)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_dimo_takes_every_adapter(build: Any, adapter: str) -> None:
    _, model, loaders = build("DIMO", item_embeddings="content", adapter=adapter)
    rows = loaders.train.collate_fn(np.arange(16))
    model.calculate_loss(rows).backward()
    gradients = {k: p.grad for k, p in model.adapter.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert not model.modality_table()[0].any()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_checkpoints_of_dimo_do_not_hold_the_frozen_table(
    build: Any, tmp_path: Path, adapter: str
) -> None:
    _, model, _ = build("DIMO", item_embeddings="content", adapter=adapter)
    save_checkpoint(tmp_path / "x.safetensors", model, {})
    saved = load_file(tmp_path / "x.safetensors")
    assert [k for k, t in saved.items() if model.n_items in t.shape] == ["item_embedding.weight"]
    assert not any(t.shape == model.adapter.features.shape for t in saved.values())


def test_dimo_can_start_from_the_content(build: Any) -> None:
    _, model, loaders = build("DIMO", item_embeddings="content", item_embeddings_fusion="init")
    table = model.modality_table()
    assert isinstance(table, torch.nn.Parameter)
    features = model.store_sha256
    assert features is not None
    tokens = loaders.train._dataset.field2id_token["item_id"]
    seen = torch.tensor([t not in ("[PAD]", "new") for t in tokens])
    k = 12
    covariance = np.cov(table[seen][:, :k].detach().numpy().T, bias=True)
    np.testing.assert_allclose(covariance * 3 * table.shape[1], np.eye(k), atol=1e-3)
    model.calculate_loss(loaders.train.collate_fn(np.arange(16))).backward()
    assert table.grad is not None
    with pytest.raises(InputError, match="Known for DIMO: add, init"):
        build("DIMO", item_embeddings="content", item_embeddings_fusion="gate")
