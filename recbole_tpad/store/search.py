"""Nearest items in a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.store.item_embeddings import Float32, ItemEmbeddings
from recbole_tpad.store.shards import shard_slices

_BLOCK = 4096
_LEAST_SCALE = 1e-3  # fp16 columns that hardly vary would otherwise be blown up


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An item near another one, and the cosine of both."""

    item_id: str
    cosine: float


def nearest_items(
    store: ItemEmbeddings,
    item_ids: Sequence[str],
    count: int,
    modalities: Sequence[str] | None = None,
) -> dict[str, list[Neighbour]]:
    """Find the items nearest to some items.

    Nearness is the cosine of the modalities side by side, each column less its mean and over its
    standard deviation in the store: what a recommender's adapter sees. Plain cosines of
    language-model states are all near 1, since a few columns outweigh the others.

    Args:
        store: read twice, a block at a time.
        item_ids: (Q) of the store.
        count: neighbours of each; the item itself is not among them.
        modalities: which; None: all.

    Returns:
        Item id → neighbours, the nearest first; equally near ones in the store's order.

    Raises:
        InputError: unknown items (the nearest known id is suggested) or modalities.
    """
    unknown = store.missing(item_ids)
    if unknown:
        raise InputError(
            f"{store.path} has no item '{unknown[0]}'.{nearest(unknown[0], store.item_ids)}"
        )
    names = list(store.manifest.modalities) if modalities is None else list(modalities)
    for name in names:
        store.array(name)  # an unknown one is an error before anything is read
    blocks = shard_slices(len(store.item_ids), _BLOCK)
    places = [np.arange(block.start, block.stop) for block in blocks]
    width = sum(store.manifest.modalities[name] for name in names)
    total, squares = np.zeros(width), np.zeros(width)
    for place in places:
        rows = store.rows_at(place, names).astype(np.float64)
        total += rows.sum(axis=0)
        squares += (rows**2).sum(axis=0)
    mean = total / len(store.item_ids)
    scale = np.sqrt(np.maximum(squares / len(store.item_ids) - mean**2, 0)).clip(min=_LEAST_SCALE)

    def seen(rows: Float32) -> Float32:
        standard = (rows - mean) / scale
        norms = np.linalg.norm(standard, axis=1, keepdims=True).clip(min=1e-12)
        found: Float32 = (standard / norms).astype(np.float32)
        return found

    own = store.positions(item_ids)
    queries = seen(store.rows_at(own, names))
    best = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in item_ids]
    for place in places:
        cosines = queries @ seen(store.rows_at(place, names)).T
        for number, row in enumerate(own):
            others = place != row
            best[number] = _best(best[number], cosines[number][others], place[others], count)
    return {
        item_id: [
            Neighbour(store.item_ids[place], float(value))
            for value, place in zip(*best[number], strict=True)
        ]
        for number, item_id in enumerate(item_ids)
    }


def _best(
    known: tuple[Float32, npt.NDArray[np.int64]],
    values: Float32,
    places: npt.NDArray[np.int64],
    count: int,
) -> tuple[Float32, npt.NDArray[np.int64]]:
    """The largest values of both, with their places; of equal values the earlier place."""
    values = np.concatenate([known[0], values])
    places = np.concatenate([known[1], places])
    if len(values) > count:
        limit = np.partition(values, len(values) - count)[len(values) - count]
        kept = values >= limit
        values, places = values[kept], places[kept]
    order = np.lexsort((places, -values))[:count]
    return values[order], places[order]
