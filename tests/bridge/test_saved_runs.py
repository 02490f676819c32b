"""Saved runs read back, and what is refused: other models, items, versions, damage, pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender.gru4rec import GRU4Rec
from recbole.trainer import Trainer
from recbole.utils import init_seed
from tiny_data import planted_sessions, write_data_set

from recbole_tpad.bridge.runner import evaluate_saved_run, load_run, run
from recbole_tpad.bridge.saved_runs import load_data_and_model
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.bridge.trainer import SessionTrainer
from recbole_tpad.cli import main
from recbole_tpad.errors import InputError


@pytest.fixture
def saved(quick: dict[str, Any]) -> tuple[Path, Any]:
    """A checkpoint of a short run, and the run's result."""
    result = run({**quick, "model": "GRU4Rec", "epochs": 2}, saved=True)
    assert result.checkpoint is not None
    return Path(result.checkpoint), result


def edit(checkpoint: Path, **changes: Any) -> None:
    file = checkpoint.with_suffix(".json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_saved_run_is_tested_again(saved: tuple[Path, Any], shop: Path, tmp_path: Path) -> None:
    checkpoint, result = saved
    again = evaluate_saved_run(checkpoint)
    np.testing.assert_array_equal(again.ranks, result.ranks)
    assert again.metrics == result.metrics
    assert (again.epochs, again.best_epoch, again.valid) == (0, -1, {})
    shop.rename(tmp_path / "moved")
    assert evaluate_saved_run(checkpoint, {"data_path": str(tmp_path / "moved")}).hr == result.hr


def test_from_the_command_line(
    saved: tuple[Path, Any], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, result = saved
    where = ["--dataset", "shop", "--data_path", str(shop)]
    assert main(["run", *where, "--checkpoint", str(checkpoint)]) == 0
    said = capsys.readouterr().out
    assert f"HR@10 {result.hr:.4f}" in said
    assert "a session's own items kept in the ranking" in said
    assert main(["run", *where]) == 2
    assert "--model is required" in capsys.readouterr().err
    assert main(["run", *where, "--checkpoint", str(checkpoint), "--model", "NARM"]) == 2
    assert "holds the model GRU4Rec, not NARM" in capsys.readouterr().err
    assert main(["run", *where, "--model", "NARM", "--trust-checkpoint"]) == 2
    assert "--checkpoint" in capsys.readouterr().err


def test_recboles_function_reads_our_runs(saved: tuple[Path, Any]) -> None:
    checkpoint, result = saved
    config, model, dataset, train, valid, test = load_data_and_model(str(checkpoint))
    assert dataset.item_num == train._dataset.item_num == valid._dataset.item_num
    np.testing.assert_array_equal(SessionTrainer(config, model).rank(test).ranks, result.ranks)


def test_other_items_are_refused(saved: tuple[Path, Any], shop: Path) -> None:
    checkpoint, _ = saved
    train, valid, test = planted_sessions()

    def renamed(sessions: Any) -> Any:
        return [(s, ["x" + i for i in items]) for s, items in sessions]

    cold = [("cold", ["xi01", "xnew"])]
    write_data_set(shop, "shop", renamed(train), renamed(valid), [*renamed(test), *cold])
    with pytest.raises(InputError, match="other items than the data set 'shop'"):
        load_run(checkpoint)


def test_another_model_version_or_format_is_refused(
    saved: tuple[Path, Any], quick: dict[str, Any]
) -> None:
    checkpoint, _ = saved
    with pytest.raises(InputError, match="holds the model GRU4Rec, not NARM"):
        load_run(checkpoint, {"model": "NARM"})
    config, _, loaders = load_run(checkpoint)
    config["model"] = "NARM"
    trainer = SessionTrainer(config, torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="holds the model GRU4Rec, not NARM"):
        trainer.evaluate(loaders.test, model_file=checkpoint)
    with pytest.raises(InputError, match="does not fit this model"):
        load_run(checkpoint, {"hidden_size": 7})
    edit(checkpoint, recbole="1.2.0")
    with pytest.raises(InputError, match=r"written with RecBole 1\.2\.0, here is 1\.2\.1"):
        load_run(checkpoint)
    edit(checkpoint, format=9)
    with pytest.raises(InputError, match="has format 9"):
        load_run(checkpoint)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_files_are_refused(saved: tuple[Path, Any], keep: int) -> None:
    checkpoint, _ = saved
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    with pytest.raises(InputError, match="is damaged"):
        load_run(checkpoint)


def test_absent_files_are_refused(tmp_path: Path) -> None:
    for name in ("absent.safetensors", "absent.pth"):
        with pytest.raises(InputError, match="absent"):
            load_run(tmp_path / name, trust_checkpoint=True)


def recboles_run(quick: dict[str, Any]) -> tuple[Path, dict[str, float]]:
    """Train with RecBole's own data, trainer and checkpoint; return the file and its metrics."""
    keys = {
        "data_path": quick["data_path"],
        "checkpoint_dir": quick["checkpoint_dir"],
        "USER_ID_FIELD": "session_id",
        "load_col": {"inter": ["session_id", "item_id_list", "item_id"]},
        "alias_of_item_id": ["item_id_list"],
        "benchmark_filename": ["train", "valid", "test"],
        "train_neg_sample_args": None,
        "epochs": 1,
        "show_progress": False,
        "embedding_size": 8,
        "hidden_size": 8,
        "metrics": ["Hit", "NDCG"],
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 10,
    }
    with numpy_names():
        config = Config("GRU4Rec", "shop", None, keys)
        init_seed(config["seed"], True)
        dataset = create_dataset(config)
        train, valid, test = data_preparation(config, dataset)
        trainer = Trainer(config, GRU4Rec(config, train._dataset))
        trainer.fit(train, valid, verbose=False, saved=True)
        found = trainer.evaluate(test, load_best_model=False)
    return Path(trainer.saved_model_file), dict(found)


def test_a_pickled_checkpoint_needs_trust(
    quick: dict[str, Any],
    shop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # RecBole writes log_tensorboard here
    file, expected = recboles_run(quick)
    with pytest.raises(InputError, match=r"pickled.*executes whatever code.*trust_checkpoint=True"):
        load_run(file)
    with pytest.raises(InputError, match="trust_checkpoint"):
        load_data_and_model(file)
    found = evaluate_saved_run(file, trust_checkpoint=True)
    assert found.metrics["HR@10"] == pytest.approx(expected["hit@10"], abs=1e-8)
    assert found.metrics["NDCG@10"] == pytest.approx(expected["ndcg@10"], abs=1e-8)
    where = ["--dataset", "shop", "--data_path", str(shop), "--checkpoint", str(file)]
    assert main(["run", *where]) == 2
    assert "--trust-checkpoint" in capsys.readouterr().err
    assert main(["run", *where, "--trust-checkpoint"]) == 0
    assert f"HR@10 {expected['hit@10']:.4f}" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds the model GRU4Rec, not NARM"):
        load_run(file, {"model": "NARM"}, trust_checkpoint=True)
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(InputError, match="damaged, or no checkpoint of this version"):
        load_run(file, trust_checkpoint=True)


class Bomb:
    """A pickle that touches a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_nothing_is_executed_without_trust(tmp_path: Path) -> None:
    target, file = tmp_path / "executed", tmp_path / "foreign.pth"
    torch.save({"config": Bomb(target), "state_dict": {}}, file)
    with pytest.raises(InputError, match="trust_checkpoint"):
        load_run(file)
    assert not target.exists()
    with pytest.raises(InputError, match="damaged, or no checkpoint"):
        load_run(file, trust_checkpoint=True)
    assert target.exists(), "the file would have executed code"
