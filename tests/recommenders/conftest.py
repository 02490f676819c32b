"""Models on a small planted data set, built the way the runner builds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recbole.utils import init_seed
from tiny_data import planted_sessions, write_data_set

from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.dataset import load_data
from recbole_tpad.bridge.runner import build_model
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.store import write_store

Build = Callable[..., tuple[SessionConfig, Any, Any]]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A data path with the data set ``shop`` and its stores ``content`` and ``shuffled``."""
    train, valid, test = planted_sessions()
    test = [*test, ("cold", ["i01", "new"])]
    folder = write_data_set(tmp_path, "shop", train, valid, test)
    ids = [f"i{k:02d}" for k in range(30)] + ["new"]
    rows = np.random.default_rng(5).normal(size=(len(ids), 12)).astype(np.float32)
    for name, order in (("content", np.arange(len(ids))), ("shuffled", np.arange(len(ids))[::-1])):
        write_store(
            folder / "embeddings" / name,
            ids,
            {"visual": rows[order][:, :5], "text": rows[order][:, 5:]},
            role="K1",
            generator="random",
            dataset="shop",
            split_fingerprint=None,
            inputs={},
        )
    return tmp_path


@pytest.fixture
def build(shop: Path) -> Build:
    def make(model: str, **keys: Any) -> tuple[SessionConfig, Any, Any]:
        with numpy_names():
            # Models by themselves: where cold items belong, a run settles after training.
            given = {"data_path": str(shop), "cold_items": "score", **keys}
            config = SessionConfig(model, "shop", None, given)
            init_seed(7, True)
            loaders = load_data(config)
            return config, build_model(config, loaders.train._dataset), loaders

    return make
