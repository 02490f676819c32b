"""A catalogue and a very small backbone on disk, shared by this folder's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_catalogue import write_backbone, write_catalogue

from recbole_tpad.data import Item


@pytest.fixture(scope="session")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return write_catalogue(tmp_path_factory.mktemp("data"), n_items=14).items


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, items: list[Item]) -> Path:
    return write_backbone(tmp_path_factory.mktemp("backbone") / "tiny", items)
