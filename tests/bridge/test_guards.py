"""What a result states, and runs whose item embeddings saw another training part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_data import planted_sessions

from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.dataset import load_data
from recbole_tpad.bridge.runner import build_model, run
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.bridge.trainer import SessionTrainer
from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.sessions import training_fingerprint
from recbole_tpad.store import write_store


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, Any]:
    """Keys of a run on RecBole's own atomic file, split by RecBole's leave one out."""
    folder = tmp_path / "dataset" / "plain"
    folder.mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for sessions in planted_sessions():
        for user, items in sessions:
            lines += [f"{user}\t{item}\t{time}" for time, item in enumerate(items)]
    (folder / "plain.inter").write_text("\n".join(lines) + "\n")
    return {
        "dataset": "plain",
        "data_path": str(tmp_path / "dataset"),
        "model": "GRU4Rec",
        "epochs": 1,
        "train_batch_size": 256,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user"},
    }


def test_embeddings_of_another_split_are_refused_on_plain_data(
    plain: dict[str, Any], tmp_path: Path
) -> None:
    with numpy_names():
        train = load_data(SessionConfig(config_dict=plain)).train._dataset
    ids = [str(t) for t in train.field2id_token["item_id"][1:]]

    def write(fingerprint: str) -> None:
        write_store(
            tmp_path / "store",
            ids,
            {"text": np.random.default_rng(0).normal(size=(len(ids), 4))},
            role="K1",
            generator="random",
            dataset="plain",
            split_fingerprint=fingerprint,
            inputs={},
        )

    keys = {**plain, "item_embeddings": str(tmp_path / "store")}
    write(training_fingerprint(train))
    assert run(keys).item_embeddings == "store"
    other = {"split": {"RS": [0.6, 0.2, 0.2]}, "order": "TO", "group_by": "none"}
    with pytest.raises(InputError, match=r"another training part.*embed --generator random"):
        run({**keys, "eval_args": other})
    write("0" * 64)
    with pytest.raises(InputError, match="another training part"):
        run(keys)


@pytest.mark.parametrize("masked", [False, True])
def test_every_row_states_whether_the_history_was_ranked(
    quick: dict[str, Any], masked: bool
) -> None:
    result = run({**quick, "model": "Popularity", "mask_history": masked})
    assert result.mask_history is masked
    assert result.to_row()["mask_history"] is masked


@pytest.mark.parametrize("model", ["GRU4Rec", "BERT4Rec", "DIMO"])
def test_masking_holds_for_every_model(quick: dict[str, Any], model: str) -> None:
    keys = {**quick, "model": model, "epochs": 1}
    plain, masked = (run({**keys, "mask_history": on}).ranks for on in (False, True))
    assert (masked <= plain).all()
    assert (masked < plain).any()


def test_sampled_candidates_are_refused_wherever_they_come_from(quick: dict[str, Any]) -> None:
    with numpy_names():
        config = SessionConfig(config_dict={**quick, "model": "Popularity"})
        loaders = load_data(config)
        trainer = SessionTrainer(config, build_model(config, loaders.train._dataset))
    with pytest.raises(InputError, match="samples candidates"):
        trainer.rank(loaders.train)


@pytest.mark.parametrize("mask", [False, True])
def test_examples_are_the_model_s_best_items(quick: dict[str, Any], mask: bool) -> None:
    keys = {**quick, "model": "GRU4Rec", "epochs": 1, "mask_history": mask}
    result = run({**keys, "example_sessions": 4})
    assert run(keys).examples == []
    assert len({e["session"] for e in result.examples}) == 4
    rank_of = dict(zip(result.sessions, result.ranks.tolist(), strict=True))
    for example in result.examples:
        assert len(set(example["top"])) == 10
        assert "[PAD]" not in example["top"]
        assert example["rank"] == rank_of[example["session"]]
        if example["target"] in example["top"]:
            assert example["top"].index(example["target"]) == example["rank"] - 1
        else:
            # A masked target of the history is still ranked, but never recommended.
            assert example["rank"] > 10 or example["target"] in example["context"]
        if mask:
            assert not set(example["top"]) & set(example["context"])
    assert "reasons" not in result.examples[0]


def test_dimo_s_examples_have_reasons(quick: dict[str, Any], shop: Path) -> None:
    ids = [f"i{k:02d}" for k in range(30)] + ["new"]
    write_store(
        shop / "shop" / "embeddings" / "content",
        ids,
        {"text": np.random.default_rng(0).normal(size=(31, 4))},
        role="other",
        generator="random",
        dataset="shop",
        split_fingerprint=None,
        inputs={},
    )
    keys = {**quick, "model": "DIMO", "epochs": 1, "embedding_size": 8, "n_heads": 2}
    result = run({**keys, "item_embeddings": "content", "example_sessions": 3})
    for example in result.examples:
        assert len(example["reasons"]) == len(example["top"])
        assert {r["item"] for r in example["reasons"]} <= set(example["context"])
        kinds = {r["reason"] for r in example["reasons"]}
        assert kinds <= {"bought together", "connected", "similar", "repeated"}
