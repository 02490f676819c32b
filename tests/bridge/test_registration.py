"""RecBole's own functions with our models, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from recbole_tpad.store import write_store

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, folder: Path) -> str:
    """Run code in a fresh interpreter, in `folder`; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        cwd=folder,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


KEYS = """
    keys = dict(
        data_path="dataset", epochs=1, stopping_step=1, show_progress=False,
        embedding_size=8, n_heads=2, n_layers=1, topk=[10], valid_metric="MRR@10", state="ERROR",
    )
"""
STOCK = (
    """
    import sys
    import numpy as np
    import torch
    import recbole_tpad
    assert "recbole" not in sys.modules
    plain = lambda m: {k: v for k, v in vars(m).items() if not isinstance(v, type(sys))}
    names = plain(np)
    recbole_tpad.register()
    recbole_tpad.register()
    assert not torch.is_anomaly_enabled()
    from recbole.config import Config
    from recbole.quick_start import load_data_and_model, objective_function, run_recbole
    from recbole.utils.case_study import full_sort_scores, full_sort_topk
    from recbole_tpad.errors import InputError
"""
    + KEYS
    + """
    config = Config(model="DIMO", dataset="shop", config_dict=keys)
    assert config["train_batch_size"] == 50 and config["USER_ID_FIELD"] == "session_id"
    found = run_recbole(model="DIMO", dataset="shop", config_dict=keys)
    assert 0 <= found["test_result"]["ndcg@10"] <= 1, found
    baseline = run_recbole(model="CoOccurrence", dataset="shop", config_dict=keys, saved=False)
    assert baseline["test_result"]["ndcg@10"] > 0.1, baseline
    for model, said in (("SASRec", "recbole_tpad.run_recbole"), ("Popularity", "leave the key")):
        try:
            run_recbole(model=model, dataset="shop", config_dict={**keys, "item_embeddings": "x"})
        except InputError as error:
            assert said in str(error)
        else:
            raise AssertionError("item_embeddings were ignored")

    # What RecBole's run saved is found again, also with other arguments on the command line.
    from pathlib import Path
    [file] = Path("saved").glob("DIMO-*.safetensors")
    sys.argv += ["--epochs=77"]
    config, model, dataset, train, valid, test = load_data_and_model(model_file=str(file))
    assert config["epochs"] == 1 and dataset.item_num == 32
    sys.argv.pop()
    from recbole_tpad.bridge.trainer import SessionTrainer
    again = SessionTrainer(config, model).evaluate(test)
    assert again == found["test_result"], (again, found)
    users = test.dataset.token2id("session_id", ["cold", "s0149"])
    scores = full_sort_scores(users, model, test)
    assert scores.shape == (2, 32) and torch.isinf(scores[:, 0]).all()
    values, items = full_sort_topk(users, model, test, k=3)
    assert torch.equal(values, scores.topk(3).values)

    # The objective of RecBole's HyperTuning.
    tuned = objective_function({**keys, "model": "DIMO", "dataset": "shop"}, saved=False)
    assert tuned["model"] == "DIMO" and tuned["test_result"] == found["test_result"]

    recbole_tpad.unregister()
    recbole_tpad.unregister()
    assert names == plain(np)
    assert "recbole.model.sequential_recommender.dimo" not in sys.modules
    import recbole.trainer
    assert not hasattr(recbole.trainer, "DIMOTrainer")
    assert recbole.trainer.Trainer.evaluate.__module__ == "recbole.trainer.trainer"
    assert Config._load_internal_config_dict.__module__ == "recbole.config.configurator"
    print("done")
"""
)


def test_recboles_own_functions_find_our_models(shop: Path, tmp_path: Path) -> None:
    assert python(STOCK, tmp_path).strip().endswith("done")


def test_registering_changes_nothing_else_and_is_undone(shop: Path, tmp_path: Path) -> None:
    """Every public name of every RecBole module is the same object before and after."""
    code = """
        import importlib, sys, torch
        import numpy as np
        plain = lambda m: {k: v for k, v in vars(m).items() if not isinstance(v, type(sys))}
        names = plain(np)
        for module in ("trainer", "data", "config", "evaluator", "utils.case_study",
                       "model.sequential_recommender", "data.dataset"):
            importlib.import_module("recbole." + module)
        def look():
            return {
                (name, key): value
                for name, module in list(sys.modules.items())
                if name.split(".")[0] == "recbole"
                for key, value in vars(module).items()
            } | {(c.__qualname__, k): v for c in classes for k, v in vars(c).items()}
        from recbole.config import Config
        from recbole.trainer import Trainer
        from recbole.model.sequential_recommender import SASRec
        from recbole.data.dataset import SequentialDataset
        classes = (Config, Trainer, SASRec, SequentialDataset)
        before = look()
        import recbole_tpad
        recbole_tpad.register()
        during = look()
        changed = {k for k in before if during[k] is not before[k]}
        assert changed == {
            ("Config", "_load_internal_config_dict"),
            ("Trainer", "_save_checkpoint"),
            ("Trainer", "evaluate"),
            ("recbole.trainer.hyper_tuning", "np"),
        }, changed
        recbole_tpad.unregister()
        after = look()
        lost = {k for k in before if after.get(k) is not before[k]}
        new = {k for k in after if k not in before and not k[0].startswith("recbole.quick_start")}
        assert not lost and not new - {("recbole", "quick_start")}, (lost, new)
        assert names == plain(np)
        print("done")
    """
    assert python(code, tmp_path).strip().endswith("done")


STOCK_BASELINE = (
    """
    import pickle
    import recbole_tpad
    recbole_tpad.register()
    from recbole.quick_start import load_data_and_model, run_recbole
    from recbole_tpad.bridge.config import folder_settings
    from recbole_tpad.errors import InputError
    from pathlib import Path
"""
    + KEYS
    + """
    keys |= folder_settings(Path("dataset/shop")) | dict(
        train_neg_sample_args=None, hidden_size=8, inner_size=8, epochs=3)
    found = run_recbole(model="SASRec", dataset="shop", config_dict=keys)
    [file] = Path("saved").glob("SASRec-*.pth")
    try:
        load_data_and_model(model_file=file)
    except InputError as error:
        assert "trust_checkpoint" in str(error)
    else:
        raise AssertionError("a pickle was read")
    config, model, dataset, train, valid, test = load_data_and_model(file, trust_checkpoint=True)
    from recbole.trainer import Trainer
    trainer = Trainer(config, model)
    assert trainer.evaluate(test, load_best_model=False) == found["test_result"]
    # A file that this trainer did not write, or that somebody wrote again, is torch's decision.
    for prepare in (lambda: None, lambda: trainer._save_checkpoint(0, verbose=False)):
        trainer.saved_model_file = str(file)
        prepare()
        file.write_bytes(file.read_bytes() + b" ")
        try:
            trainer.evaluate(test)
        except pickle.UnpicklingError:
            continue
        raise AssertionError("a pickle was read")
    print("done")
    """
)


@pytest.mark.slow
def test_recboles_own_models_run_in_recboles_own_runner(shop: Path, tmp_path: Path) -> None:
    assert python(STOCK_BASELINE, tmp_path).strip().endswith("done")


TUNING = """
import argparse
from recbole.trainer import HyperTuning
from recbole.quick_start import objective_function
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

parser = argparse.ArgumentParser()
parser.add_argument("--config_files")
parser.add_argument("--params_file")
parser.add_argument("--tool", default="Hyperopt")
args, _ = parser.parse_known_args()
if args.tool == "Ray":
    ray.init()
tuning = HyperTuning(
    objective_function, algo="exhaustive", early_stop=10, max_evals=5, params_file=args.params_file,
    fixed_config_file_list=args.config_files.split(),
)
tuning.run()
tuning.export_result(output_file="tuned.txt")
assert tuning.best_score > 0 and len(tuning.params2result) == 2, tuning.params2result
print("best", tuning.model, sorted(tuning.best_params))
"""


@pytest.mark.slow
def test_exec_runs_recboles_tuning_script(shop: Path, tmp_path: Path) -> None:
    """As RecBole's run_hyper.py does: it imports ray whatever it tunes with."""
    (tmp_path / "run_hyper.py").write_text(TUNING)
    (tmp_path / "hyper.test").write_text("learning_rate choice [0.001,0.01]\n")
    (tmp_path / "fixed.yaml").write_text(
        "model: DIMO\ndataset: shop\ndata_path: dataset\nepochs: 1\nshow_progress: false\n"
        "embedding_size: 8\nn_heads: 2\nn_layers: 1\nstate: ERROR\n"
    )
    code = """
        import sys
        from recbole_tpad.bridge.shims import ray_is_importable
        from recbole_tpad.cli import main
        arguments = ["exec", "run_hyper.py", "--config_files=fixed.yaml"]
        arguments += ["--params_file=hyper.test"]
        assert main(arguments) == 0
        if not ray_is_importable():
            assert main([*arguments, "--tool=Ray"]) == 2
        assert not hasattr(sys.modules.get("ray"), "tune") or ray_is_importable()
    """
    assert "best DIMO ['learning_rate']" in python(code, tmp_path)
    assert "learning_rate:0.01" in (tmp_path / "tuned.txt").read_text()


@pytest.mark.slow
def test_recboles_tuning_of_a_built_in_model_with_item_embeddings(
    shop: Path, tmp_path: Path
) -> None:
    ids = ["new", *(f"i{k:02d}" for k in range(30))]
    write_store(
        shop / "shop" / "embeddings" / "content",
        ids,
        {"text": np.random.default_rng(0).normal(size=(len(ids), 6))},
        role="other",
        generator="random",
        dataset="shop",
        split_fingerprint=None,
        inputs={},
    )
    code = """
        import recbole_tpad
        recbole_tpad.register()
        from recbole.trainer import HyperTuning
        fixed = {"model": "SASRec", "dataset": "shop", "data_path": "dataset", "epochs": 1,
                 "item_embeddings": "content", "hidden_size": 8, "inner_size": 8}
        tuning = HyperTuning(
            lambda config_dict, files: recbole_tpad.objective_function(
                {**fixed, **config_dict}, files, saved=False),
            params_dict={"choice": {"item_embeddings_fusion": ["init", "add"]}},
            algo="exhaustive", max_evals=5, early_stop=10,
        )
        tuning.run()
        found = [r["best_valid_score"] for r in tuning.params2result.values()]
        assert len(found) == 2 and found[0] != found[1], tuning.params2result
        print("done", tuning.model)
    """
    assert python(code, tmp_path).strip().endswith("done SASRec")


SCRIPT = """
import argparse, sys
import helper
from recbole.quick_start import run

parser = argparse.ArgumentParser()
parser.add_argument("--model", "-m", type=str)
parser.add_argument("--dataset", "-d", type=str)
parser.add_argument("--config_files", type=str)
args, _ = parser.parse_known_args()
found = run(args.model, args.dataset, config_file_list=args.config_files.split())
print(__name__, sys.argv[1:], helper.VALUE, sorted(found["test_result"]))
"""


def test_exec_runs_a_stock_script(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "run_recbole.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("VALUE = 7\n")
    (tmp_path / "mine.yaml").write_text(
        "data_path: dataset\nshow_progress: false\nembedding_size: 8\nn_heads: 2\nn_layers: 1\n"
        "state: ERROR\ntopk: [10]\n"
    )
    code = """
        import sys
        from recbole_tpad.cli import main
        argv, path = list(sys.argv), list(sys.path)
        status = main(["exec", "run_recbole.py", "--model=DIMO", "--dataset=shop", "--epochs=1",
                       "--config_files=mine.yaml", "--debug", "--version=1"])
        assert status == 0 and (sys.argv, sys.path) == (argv, path)
        assert "recbole.model.sequential_recommender.dimo" not in sys.modules
    """
    said = python(code, tmp_path).strip().splitlines()[-1]
    assert said == (
        "__main__ ['--model=DIMO', '--dataset=shop', '--epochs=1', '--config_files=mine.yaml', "
        "'--debug', '--version=1'] 7 ['hit@10', 'mrr@10', 'ndcg@10', 'precision@10', 'recall@10']"
    )


def test_exec_without_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from recbole_tpad.cli import main

    assert main(["exec", str(tmp_path / "absent.py")]) == 2
    assert "absent.py" in capsys.readouterr().err


def test_our_run_leaves_numpy_and_recbole_as_they_were(shop: Path, tmp_path: Path) -> None:
    code = """
        import numpy as np
        from recbole_tpad.bridge.shims import NUMPY_NAMES
        before = set(vars(np)) & set(NUMPY_NAMES)
        from recbole_tpad import run_recbole
        run_recbole("Popularity", "shop", None, {"data_path": "dataset"}, saved=False)
        assert set(vars(np)) & set(NUMPY_NAMES) == before
        from recbole.config import Config
        assert Config._load_internal_config_dict.__module__ == "recbole.config.configurator"
        print("done")
    """
    assert python(code, tmp_path).strip().endswith("done")
    assert not (tmp_path / "log_tensorboard").exists()
    assert not (tmp_path / "log").exists()


def test_what_recbole_itself_would_ignore_is_refused(shop: Path, tmp_path: Path) -> None:
    code = """
        import recbole_tpad
        recbole_tpad.register()
        from recbole.config import Config
        from recbole_tpad.errors import InputError
        for keys in (
            {"cold_items": "exclude"},
            {"embedding_kernel": True},
            {"history_items": "calibrated", "cooccurrence_kernel": True},
        ):
            try:
                Config("DIMO", "shop", config_dict=keys)
            except InputError as error:
                assert f"would ignore {' and '.join(keys)}." in str(error)
            else:
                raise AssertionError(keys)
        Config("DIMO", "shop", config_dict={"row_smoothing": 3.0})  # DIMO does that itself
        try:
            Config("DIMO", "shop", config_dict={"row_smoothing": "auto"})
        except InputError as error:
            assert "would ignore row_smoothing='auto'." in str(error)
        else:
            raise AssertionError("auto")
        print("done")
    """
    assert python(code, tmp_path).strip().endswith("done")
