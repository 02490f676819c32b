"""Item embeddings in built-in models: fusion, alignment, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_tpad.errors import InputError
from recbole_tpad.files import sha256_file, write_json
from recbole_tpad.recommenders.item_embeddings import FusedItemEmbedding
from recbole_tpad.store import Manifest, open_store, write_store

MODELS = ["SASRec", "GRU4Rec", "NARM", "STAMP", "CORE", "SHAN", "FOSSIL", "BERT4Rec"]


def save_store(shop: Path, name: str, **changes: Any) -> None:
    ids = changes.pop("ids", [f"i{k:02d}" for k in range(30)] + ["new"])
    rows = np.random.default_rng(1).normal(size=(len(ids), 4)).astype(np.float32)
    settings = {
        "role": "K1",
        "generator": "tpad",
        "dataset": "shop",
        "split_fingerprint": None,
        "inputs": {},
        **changes,
    }
    write_store(shop / "shop" / "embeddings" / name, ids, {"text": rows}, **settings)


@pytest.mark.parametrize("name", MODELS)
def test_a_built_in_model_trains_and_scores_with_item_embeddings(build: Any, name: str) -> None:
    _, model, loaders = build(name, item_embeddings="content")
    fused = model.item_embedding
    assert isinstance(fused, FusedItemEmbedding)
    rows = loaders.train.collate_fn(np.arange(16))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model.calculate_loss(rows)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert fused.adapter.hidden.weight.grad is not None
    model.eval()
    assert model.full_sort_predict(rows).reshape(16, -1).shape == (
        16,
        loaders.train._dataset.item_num,
    )


def test_the_table_is_ids_of_trained_items_plus_content(build: Any, shop: Path) -> None:
    _, model, loaders = build("SASRec", item_embeddings="content")
    model.eval()
    fused, tokens = model.item_embedding, loaders.train._dataset.field2id_token["item_id"]
    with torch.no_grad():
        fused.id_embedding.weight[1:] = 1.0
        content = fused.adapter()
        table = fused.weight
    cold = int(np.flatnonzero(tokens == "new")[0])
    assert not table[0].any()
    torch.testing.assert_close(table[cold], content[cold])
    others = [k for k in range(1, len(tokens)) if k != cold]
    torch.testing.assert_close(table[others], content[others] + 1.0)
    store = open_store(shop / "shop" / "embeddings" / "content")
    np.testing.assert_array_equal(
        fused.adapter.features[1:].numpy(), store.rows([str(t) for t in tokens[1:]])
    )
    assert not any("features" in key or "mask" in key for key in model.state_dict())


def test_content_never_seen_in_training_is_not_pushed_down_as_a_negative(build: Any) -> None:
    _, model, loaders = build("SASRec", item_embeddings="content")
    fused, tokens = model.item_embedding, loaders.train._dataset.field2id_token["item_id"]
    cold = int(np.flatnonzero(tokens == "new")[0])
    assert not fused.weight[cold].any()  # the model is in training mode
    model.eval()  # no dropout
    with torch.no_grad():
        assert fused.weight[cold].any()
    fused.train()
    gradients = []
    for shown in (100.0, -100.0):
        with torch.no_grad():
            fused.adapter.features[cold] = shown
        model.zero_grad()
        model.calculate_loss(loaders.train.collate_fn(np.arange(16))).backward()
        gradients.append([p.grad.clone() for p in fused.adapter.parameters()])
    assert any(g.any() for g in gradients[0])
    torch.testing.assert_close(*gradients)  # whatever the item shows, training does not see it


def test_one_adapter_pass_a_step_and_one_an_evaluation(build: Any) -> None:
    _, model, loaders = build("SASRec", item_embeddings="content", id_dropout=0.3)
    calls = []
    model.item_embedding.adapter.register_forward_hook(lambda *_: calls.append(1))
    rows = loaders.train.collate_fn(np.arange(8))
    model.train()
    model.calculate_loss(rows).backward()
    assert len(calls) == 1
    model.eval()
    with torch.no_grad():
        first = model.full_sort_predict(rows)
        torch.testing.assert_close(model.full_sort_predict(rows), first)
        assert len(calls) == 2
        model.item_embedding.id_embedding.weight[1] += 1.0
        model.full_sort_predict(rows)
    assert len(calls) == 3


def test_shuffled_features_and_modalities_change_the_scores(build: Any) -> None:
    scores = []
    for keys in (
        {"item_embeddings": "content"},
        {"item_embeddings": "shuffled"},
        {"item_embeddings": "content", "item_embeddings_modalities": ["text"]},
    ):
        _, model, loaders = build("SASRec", **keys)
        model.eval()
        scores.append(model.full_sort_predict(loaders.train.collate_fn(np.arange(8))))
    assert (scores[0] - scores[1]).abs().max() > 1e-3
    assert (scores[0] - scores[2]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("FPMC", "several tables, IU_emb, LI_emb, IL_emb"),
        ("HGN", "items also live in item_embedding_for_prediction"),
        ("NPE", "items also live in embedding_seq_item"),
        ("TransRec", "items also live in bias"),
        ("RepeatNet", "items also live in explore_recommendation_decoder.matrix_for_explore"),
        ("Popularity", "no embedding table"),
    ],
)
def test_models_that_would_ignore_them_are_refused(build: Any, model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(model, item_embeddings="content")


def test_a_layer_as_wide_as_the_catalogue_is_no_item_table(build: Any) -> None:
    keys = {"hidden_size": 64, "inner_size": 32}  # there are 32 items as well
    _, model, _ = build("SASRec", item_embeddings="content", **keys)
    assert isinstance(model.item_embedding, FusedItemEmbedding)


def test_refused_stores(build: Any, shop: Path) -> None:
    save_store(shop, "teacher", role="T")
    save_store(shop, "foreign", split_fingerprint="0" * 64)
    save_store(shop, "partial", ids=[f"i{k:02d}" for k in range(5, 30)])
    for store, message in (
        ("teacher", "role T"),
        ("foreign", "another training part.*embed --generator tpad"),
        ("partial", "miss 6 of the data set's 31 items, first: i00, i01"),
        ("contant", "Did you mean 'content'"),
    ):
        for model in ("SASRec", "DIMO", "CoOccurrence"):
            with pytest.raises(InputError, match=message):
                build(model, item_embeddings=store)


def test_the_same_training_part_is_accepted(build: Any, shop: Path) -> None:
    import json

    split = json.loads((shop / "shop" / "split.json").read_text())
    save_store(shop, "own", split_fingerprint=split["parts"]["train"]["sha256"])
    _, model, _ = build("SASRec", item_embeddings="own")
    assert model.item_embedding.adapter.store == "own"


def test_rows_that_are_not_finite_are_named(build: Any, shop: Path) -> None:
    path = shop / "shop" / "embeddings" / "content"
    rows = np.load(path / "text.00000.npy")
    rows[4] = np.nan
    np.save(path / "text.00000.npy", rows)
    _, model, _ = build("SASRec", item_embeddings="content")
    with pytest.raises(InputError, match="not what its manifest says"):
        _ = model.item_embedding.weight  # the first use
    # Written so by another program: the hashes are right.
    manifest = Manifest.read(path / "manifest.json")
    manifest.files["text.00000.npy"] = sha256_file(path / "text.00000.npy")
    write_json(path / "manifest.json", manifest.to_json())
    message = "1 rows with NaN or infinite values, first: i04"
    _, model, loaders = build("SASRec", item_embeddings="content")
    with pytest.raises(InputError, match=message):
        model.calculate_loss(loaders.train.collate_fn(np.arange(8)))
    with pytest.raises(InputError, match=message):
        # At once: for what is similar to an unseen item.
        build("DIMO", item_embeddings="content")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"item_embeddings_fusion": "ad"}, "Did you mean 'add'"),
        ({"id_dropout": 1.0}, "id_dropout"),
        ({"id_dropout": 0.1, "item_embeddings_fusion": "init"}, "id_dropout has no meaning"),
        ({"adapter": "pac"}, "Did you mean 'pca'"),
        ({"adapter": "moe", "adapter_experts": 0}, "adapter_experts"),
        ({"adapter": "mlp", "item_embeddings_fusion": "init"}, "would be ignored"),
        ({"item_embeddings_scale": -1.0}, "item_embeddings_scale"),
        ({"item_embeddings_modalities": ["txt"]}, "Did you mean 'text'"),
    ],
)
def test_bad_keys_are_refused(build: Any, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("SASRec", item_embeddings="content", **keys)


SMALL_DIMO = {"embedding_size": 8, "n_heads": 2, "n_layers": 1}


def test_two_stores_side_by_side(build: Any, shop: Path) -> None:
    _, model, loaders = build("DIMO", item_embeddings="content+shuffled", **SMALL_DIMO)
    tokens = [str(t) for t in loaders.train._dataset.field2id_token["item_id"][1:]]
    stores = [open_store(shop / "shop" / "embeddings" / n) for n in ("content", "shuffled")]
    expected = np.concatenate([store.rows(tokens) for store in stores], axis=1)
    np.testing.assert_array_equal(model.adapter.features[1:].numpy(), expected)
    hashes = {store.sha256 for store in stores}
    assert model.adapter.store_sha256 not in hashes
    with pytest.raises(InputError, match="neither a store"):
        build("DIMO", item_embeddings="content+absent", **SMALL_DIMO)
    with pytest.raises(InputError, match="goes with one store"):
        build(
            "DIMO",
            item_embeddings="content+shuffled",
            item_embeddings_modalities=["text"],
            **SMALL_DIMO,
        )


def test_a_store_of_another_data_set_is_refused(build: Any, shop: Path) -> None:
    source = open_store(shop / "shop" / "embeddings" / "content")
    write_store(
        shop / "shop" / "embeddings" / "foreign",
        source.item_ids,
        {m: np.asarray(source.array(m)) for m in source.manifest.modalities},
        role="other",
        generator="random",
        dataset="grocery",
        split_fingerprint=None,
        inputs={},
    )
    for model in ("GRU4Rec", "DIMO"):
        with pytest.raises(InputError, match="made for data set 'grocery'"):
            build(model, item_embeddings="foreign")
