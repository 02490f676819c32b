"""A small planted data set, and keys for quick runs on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_data import planted_sessions, write_data_set


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A data path with the data set ``shop``; one test target never occurs in training."""
    train, valid, test = planted_sessions()
    folder = write_data_set(
        tmp_path / "dataset", "shop", train, valid, [*test, ("cold", ["i01", "new"])]
    )
    items = [*(f"i{k:02d}" for k in range(30)), "new"]
    lines = [f"{item}\tb{k % 3}\tc{k % 4}\t{k}.5" for k, item in enumerate(items)]
    header = "item_id:token\tbrand:token\tcategory:token\tprice:float"
    (folder / "shop.item").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return tmp_path / "dataset"


@pytest.fixture
def quick(shop: Path, tmp_path: Path) -> dict[str, Any]:
    """Configuration keys of a run of about a second."""
    return {
        "dataset": "shop",
        "data_path": str(shop),
        "checkpoint_dir": str(tmp_path / "saved"),
        "epochs": 3,
        "train_batch_size": 64,
        "stopping_step": 5,
    }
