"""Whole runs on a small data set: reproducibility, checkpoints, refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.model.sequential_recommender.sasrec import SASRec
from safetensors.torch import load_file
from tiny_data import planted_sessions

from recbole_tpad.bridge import ranking
from recbole_tpad.bridge.batches import TRIMMED, by_length, trimmed
from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.dataset import load_data
from recbole_tpad.bridge.ranking import EvaluationError
from recbole_tpad.bridge.runner import build_model, load_run, run, run_recbole
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.bridge.trainer import SessionTrainer, TrainingError
from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.dimo import DIMO
from recbole_tpad.recommenders.sknn import SKNN
from recbole_tpad.store import write_store

SMALL = {"embedding_size": 8, "n_heads": 2, "n_layers": 2}


def test_a_run_gives_a_results_row(quick: dict[str, Any]) -> None:
    result = run({**quick, "model": "SASRec", "epochs": 15})
    row = json.loads(json.dumps(result.to_row()))
    assert set(row["metrics"]) == set(row["valid"]) == {"HR@5", "HR@10", "NDCG@5", "NDCG@10"}
    assert row["model"] == "SASRec"
    assert row["item_embeddings"] is None
    assert row["loss"] == "CE"
    assert row["epochs"] == len(row["curve"]) <= 15
    assert row["curve"][row["best_epoch"]]["valid"] == row["valid"]
    best = max(entry["valid"]["NDCG@10"] for entry in row["curve"])
    assert row["valid"]["NDCG@10"] == best
    assert sum(part["rows"] for part in row["slices"].values()) == len(result.ranks)
    assert row["slices"]["unseen"]["rows"] == 1
    assert row["seconds"] > 0
    assert row["peak_mb"] > 0
    assert row["parameters"] > 1000
    # The planted rule (item k is followed by k + 1) is learned.
    assert result.ndcg > 0.4
    test = [*planted_sessions()[2], ("cold", ["i01", "new"])]
    assert dict(zip(result.sessions, result.targets, strict=True)) == {s: i[-1] for s, i in test}


@pytest.mark.parametrize("model", ["SASRec", "DIMO", "CoOccurrence", "Popularity"])
def test_the_same_seed_gives_the_same_metrics(quick: dict[str, Any], model: str) -> None:
    keys = {**quick, "model": model, **(SMALL if model == "DIMO" else {})}
    first, second = run({**keys, "seed": 3}), run({**keys, "seed": 3})
    assert first.metrics == second.metrics
    assert first.curve == second.curve
    np.testing.assert_array_equal(first.ranks, second.ranks)


@pytest.mark.parametrize("model", ["DIMO", "SKNN"])
def test_scores_of_a_batch_stay_within_the_budget(
    quick: dict[str, Any], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**quick, "model": model, "epochs": 1, **(SMALL if model == "DIMO" else {})}
    plain = run(keys)
    # As if a score took ten thousand bytes: 3 rows of 32 items fit into a megabyte.
    monkeypatch.setattr(ranking, "_BYTES_PER_SCORE", 10_000)
    sizes = []
    kind = DIMO if model == "DIMO" else SKNN
    scored = kind.full_sort_predict

    def counted(self: Any, interaction: Any) -> Any:
        scores = scored(self, interaction)
        sizes.append(scores.numel() * 10_000)
        return scores

    monkeypatch.setattr(kind, "full_sort_predict", counted)
    small = run({**keys, "rank_memory_mb": 1})
    assert len(sizes) > 10
    assert max(sizes) <= 2**20
    np.testing.assert_array_equal(small.ranks, plain.ranks)


@pytest.mark.parametrize("asked", [False, True])
def test_anomaly_mode_is_what_the_key_says(quick: dict[str, Any], asked: bool) -> None:
    seen: list[bool] = []
    with torch.autograd.set_detect_anomaly(True):  # as after importing one of RecBole's models
        run(
            {**quick, "model": "SASRec", "epochs": 1, "detect_anomaly": asked},
            on_epoch=lambda *_: seen.append(torch.is_anomaly_enabled()),
        )
        assert torch.is_anomaly_enabled()
    assert seen == [asked]


def test_saved_runs_load_without_pickle(quick: dict[str, Any], shop: Path) -> None:
    ids = [f"i{k:02d}" for k in range(30)] + ["new"]
    store = shop / "shop" / "embeddings" / "content"
    common = {
        "role": "K1",
        "generator": "random",
        "dataset": "shop",
        "split_fingerprint": None,
        "inputs": {},
    }
    rows = np.random.default_rng(0).normal(size=(31, 6))
    write_store(store, ids, {"text": rows}, **common)
    result = run({**quick, "model": "GRU4Rec", "item_embeddings": "content"}, saved=True)
    assert result.item_embeddings == "content"
    assert result.checkpoint is not None
    assert {p.suffix for p in Path(result.checkpoint).parent.iterdir()} == {".safetensors", ".json"}
    assert not any("features" in key for key in load_file(result.checkpoint))
    config, model, loaders = load_run(result.checkpoint)
    ranking = SessionTrainer(config, model).rank(loaders.test)
    np.testing.assert_array_equal(ranking.ranks, result.ranks)

    write_store(store, ids, {"text": rows + 1}, **common)
    with pytest.raises(InputError, match="other vectors"):
        load_run(result.checkpoint)
    Path(result.checkpoint).with_suffix(".json").write_text("[")
    with pytest.raises(InputError, match="damaged"):
        load_run(result.checkpoint)


def test_changed_training_rows_are_noticed(quick: dict[str, Any], shop: Path) -> None:
    path = shop / "shop" / "shop.train.inter"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(InputError, match=r"not the training part of split\.json"):
        run({**quick, "model": "Popularity"})


def test_data_that_cannot_be_used_is_refused(quick: dict[str, Any], shop: Path) -> None:
    split_file = shop / "shop" / "split.json"
    split = json.loads(split_file.read_text())
    with pytest.raises(InputError, match="MAX_ITEM_LIST_LENGTH=2 is shorter"):
        run({**quick, "model": "SASRec", "MAX_ITEM_LIST_LENGTH": 2})
    split["parts"]["valid"]["sessions"] = 0
    split_file.write_text(json.dumps(split))
    with pytest.raises(InputError, match="part 'valid' has no sessions"):
        run({**quick, "model": "SASRec"})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"n_heads": 3}, "SASRec refuses its configuration: .*not a multiple of the number of"),
        ({"hidden_act": "foo"}, "SASRec refuses its configuration: .*foo"),
        ({"hidden_dropout_prob": 2}, "SASRec refuses its configuration: .*between 0 and 1"),
    ],
)
def test_what_recboles_models_refuse_is_no_traceback(
    quick: dict[str, Any], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run({**quick, "model": "SASRec", **keys})


def test_run_recbole_has_recboles_signature_and_keys(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--epochs=1", "--unknown=3"])
    keys = {**quick, "topk": [10], "metrics": ["Hit", "MRR"], "valid_metric": "MRR@10"}
    result = run_recbole("GRU4Rec", "shop", None, keys, saved=False)
    assert set(result) == {
        "best_valid_score",
        "valid_score_bigger",
        "best_valid_result",
        "test_result",
    }
    assert set(result["test_result"]) == {"hit@10", "mrr@10"}
    assert result["best_valid_score"] == result["best_valid_result"]["mrr@10"]


def test_a_model_class_needs_no_registration(quick: dict[str, Any]) -> None:
    class Mine(SASRec):
        pass

    keys = {**quick, "hidden_size": 16, "n_heads": 2, "n_layers": 1, "inner_size": 16}
    keys |= {"hidden_dropout_prob": 0.1, "attn_dropout_prob": 0.1, "hidden_act": "gelu"}
    keys |= {"layer_norm_eps": 1e-12, "initializer_range": 0.02, "loss_type": "CE"}
    assert run({**keys, "model": Mine}).model == "Mine"


def build(quick: dict[str, Any], model: str, **keys: Any) -> tuple[Any, Any, Any]:
    with numpy_names():
        config = SessionConfig(config_dict={**quick, "model": model, **keys})
        loaders = load_data(config)
        return config, build_model(config, loaders.train._dataset), loaders


@pytest.mark.parametrize("model", sorted(TRIMMED))
def test_cutting_common_padding_changes_no_score(quick: dict[str, Any], model: str) -> None:
    config, built, loaders = build(quick, model)
    built.eval()
    rows = loaders.test.collate_fn(
        np.flatnonzero(loaders.test._dataset.inter_feat["item_length"] < 4)
    )
    cut = trimmed(config, rows[0])
    assert cut["item_id_list"].shape[1] < rows[0]["item_id_list"].shape[1]
    with torch.no_grad():
        torch.testing.assert_close(
            built.full_sort_predict(cut).view(len(rows[0]), -1)[:, 1:],
            built.full_sort_predict(rows[0]).view(len(rows[0]), -1)[:, 1:],
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("model", ["BERT4Rec", "LightSANs", "Caser", "FPMC"])
def test_other_built_in_models_run(quick: dict[str, Any], model: str) -> None:
    result = run({**quick, "model": model, "epochs": 1})
    assert 0 <= result.hr <= 1


def test_masking_the_history_never_lowers_a_rank(quick: dict[str, Any]) -> None:
    plain = run({**quick, "model": "CoOccurrence"})
    masked = run({**quick, "model": "CoOccurrence", "mask_history": True})
    assert (masked.ranks <= plain.ranks).all()
    assert (masked.ranks < plain.ranks).any()


def test_length_bucketing_covers_every_row_once(quick: dict[str, Any]) -> None:
    config, _, loaders = build(quick, "SASRec", length_bucketing=True)
    seen = np.concatenate([b["item_id"].numpy() for b in by_length(config, loaders.train)])
    expected = loaders.train._dataset.inter_feat["item_id"].numpy()
    np.testing.assert_array_equal(np.sort(seen), np.sort(expected))
    assert run({**quick, "model": "SASRec", "length_bucketing": True}).epochs == 3


def test_divergence_stops_the_run(quick: dict[str, Any]) -> None:
    config, model, loaders = build(quick, "SASRec")
    trainer = SessionTrainer(config, model)
    with torch.no_grad():
        model.item_embedding.weight[3] = float("nan")
    with pytest.raises(TrainingError, match=r"diverged: loss nan in epoch 0, batch"):
        trainer.fit(loaders.train, loaders.valid, saved=False)
    with pytest.raises(EvaluationError, match="NaN"):
        trainer.rank(loaders.test)


def test_ids_do_not_depend_on_the_held_out_parts(quick: dict[str, Any], shop: Path) -> None:
    _, _, loaders = build(quick, "Popularity")
    tokens = loaders.train._dataset.field2id_token["item_id"]
    assert list(tokens) == ["[PAD]", *sorted(tokens[1:])]


def test_the_time_of_a_request_is_measured_when_asked_for(quick: dict[str, Any]) -> None:
    keys = {**quick, "model": "GRU4Rec", "epochs": 1}
    assert run(keys).latency_ms is None
    timed = run({**keys, "latency_sessions": 5})
    assert timed.latency_ms is not None
    assert 0 < timed.latency_ms < 1000 * timed.seconds
    assert timed.metrics == run(keys).metrics
