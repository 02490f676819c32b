"""ID vectors beside content vectors: the numbers against cases with a known answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recbole_tpad.bridge.item_spaces import item_spaces


class Model(nn.Module):
    """Two given tables."""

    def __init__(self, ids: Tensor, content: Tensor) -> None:
        super().__init__()
        self.views = ids, content

    def item_views(self) -> tuple[Tensor, Tensor]:
        return self.views


def spaces(ids: Tensor, content: Tensor, count: int = 100) -> dict[str, Any]:
    trained = torch.ones(len(ids), dtype=torch.bool)
    found = item_spaces(Model(ids, content), trained, count)
    assert found is not None
    return found


@pytest.fixture
def table() -> Tensor:
    return torch.randn(150, 16, generator=torch.Generator().manual_seed(1))


def test_equal_spaces(table: Tensor) -> None:
    found = spaces(table, 3 * table)  # lengths do not count
    assert found["items"] == 100
    assert found["gap"] == pytest.approx(0, abs=1e-6)
    assert found["overlap"] == 1
    assert found["separability"] == pytest.approx(0.5)
    assert found["chance"] == pytest.approx(10 / 99)
    assert len(found["points"]) == 200
    assert found == spaces(table, 3 * table)


def test_opposite_spaces(table: Tensor) -> None:
    side = torch.zeros(16)
    side[0] = 1000.0
    found = spaces(table + side, table - side)
    assert found["gap"] == pytest.approx(2, rel=1e-2)
    assert found["separability"] == 1
    # All neighbours of a far cloud are those of its 15 other dimensions, the same on both sides.
    assert found["overlap"] > 0.9


def test_unrelated_spaces_of_one_distribution(table: Tensor) -> None:
    other = torch.randn(150, 16, generator=torch.Generator().manual_seed(2))
    found = spaces(table, other)
    assert found["gap"] < 0.4
    assert 0.35 < found["separability"] < 0.65
    assert found["overlap"] == pytest.approx(found["chance"], abs=0.05)


def test_items_without_both_vectors_are_left_out(table: Tensor) -> None:
    ids = table.clone()
    ids[:30] = 0
    trained = torch.arange(150) >= 60
    found = item_spaces(Model(ids, table), trained, 1000)
    assert found is not None
    assert found["items"] == 90
    assert item_spaces(Model(ids, table), trained, 0) is None
    assert item_spaces(Model(ids, table), torch.arange(150) >= 140, 1000) is None
    assert item_spaces(nn.Linear(2, 2), trained, 1000) is None


def test_points_follow_the_vectors(table: Tensor) -> None:
    side = torch.zeros(16)
    side[0] = 30.0
    points = np.array(spaces(table + side, table - side)["points"])
    ids, content = points[:100], points[100:]
    within = np.linalg.norm(ids - ids.mean(0), axis=1).mean()
    assert np.linalg.norm(ids.mean(0) - content.mean(0)) > 2 * within * 0.5
