"""Adapters read no vector before their first use, and features too large to hold by blocks."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from recbole_tpad.errors import InputError
from recbole_tpad.recommenders import item_features
from recbole_tpad.recommenders.adapters import FeatureAdapter, make_adapter
from recbole_tpad.recommenders.fused_tables import FUSIONS, make_fused_table
from recbole_tpad.recommenders.item_features import ItemFeatures

Array = np.ndarray[Any, Any]
ITEMS, WIDTHS, SIZE = 90, (7, 5), 8
LAZY = ("mlp", "linear", "moe")
ADAPTERS = (*LAZY, "pca")


class Reads:
    """Features that count what is read of them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.rows = rng.normal(1, 3, (ITEMS, sum(WIDTHS))).astype(np.float32)
        self.rows[0] = 0
        self.trained = np.arange(ITEMS) % 7 != 0
        self.most = 0

    def all(self) -> Array:
        return self.take(np.arange(ITEMS))

    def take(self, ids: Array) -> Array:
        self.most = max(self.most, len(ids))
        return self.rows[ids]

    def features(self) -> ItemFeatures:
        return ItemFeatures("x", "0", self.all, self.trained, WIDTHS, self.take)


def config(**keys: Any) -> dict[str, Any]:
    default = {
        "adapter": None,
        "adapter_hidden_size": 6,
        "adapter_experts": 3,
        "item_embeddings_fusion": "add",
        "item_embeddings_scale": None,
        "id_dropout": 0.0,
    }
    return default | keys


def adapter(kind: str, features: ItemFeatures) -> FeatureAdapter:
    torch.manual_seed(1)
    made = make_adapter(config(adapter=kind), features, SIZE)
    made.rescale(0.05)
    return made


def rms(rows: torch.Tensor) -> float:
    return float(rows.detach().pow(2).mean().sqrt())


@pytest.mark.parametrize("kind", LAZY)
def test_nothing_is_read_before_the_first_use(kind: str) -> None:
    reads = Reads()
    made = adapter(kind, reads.features())
    twin = copy.deepcopy(made)
    assert reads.most == 0
    trained = torch.from_numpy(reads.trained)
    made.eval()
    assert rms(made()[trained]) == pytest.approx(0.05, rel=1e-5)
    assert reads.most == ITEMS
    torch.testing.assert_close(twin.eval()(), made(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", LAZY)
def test_a_late_first_use_gives_what_an_early_one_gives(kind: str) -> None:
    """The scale belongs to the random start, whatever happened to the weights since."""
    early, late = (adapter(kind, Reads().features()) for _ in range(2))
    early.eval()()
    for made in (early, late):
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    torch.testing.assert_close(late.eval()(), early(), rtol=0, atol=0)


def test_saved_before_the_first_use_it_has_its_scale() -> None:
    made = adapter("mlp", Reads().features())
    other = adapter("mlp", Reads().features())
    other.output_scale.fill_(3.0)
    saved = copy.deepcopy(made.state_dict())
    assert saved["output_scale"] != 1
    other.load_state_dict(saved)
    torch.testing.assert_close(other.eval()(), made.eval()(), rtol=0, atol=0)
    assert other.output_scale == saved["output_scale"]  # not fitted to the loaded weights


@pytest.mark.parametrize("kind", LAZY)
def test_blocks_give_the_table_and_the_gradients_of_the_whole(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = adapter(kind, Reads().features()).eval()
    target = torch.randn(ITEMS, SIZE, generator=torch.Generator().manual_seed(3))
    expected = whole()
    (expected * target).sum().backward()  # type: ignore[no-untyped-call]
    monkeypatch.setattr(item_features, "_WHOLE", ITEMS)
    monkeypatch.setattr(item_features, "_PART", 11 * sum(WIDTHS))
    reads = Reads()
    blocked = adapter(kind, reads.features()).eval()
    monkeypatch.setattr(item_features, "_SAMPLE", 10**6)  # every trained row
    found = blocked()
    torch.testing.assert_close(found, expected)
    (found * target).sum().backward()  # type: ignore[no-untyped-call]
    for one, other in zip(blocked.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(blocked(), expected.detach())
    with pytest.raises(InputError, match="90 x 12 numbers, which are not held"):
        _ = blocked.features


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("kind", ADAPTERS)
def test_large_features_are_never_read_as_a_whole(
    kind: str, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_features, "_WHOLE", ITEMS)
    monkeypatch.setattr(item_features, "_PART", 11 * sum(WIDTHS))
    monkeypatch.setattr(item_features, "_SAMPLE", 40 * sum(WIDTHS))
    reads = Reads()
    keys = config(adapter=None if fusion == "init" else kind, item_embeddings_fusion=fusion)
    made = make_fused_table(keys, reads.features(), SIZE, 0.02, torch.zeros(0, SIZE))
    with made.step():
        made(torch.arange(ITEMS)).sum().backward()
    made.eval()
    with torch.no_grad():
        table = made.weight
    assert table.isfinite().all()
    assert not table[0].any()
    wanted = SIZE**-0.5 if fusion == "init" else 0.02
    assert rms(table[torch.from_numpy(reads.trained)]) == pytest.approx(wanted, rel=0.3)
    assert 0 < reads.most <= 40


def test_parts_are_columns_and_read_what_they_are_asked_for() -> None:
    reads = Reads()
    parts = reads.features().parts()
    assert [part.width for part in parts] == list(WIDTHS)
    assert reads.most == 0
    start = 0
    for part in parts:
        columns = slice(start, start + part.width)
        assert part.take is not None
        np.testing.assert_array_equal(part.take(np.array([3, 1])), reads.rows[[3, 1], columns])
        np.testing.assert_array_equal(part.rows, reads.rows[:, columns])
        start += part.width


def test_a_fit_on_large_features_takes_evenly_spaced_trained_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(item_features, "_WHOLE", ITEMS)
    monkeypatch.setattr(item_features, "_SAMPLE", 10 * sum(WIDTHS))
    reads = Reads()
    sample = reads.features().seen_rows()
    seen = np.flatnonzero(reads.trained)
    np.testing.assert_array_equal(sample, reads.rows[seen[np.arange(10) * len(seen) // 10]])
