"""A catalogue and a very small backbone on disk, shared by this folder's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_catalogue import write_backbone, write_catalogue

from recbole_tpad.data import DatasetFolder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    return write_catalogue(tmp_path_factory.mktemp("data"), n_items=14)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder) -> Path:
    return write_backbone(tmp_path_factory.mktemp("backbone") / "tiny", dataset.items)
