"""The map of a store's items."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_tpad.evaluation.projection import item_map
from recbole_tpad.store import ItemEmbeddings, write_store


@dataclass(frozen=True)
class Thing:
    item_id: str
    title: str
    category: str


def make(path: Path, vectors: np.ndarray) -> tuple[ItemEmbeddings, list[Thing]]:
    things = [Thing(f"i{k}", f"title {k}", "ab"[k % 2]) for k in range(len(vectors))]
    store = write_store(
        path / "s",
        [thing.item_id for thing in things],
        {"text": vectors},
        role="other",
        generator="random",
        dataset="d",
        split_fingerprint=None,
        inputs={"a": "b"},
    )
    return store, things


def test_clusters_stay_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(2, 60)[np.arange(80) % 2] * 10
    store, things = make(tmp_path, centres + rng.normal(size=(80, 60)))
    shown = item_map(store, things)
    assert shown is not None
    assert shown == item_map(store, things)
    places = np.array([[p["x"], p["y"]] for p in shown["points"]])
    assert places.min() == 0
    assert places.max() == 1
    labels = np.array([p["label"] == "a" for p in shown["points"]])
    middle = [places[labels].mean(axis=0), places[~labels].mean(axis=0)]
    nearer = [np.argmin([np.linalg.norm(place - m) for m in middle]) for place in places]
    assert np.mean((np.array(nearer) == 0) == labels) > 0.95


def test_limit_missing_items_and_degenerate_stores(tmp_path: Path) -> None:
    store, things = make(tmp_path, np.random.default_rng(1).normal(size=(30, 5)))
    shown = item_map(store, [*things, Thing("new", "n", "c")], limit=12)
    assert shown is not None
    assert len(shown["points"]) == 12
    assert item_map(store, things[:3]) is None
    flat, things = make(tmp_path, np.ones((6, 4)))
    shown = item_map(flat, things)
    assert shown is not None
    assert {p["x"] for p in shown["points"]} == {0.5}
