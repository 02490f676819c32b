"""RecBole's own `run_recbole` with our models, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, folder: Path) -> str:
    """Run code in a fresh interpreter, in `folder`; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


STOCK = """
    import sys
    import numpy as np
    import recbole_tpad
    assert "recbole" not in sys.modules
    assert "float_" not in vars(np)
    recbole_tpad.register()
    recbole_tpad.register()
    from recbole.quick_start import run_recbole
    from recbole_tpad.errors import InputError
    keys = dict(
        data_path="dataset", USER_ID_FIELD="session_id", epochs=1, stopping_step=1,
        load_col={"inter": ["session_id", "item_id_list", "item_id"]}, show_progress=False,
        alias_of_item_id=["item_id_list"], benchmark_filename=["train", "valid", "test"],
        embedding_size=8, n_heads=2, n_layers=1, topk=[10], valid_metric="MRR@10",
        train_neg_sample_args=None, state="ERROR",
    )
    found = run_recbole(model="DIMO", dataset="shop", config_dict=keys)
    assert 0 <= found["test_result"]["ndcg@10"] <= 1, found
    found = run_recbole(model="CoOccurrence", dataset="shop", config_dict=keys, saved=False)
    assert found["test_result"]["ndcg@10"] > 0.1, found
    try:
        run_recbole(model="SASRec", dataset="shop", config_dict={**keys, "item_embeddings": "x"})
    except InputError as error:
        assert "recbole_tpad.run_recbole" in str(error)
    else:
        raise AssertionError("item_embeddings were ignored")
    from recbole_tpad.bridge.registration import unregister
    unregister()
    unregister()
    assert not {"float_", "bool8", "unicode_"} & set(vars(np))
    assert "recbole.model.sequential_recommender.dimo" not in sys.modules
    print("done")
"""


def test_stock_run_recbole_finds_our_models(shop: Path, tmp_path: Path) -> None:
    assert python(STOCK, tmp_path).strip().endswith("done")
    assert list((tmp_path / "saved").glob("DIMO-*.safetensors"))


def test_our_run_leaves_numpy_and_recbole_as_they_were(shop: Path, tmp_path: Path) -> None:
    code = """
        import numpy as np
        from recbole_tpad.bridge.shims import _NUMPY_NAMES
        before = set(vars(np)) & set(_NUMPY_NAMES)
        from recbole_tpad import run_recbole
        run_recbole("Popularity", "shop", None, {"data_path": "dataset"}, saved=False)
        assert set(vars(np)) & set(_NUMPY_NAMES) == before
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
        for keys in ({"cold_items": "exclude"}, {"embedding_kernel": True}):
            try:
                Config("DIMO", "shop", config_dict=keys)
            except InputError as error:
                assert "would ignore cold_items and embedding_kernel" in str(error)
            else:
                raise AssertionError(keys)
        print("done")
    """
    assert python(code, tmp_path).strip().endswith("done")
