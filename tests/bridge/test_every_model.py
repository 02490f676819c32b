"""The table in docs/models.md says what every sequential model does here."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from every_model import committed, models, row, write_shop

from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.models import builtin_models, recbole_folder
from recbole_tpad.errors import InputError

REPRESENTATIVE = ["BERT4Rec", "DIN", "SASRecF"]


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dataset")
    write_shop(path)
    return path


def test_the_table_has_every_model() -> None:
    modules = {p.stem for p in (recbole_folder() / "model" / "sequential_recommender").glob("*.py")}
    listed = [name for name in committed() if name not in ("Model", "---")]
    assert listed == models()
    assert {name.lower() for name in listed} >= modules - {"__init__"}


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(name, marks=[] if name in REPRESENTATIVE else [pytest.mark.slow])
        for name in models()
    ],
)
def test_a_line_of_the_table(model: str, data_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert row(model, data_path) == committed()[model]


def test_what_recbole_cannot_run_is_refused(shop: Path) -> None:
    with pytest.raises(InputError, match=r"does not run in RecBole 1\.2\.1 either"):
        SessionConfig("KSR", "shop", None, {"data_path": str(shop)})


def test_feature_models_read_the_item_file(shop: Path) -> None:
    where = {"data_path": str(shop)}
    config = SessionConfig("SASRecF", "shop", None, {**where, "selected_features": ["brand"]})
    assert config["load_col"]["item"] == ["item_id", "brand"]
    with pytest.raises(InputError, match=r"no column 'brnd'\. Did you mean 'brand'"):
        SessionConfig("SASRecF", "shop", None, {**where, "selected_features": ["brnd"]})
    (shop / "shop" / "shop.item").unlink()
    with pytest.raises(InputError, match="needs item features"):
        SessionConfig("GRU4RecF", "shop", None, where)
    assert "GRU4RecF" in builtin_models()
