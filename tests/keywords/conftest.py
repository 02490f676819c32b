"""The endpoint and the shop of most tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import KEY
from chat_server import ChatServer, chatting, write_shop

from recbole_tpad.data import DatasetFolder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with chatting() as running:
        yield running


@pytest.fixture
def shop(tmp_path: Path) -> DatasetFolder:
    return write_shop(tmp_path)
