"""A store against a changed catalogue: what stays, what is new, and the rows of both together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_tpad.errors import InputError
from recbole_tpad.store.item_embeddings import Hashes, Int64, ItemEmbeddings
from recbole_tpad.store.shards import ShardedRows


@dataclass(frozen=True, slots=True)
class CatalogueChanges:
    """A catalogue of N items against a store.

    Attributes:
        added, changed: rows of the catalogue that need new vectors.
        removed: ids in the store only.
        kept: rows of the catalogue whose vectors stay.
        source: (N,) the row of the store whose vector stays, -1 for what is added or changed.
    """

    added: Int64
    changed: Int64
    removed: list[str]
    kept: Int64
    source: Int64

    @property
    def to_encode(self) -> Int64:
        """Rows of the catalogue that need new vectors, in its order."""
        return np.flatnonzero(self.source < 0)

    @property
    def nothing(self) -> bool:
        """Whether the store is as the catalogue."""
        return not (len(self.added) or len(self.changed) or self.removed)

    def __str__(self) -> str:
        return (
            f"{len(self.added):,} new, {len(self.changed):,} changed, {len(self.removed):,} "
            f"removed, {len(self.kept):,} kept"
        )


def catalogue_changes(
    store: ItemEmbeddings, item_ids: Sequence[str], content: Hashes
) -> CatalogueChanges:
    """Compare a catalogue with the items a store holds.

    Args:
        store: with content hashes.
        item_ids: the catalogue's, distinct.
        content: (N, 16) hash of what would be read of each.

    Raises:
        InputError: the store does not know what its items were encoded from.
    """
    known = store.content_hashes()
    if known is None:
        raise InputError(
            f"{store.path} does not say what its items were encoded from (it was made by "
            f"'{store.manifest.generator}'), so it cannot be updated; make it again."
        )
    position = {item_id: row for row, item_id in enumerate(store.item_ids)}
    source = np.array([position.get(i, -1) for i in item_ids], dtype=np.int64)
    there = source >= 0
    equal = np.zeros(len(item_ids), dtype=bool)
    equal[there] = (known[source[there]] == content[there]).all(axis=1)
    here = set(item_ids)
    return CatalogueChanges(
        added=np.flatnonzero(~there),
        changed=np.flatnonzero(there & ~equal),
        removed=[i for i in store.item_ids if i not in here],
        kept=np.flatnonzero(equal),
        source=np.where(equal, source, -1),
    )


class MergedRows:
    """Kept rows of a store and new rows, in the catalogue's order; read a slice at a time.

    Args:
        old: the store's rows of a modality.
        new: (n, dim) rows of `CatalogueChanges.to_encode`, or None where nothing is new.
        source: of the changes.
    """

    def __init__(self, old: ShardedRows, new: ShardedRows | None, source: Int64) -> None:
        self._old, self._new, self._source = old, new, source
        self.shape = (len(source), old.shape[1])
        self._number = np.cumsum(source < 0) - 1

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        source = self._source[rows]
        found = np.empty((len(source), self.shape[1]), dtype=np.float16)
        kept = source >= 0
        found[kept] = self._old.take(source[kept])
        if self._new is not None:
            found[~kept] = self._new.take(self._number[rows][~kept])
        return found
