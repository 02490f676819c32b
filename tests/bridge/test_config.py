"""Configuration: layers, refusals, command-line values."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recbole_tpad.bridge.config import SessionConfig, parse_overrides, parse_value
from recbole_tpad.bridge.models import builtin_models, known_models, model_class
from recbole_tpad.errors import InputError
from recbole_tpad.presets import read_yaml


def config(shop: Path, model: Any = "SASRec", **keys: Any) -> SessionConfig:
    return SessionConfig(model, "shop", None, {"data_path": str(shop), **keys})


def test_layers(shop: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("learning_rate: 5e-4\nepochs: 7\n")
    found = SessionConfig("DIMO", "shop", [file], {"data_path": str(shop), "epochs": 9})
    assert found["train_batch_size"] == 50  # DIMO's YAML, over overall.yaml
    assert found["learning_rate"] == 5e-4  # the file
    assert found["epochs"] == 9  # config_dict
    assert found["USER_ID_FIELD"] == "session_id"  # the data set folder
    assert found["topk"] == [5, 10]  # overall.yaml
    assert found["valid_metric"] == "NDCG@10"
    assert config(shop)["n_layers"] == 2  # RecBole's own SASRec.yaml


def test_an_unknown_key_names_its_file(shop: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("epochs: 7\n")
    second.write_text("learnin_rate: 5e-4\n")
    with pytest.raises(InputError, match=r"'learnin_rate' in .*second\.yaml\. Did you mean"):
        SessionConfig("DIMO", "shop", [first, second], {"data_path": str(shop)})
    second.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"second\.yaml is not UTF-8"):
        SessionConfig("DIMO", "shop", [first, second], {"data_path": str(shop)})


def test_rows_without_embeddings_may_share_the_keys_of_others(shop: Path) -> None:
    assert config(shop, item_embeddings=None, adapter="pca")["adapter"] == "pca"


def test_sampling_follows_the_loss(shop: Path) -> None:
    assert config(shop)["train_neg_sample_args"]["distribution"] == "none"
    assert config(shop, loss_type="BPR")["train_neg_sample_args"]["distribution"] == "uniform"
    with pytest.raises(InputError, match="should be None"):
        config(shop, train_neg_sample_args={"distribution": "uniform", "sample_num": 1})


@pytest.mark.parametrize(
    ("model", "keys", "message"),
    [
        ("SASrec", {}, "Unknown sequential model 'SASrec'. Did you mean 'SASRec'"),
        ("Dimo", {}, "Did you mean 'DIMO'"),
        ("S3Rec", {"train_stage": "finetune"}, "one run pretrains"),
        (
            "SASRec",
            {"learning_rat": 0.1},
            "Unknown configuration key.*Did you mean 'learning_rate'",
        ),
        ("SASRec", {"n_partners": 3}, "Unknown configuration key 'n_partners'"),
        ("SASRec", {"mask_history": "yes"}, "mask_history='yes' must be of type bool"),
        ("SASRec", {"epochs": "many"}, "epochs='many' must be of type int"),
        ("DIMO", {"auxiliary_weight": "0.1x"}, "auxiliary_weight"),
        ("SASRec", {"metrics": ["Hitt"]}, "no metric named"),
        ("SASRec", {"train_batch_size": 0}, "train_batch_size=0 must be at least 1"),
        ("SASRec", {"epochs": -1}, "epochs=-1 must be at least 1"),
        ("SASRec", {"learning_rate": -0.1}, "learning_rate=-0.1 must be at least 0"),
        ("SASRec", {"n_layers": 0}, "n_layers=0 must be at least 1"),
        ("GRU4Rec", {"num_layers": 0}, "num_layers=0 must be at least 1"),
        ("SASRec", {"hidden_size": -8}, "hidden_size=-8 must be at least 1"),
        ("DIMO", {"embedding_size": 0}, "embedding_size=0 must be at least 1"),
        ("SASRec", {"gpu_id": "abc"}, "gpu_id='abc' must be numbers with commas"),
        ("SASRec", {"learner": "adamm"}, "would train with adam. Did you mean 'adam'"),
        ("SASRec", {"loss_type": "XX"}, "loss_type='XX' is unknown. Known: CE, BPR"),
        ("SASRec", {"seed": 1.5}, "seed=1.5 must be a whole number"),
        ("SASRec", {"adapter": "pca", "id_dropout": 0.1}, "adapter, id_dropout would be ignored"),
        ("SASRec", {"n_layers": "__import__('os')"}, "n_layers=.*must be a number"),
        ("SASRec", {"hidden_dropout_prob": True}, "hidden_dropout_prob=True must be a number"),
        ("GRU4Rec", {"dropout_prob": [0.1]}, "dropout_prob=.*must be a number"),
        ("SASRec", {"shuffle": "no"}, "shuffle='no' must be a bool"),
        ("SASRec", {"eval_args": {"splt": 1}}, "Unknown key 'splt' in eval_args. Did you mean"),
        ("SASRec", {"eval_args": {"split": {"LS": "test_only"}}}, "split would be ignored"),
        ("SASRec", {"eval_args": {"order": "TO", "group_by": "user"}}, "carries its own"),
        ("SASRec", {"eval_args": {"mode": "uni100"}}, "samples candidates"),
        ("SASRec", {"eval_args": {"mode": {"valid": "uni100"}}}, "samples candidates"),
        ("GRU4Rec", {"train_neg_sample_args": {"sampl_num": 1}}, "Unknown key 'sampl_num'"),
        ("Pop", {}, "general recommender.*Use Popularity"),
        ("ItemKNN", {}, "general recommender.*Use CoOccurrence"),
        ("BPR", {}, "general recommender.*Use DIMO or SASRec"),
        ("LightGCN", {}, "general recommender.*Use CoOccurrence or Popularity"),
    ],
)
def test_refusals(shop: Path, model: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(shop, model, **keys)


def test_unknown_data_set_suggests_a_known_one(shop: Path) -> None:
    (shop / "shop" / "shop.inter").write_text("session_id:token\titem_id:token\n")
    with pytest.raises(InputError, match=r"No data set 'shob'.*Did you mean 'shop'"):
        SessionConfig("SASRec", "shob", None, {"data_path": str(shop)})
    with pytest.raises(InputError, match="No model given"):
        SessionConfig(None, "shop", None, {"data_path": str(shop)})


def test_a_damaged_split_file_is_named(shop: Path) -> None:
    (shop / "shop" / "split.json").write_text("{")
    with pytest.raises(InputError, match=r"split\.json is damaged"):
        config(shop)


def test_values_are_read_not_evaluated(tmp_path: Path) -> None:
    target = tmp_path / "made"
    text = f"__import__('pathlib').Path({str(target)!r}).touch()"
    assert parse_value(text) == text
    assert not target.exists()
    found = parse_overrides(["--learning_rate=1e-3", "--topk=[5, 10]", "--mask_history=true"])
    assert found == {"learning_rate": 0.001, "topk": [5, 10], "mask_history": True}
    assert parse_overrides(["--train_neg_sample_args=~", "--dataset=a=b"]) == {
        "train_neg_sample_args": None,
        "dataset": "a=b",
    }
    for bad in (["epochs=3"], ["--epochs"], ["--epochs=1", "--epochs=2"], ["--topk=[1"]):
        with pytest.raises(InputError):
            parse_overrides(bad)


def test_program_arguments_do_not_leak_in(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--epochs=1", "--nonsense=2"])
    assert config(shop)["epochs"] == 100


def test_a_file_with_bad_yaml_is_named(shop: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("a: [1\n")
    with pytest.raises(InputError, match=r"bad\.yaml"):
        SessionConfig("SASRec", "shop", [file], {"data_path": str(shop)})


def test_tabs_are_explained(shop: Path, tmp_path: Path) -> None:
    file = tmp_path / "tabs.yaml"
    file.write_text("eval_args:\n\tmode: full\n")
    with pytest.raises(InputError, match=r"tabs\.yaml(.|\n)*line 2(.|\n)*spaces, not tabs"):
        SessionConfig("SASRec", "shop", [file], {"data_path": str(shop)})


@pytest.mark.parametrize("text", ["epochs: 1\nseed: 2\nepochs: 3\n", "topk: [5]\n'topk': [5]\n"])
def test_a_key_set_twice_in_a_file_is_refused(shop: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"twice\.yaml(.|\n)*(epochs|topk)' is set twice"):
        SessionConfig("SASRec", "shop", [file], {"data_path": str(shop)})


def test_a_merged_mapping_may_be_changed(tmp_path: Path) -> None:
    file = tmp_path / "merged.yaml"
    file.write_text("a: &a {b: 1, c: 2}\nd:\n  <<: *a\n  b: 3\n")
    assert read_yaml(file)["d"] == {"b": 3, "c": 2}


@pytest.mark.parametrize("device", [0, "0", "0,1", "", "1, 2"], ids=str)
def test_devices_are_numbers(shop: Path, device: Any) -> None:
    assert config(shop, gpu_id=device)["device"].type in ("cpu", "cuda")


def test_values_of_the_command_line_that_look_like_code(shop: Path, tmp_path: Path) -> None:
    target = tmp_path / "made"
    for text in (f"open({str(target)!r}, 'w')", f"!!python/object/apply:os.mkdir [{target}]"):
        with pytest.raises(InputError, match=r"must be a number|Cannot read the value"):
            config(shop, n_layers=parse_value(text))
        assert not target.exists()


def test_a_list_of_rerankers_is_text(shop: Path) -> None:
    found = config(shop, "SASRecCPR", reranker_CAN_NUM="20,10")
    assert found["reranker_CAN_NUM"] == "20,10"


def test_known_models() -> None:
    assert {"SASRec", "GRU4Rec", "NARM", "BERT4Rec"} <= set(builtin_models())
    assert {"DIMO", "CoOccurrence", "Popularity"} <= set(known_models())
    for name in ("SASRec", "DIMO"):
        assert model_class(name).__name__ == name


def test_importing_a_model_leaves_anomaly_mode_off() -> None:
    code = (
        "import torch; from recbole_tpad.bridge.models import model_class;"
        "model_class('SASRec'); print(torch.is_anomaly_enabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
