"""RecBole's models that need more than sessions: pairs, negatives, pretraining, vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from test_resume import interrupted, same
from tiny_data import planted_sessions, write_data_set

from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.dataset import load_data
from recbole_tpad.bridge.runner import build_model, evaluate_saved_run, run
from recbole_tpad.bridge.scoring import rank_part
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.errors import InputError

CLICK = {"embedding_size": 4, "mlp_hidden_size": [8]}
S3REC: dict[str, Any] = {
    "model": "S3Rec",
    "hidden_size": 8,
    "inner_size": 8,
    "pretrain_epochs": 2,
    "epochs": 2,
}


@pytest.mark.parametrize("model", ["DIN", "DIEN"])
@pytest.mark.parametrize("memory", [512, 1])
def test_click_models_are_ranked_by_scoring_every_pair(
    quick: dict[str, Any], model: str, memory: int
) -> None:
    keys = {**quick, **CLICK, "model": model, "rank_memory_mb": memory}
    with numpy_names(), torch.random.fork_rng():
        config = SessionConfig(config_dict=keys)
        loaders = load_data(config)
        torch.manual_seed(0)
        built = build_model(config, loaders.train._dataset)
    found = rank_part(built, config, torch.device("cpu"), loaders.test)
    rows, _ = loaders.test.collate_fn(np.arange(len(loaders.test._dataset)))[:2]
    targets = rows["item_id"].clone()
    ranks = torch.ones(len(targets), dtype=torch.long)
    with torch.no_grad():
        own = built.predict(rows)
        for item in range(1, loaders.test._dataset.item_num):
            rows.update(Interaction({"item_id": torch.full_like(targets, item)}))
            other = built.predict(rows)
            ahead = (other > own) | ((other == own) & (item < targets))
            ranks += ahead & (targets != item)
    assert found.ranks.tolist() == ranks.tolist()
    assert len(set(found.ranks.tolist())) > 3


def test_negative_histories_hold_other_items_and_follow_the_seed(quick: dict[str, Any]) -> None:
    def histories(seed: int) -> list[Any]:
        with numpy_names():
            config = SessionConfig(config_dict={**quick, "model": "DIEN", "seed": seed})
            return [loader._dataset.inter_feat for loader in load_data(config)]

    first, again, other = histories(1), histories(1), histories(2)
    for part, same_seed, other_seed in zip(first, again, other, strict=True):
        items, negatives = part["item_id_list"], part["neg_item_id_list"]
        assert items.shape == negatives.shape
        assert ((items == 0) == (negatives == 0)).all()
        assert (items != negatives)[items > 0].all()
        assert torch.equal(negatives, same_seed["neg_item_id_list"])
        assert not torch.equal(negatives, other_seed["neg_item_id_list"])
    drawn = torch.bincount(first[0]["neg_item_id_list"].flatten())[1:]
    assert (drawn > 0).all()  # every item, the last one too
    assert drawn.max() < 3 * drawn.float().mean()


@pytest.mark.parametrize("model", ["DIN", "DIEN"])
def test_click_models_learn_from_pairs(tmp_path: Path, model: str) -> None:
    write_data_set(tmp_path, "ring", *planted_sessions(30, 400), max_len=10)
    where = {"dataset": "ring", "data_path": str(tmp_path), "train_batch_size": 128}
    sizes = {"embedding_size": 16, "mlp_hidden_size": [16], "learning_rate": 0.02}
    keys = {**where, **sizes, "model": model}
    untrained = run({**keys, "epochs": 1, "learning_rate": 1e-9})
    trained = run({**keys, "epochs": 4})
    assert trained.hr > untrained.hr + 0.2
    assert trained.curve[-1]["train_loss"] < trained.curve[0]["train_loss"]


def test_s3rec_pretrains_then_fine_tunes_in_one_run(quick: dict[str, Any]) -> None:
    keys = {**quick, **S3REC}
    result = run(keys, saved=True)
    assert [entry.get("stage") for entry in result.curve] == ["pretrain", "pretrain", None, None]
    assert ["valid" in entry for entry in result.curve] == [False, False, True, True]
    assert result.best_epoch >= 2
    # Cross-entropy over 31 items, not the sum of the four pretraining losses over a batch.
    assert result.curve[1]["train_loss"] > 10 * result.curve[2]["train_loss"]
    assert result.checkpoint is not None
    assert evaluate_saved_run(result.checkpoint).metrics == result.metrics
    without = run({**keys, "pretrain_epochs": 0})
    assert [entry.get("stage") for entry in without.curve] == [None, None]
    assert without.curve[0]["train_loss"] != result.curve[2]["train_loss"]


def test_s3rec_goes_on_from_any_stage(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**quick, **S3REC, "train_batch_size": 256}
    whole = run(keys)
    resuming = {**keys, "resume": True, "checkpoint_seconds": 0}
    for after in (1, 2, 3):
        interrupted(resuming, after, monkeypatch)
    same(run(resuming), whole)


def test_s3recs_stages_are_one_run(quick: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"train_stage='finetune'.*pretrain_epochs"):
        run({**quick, **S3REC, "train_stage": "finetune", "pre_model_path": "x.pth"})
    with pytest.raises(InputError, match=r"no column 'categry'\. Did you mean 'category"):
        SessionConfig(config_dict={**quick, **S3REC, "item_attribute": "categry"})


def test_gru4reckg_takes_vectors_of_the_items(quick: dict[str, Any]) -> None:
    keys = {**quick, "model": "GRU4RecKG", "epochs": 1, "embedding_size": 3}
    with pytest.raises(InputError, match=r"shop\.ent.*not found"):
        run(keys)
    folder = Path(keys["data_path"]) / "shop"
    vectors = {f"i{k:02d}": [k, k + 0.5, -k] for k in range(30)}
    lines = ["ent_id:token\tent_emb:float_seq"]
    lines += [f"{item}\t{' '.join(map(str, values))}" for item, values in vectors.items()]
    (folder / "shop.ent").write_text("\n".join(lines) + "\n", encoding="utf-8")
    keys["alias_of_item_id"] = ["item_id_list", "ent_id"]
    keys["preload_weight"] = {"ent_id": "ent_emb"}
    sessions = ["session_id", "item_id_list", "item_id"]
    keys["load_col"] = {"inter": sessions, "ent": ["ent_id", "ent_emb"]}
    with numpy_names():
        config = SessionConfig(config_dict=keys)
        train = load_data(config).train._dataset
        model = build_model(config, train)
    tokens = train.field2id_token["item_id"]
    for row, token in enumerate(tokens):
        expected = vectors.get(str(token), [0, 0, 0])
        assert model.entity_embedding.weight[row].tolist() == pytest.approx(expected)
    assert run(keys).metrics["HR@10"] > 0
