"""NoteLLM2-NE: sessions encoded per request by the model that made the item embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_catalogue import TINY, write_catalogue

from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.dataset import load_data
from recbole_tpad.bridge.models import build_model
from recbole_tpad.bridge.runner import run
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.evaluation.suite import expand, read_suite
from recbole_tpad.generators.embed import embed
from recbole_tpad.recommenders.notellm2ne import NoteLLM2NE

SETTINGS: dict[str, Any] = {
    "backbone": {"tiny": TINY},
    "compression": {"pairs_per_step": 6, "dimension": 8, "loop": {"steps": 2}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    dataset = write_catalogue(tmp_path_factory.mktemp("data"), n_items=14)
    path = dataset.path.parent
    embed(path, "shop", "notellm2-tiny", name="note", overrides=SETTINGS)
    embed(path, "shop", "tfidf", overrides={"dimension": 4})
    return dataset


@pytest.fixture
def keys(folder: DatasetFolder) -> dict[str, Any]:
    return {
        "dataset": "shop",
        "data_path": str(folder.path.parent),
        "model": "NoteLLM2NE",
        "item_embeddings": "note",
        "encoder_settings": SETTINGS,
    }


def built(keys: dict[str, Any]) -> tuple[NoteLLM2NE, Any]:
    with numpy_names():
        config = SessionConfig(None, None, None, keys)
        loaders = load_data(config)
    model = build_model(config, loaders.train._dataset)
    assert isinstance(model, NoteLLM2NE)
    return model, loaders.test


def test_a_session_of_one_item_is_that_item(keys: dict[str, Any]) -> None:
    model, _ = built(keys)
    items = torch.tensor([[3, 0, 0], [7, 0, 0]])
    vectors = model.session_vectors(items, torch.tensor([1, 1]))
    unit = torch.nn.functional.normalize(vectors, dim=1)
    # The store keeps half precision.
    torch.testing.assert_close(unit, model.table[[3, 7]], atol=5e-3, rtol=0)
    scores = model.full_sort_predict(
        {model.ITEM_SEQ: items, model.ITEM_SEQ_LEN: torch.tensor([1, 1])}
    )
    assert scores[:, 1:].argmax(1).tolist() == [2, 6]
    assert torch.isinf(scores[:, 0]).all()


def test_only_the_last_items_count_and_their_order_does(keys: dict[str, Any]) -> None:
    model, _ = built({**keys, "session_items": 2})
    full = torch.tensor([[5, 3, 7], [9, 3, 7], [5, 7, 3]])
    a, b, c = model.session_vectors(full, torch.tensor([3, 3, 3]))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert (a - c).abs().max() > 1e-3
    # Encoded one at a time, as requests come, it is the same.
    alone = model.session_vectors(full[:1], torch.tensor([3]))
    torch.testing.assert_close(alone[0], a, atol=1e-4, rtol=1e-4)


def test_a_run_gives_a_row_with_its_latency(keys: dict[str, Any]) -> None:
    result = run({**keys, "latency_sessions": 3})
    assert (result.loss, result.epochs, result.parameters) == ("none", 0, 0)
    assert result.latency_ms is not None
    assert len(np.unique(result.ranks)) > 1
    assert result.metrics == run(keys).metrics


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_embeddings": None}, "needs item_embeddings made by the generator notellm2"),
        ({"item_embeddings": "tfidf", "encoder_settings": None}, "by 'tfidf', which is not"),
        ({"encoder_settings": {}}, r"other settings than 'notellm2-tiny' has now \(backbone, note"),
        ({"session_items": 0}, "session_items=0 must be at least 1"),
    ],
)
def test_what_is_refused(keys: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        built({**keys, **changes})


def test_an_encoder_that_is_gone(keys: dict[str, Any], tmp_path: Path) -> None:
    other = write_catalogue(tmp_path, n_items=14)
    source = Path(keys["data_path"]) / "shop" / "embeddings" / "note"
    target = other.path / "embeddings" / "note"
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="There is no trained NoteLLM-2 for data set 'shop'"):
        built({**keys, "data_path": str(tmp_path)})


def test_suites_pair_it_with_its_stores_only() -> None:
    suite = read_suite(
        {
            "models": ["NoteLLM2NE", "BiPNet", "DIMO"],
            "item_embeddings": ["none", "tfidf", "note"],
            "generators": {"note": {"generator": "notellm2-tiny"}},
            "seeds": 1,
        }
    )
    assert all("rerank" not in spec.config for spec in expand(suite))
    pairs = [(spec.model, spec.item_embeddings) for spec in expand(suite)]
    assert [p for p in pairs if p[0] != "DIMO"] == [("NoteLLM2NE", "note"), ("BiPNet", None)]
