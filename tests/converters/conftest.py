"""Fixtures of the converters' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from picture_server import PictureServer, serving


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with serving() as made:
        yield made
