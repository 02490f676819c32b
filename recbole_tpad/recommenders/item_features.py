"""Frozen item features for a recommender: aligned rows of an item-embedding store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.files import sha256_json
from recbole_tpad.presets import properties_dir, read_yaml
from recbole_tpad.recommenders.sessions import training_fingerprint, training_item_counts
from recbole_tpad.store import ItemEmbeddings, open_store
from recbole_tpad.store.shards import ShardedRows

Float32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_BLOCK = 4096
_WHOLE = 1 << 28  # numbers up to which all rows are held in float32 (1 GiB)
_PART = 1 << 26  # numbers of a block where they are not
_SAMPLE = 1 << 27  # numbers that a fit reads where they are not
MIN_SCALE = 1e-3  # fp16 columns that hardly vary would otherwise be blown up


class Settings:
    """A configuration with this package's defaults for keys it lacks.

    RecBole's own configuration answers None for them; ours has them anyway.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._defaults = read_yaml(properties_dir() / "overall.yaml")

    def __getitem__(self, key: str) -> Any:
        return self._config[key] if key in self._config else self._defaults.get(key)


@dataclass(frozen=True)
class ItemFeatures:
    """Features in RecBole's item order; read from disk when they are first used.

    Up to 2²⁸ numbers are held in memory as a whole. More stay in the store, where `take` gives
    some rows: what is made of them goes through blocks, what is fitted on them takes a sample.

    Attributes:
        name: the store as the user named it.
        sha256: hash of the store's manifest.
        read: gives `rows`.
        trained: which items occur in a training session, shape (n_items,), bool.
        widths: columns of each modality, in order.
        take: gives some rows, (n,) item ids → (n, F); None: only `read` is there.
    """

    name: str
    sha256: str
    read: Callable[[], Float32]
    trained: npt.NDArray[np.bool_]
    widths: tuple[int, ...] = ()
    take: Callable[[Ids], Float32] | None = field(default=None, repr=False)

    @cached_property
    def rows(self) -> Float32:
        """Shape (n_items, F); row 0 (padding) is zero.

        Raises:
            InputError: damaged files, or rows that are not finite.
        """
        return self.read()

    @property
    def width(self) -> int:
        """F; known without reading where `widths` are."""
        return sum(self.widths) if self.widths else int(self.rows.shape[1])

    @property
    def whole(self) -> bool:
        """Whether all rows are to be held at once."""
        return self.take is None or len(self.trained) * self.width <= _WHOLE

    def places(self) -> list[slice]:
        """Rows of each block that fits into memory: a single one where `whole`."""
        n = len(self.trained)
        size = n if self.whole else max(1, _PART // self.width)
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]

    def block(self, place: slice) -> Float32:
        """The rows of one of `places`, (n, F)."""
        if self.take is None or self.whole:
            return self.rows[place]
        return self.take(np.arange(place.start, place.stop))

    def parts(self) -> list[ItemFeatures]:
        """Return the features of each modality by itself."""
        found, start = [], 0
        for width in self.widths or (self.width,):
            columns = slice(start, start + width)
            found.append(
                replace(
                    self,
                    read=partial(_columns_of, self, columns),
                    take=None if self.take is None else partial(_taken, self.take, columns),
                    widths=(width,),
                )
            )
            start += width
        return found

    def seen_rows(self) -> Float32:
        """Return the rows of items that occur in training: what every fit may use.

        Of features that are not `whole`, evenly spaced ones, 2²⁷ numbers in all.
        """
        if self.take is None or self.whole:
            return self.rows[self.trained] if self.trained.any() else self.rows[1:]
        ids = np.flatnonzero(self.trained)
        ids = ids if len(ids) else np.arange(1, len(self.trained))
        count = min(len(ids), max(1, _SAMPLE // self.width))
        return self.take(ids[np.arange(count) * len(ids) // count])


def _columns_of(features: ItemFeatures, columns: slice) -> Float32:
    return features.rows[:, columns]


def _taken(take: Callable[[Ids], Float32], columns: slice, ids: Ids) -> Float32:
    return take(ids)[:, columns]


def load_item_features(config: Any, dataset: Any) -> ItemFeatures | None:
    """Read the store or stores of key ``item_embeddings``, aligned by RecBole's item tokens.

    Args:
        config: RecBole's configuration with ``item_embeddings`` (null, the name of a store in
            ``<data set folder>/embeddings``, a path, or several of these joined by ``+``, side by
            side) and ``item_embeddings_modalities``.
        dataset: RecBole's built training data set.

    Returns:
        The features, or None where ``item_embeddings`` is null. Of the stores everything but the
        vectors has been read and checked.

    Raises:
        InputError: no such store; role T; a generator that saw another training part or another
            data set; items without a vector.
    """
    name = config["item_embeddings"]
    if name is None:
        return None
    folder = Path(config["data_path"])
    names = _names(str(name), folder)
    wanted = config["item_embeddings_modalities"]
    if wanted is not None and len(names) > 1:
        raise InputError(
            f"item_embeddings_modalities goes with one store, not with '{name}'. Leave it out."
        )
    stores = [open_store(_store_path(part, folder)) for part in names]
    tokens = np.asarray(dataset.field2id_token[dataset.iid_field][1:]).astype(str)
    parts = []
    for part, store in zip(names, stores, strict=True):
        _check_origin(store, part, dataset)
        modalities = list(store.manifest.modalities) if wanted is None else list(wanted)
        parts.append(_Aligned(store, part, modalities, _positions(store, part, tokens)))
    trained = training_item_counts(dataset) > 0
    hashes = [store.sha256 for store in stores]
    joined = hashes[0] if len(hashes) == 1 else sha256_json(hashes)
    widths = tuple(array.shape[1] for part in parts for array in part.arrays)
    source = _Source(parts)
    return ItemFeatures(str(name), joined, source.all, trained, widths, source.take)


@dataclass(frozen=True, slots=True)
class _Aligned:
    """Modalities of a store, and its row of each of RecBole's items but the padding."""

    store: ItemEmbeddings
    name: str
    modalities: list[str]
    positions: npt.NDArray[np.int64]

    @property
    def arrays(self) -> list[ShardedRows]:
        return [self.store.array(m) for m in self.modalities]


def _positions(
    store: ItemEmbeddings, name: str, tokens: npt.NDArray[np.str_]
) -> npt.NDArray[np.int64]:
    found = store.find(tokens)
    missing = np.flatnonzero(found < 0)
    if missing.size:
        raise InputError(
            f"Item embeddings '{name}' miss {len(missing)} of the data set's {len(tokens)} items, "
            f"first: {', '.join(tokens[k] for k in missing[:5])}. {_embed_again(store)}"
        )
    return found


class _Source:
    """Rows of one or several stores, side by side, after a row of zeros.

    The hashes of all that will be read are checked before the first row is.
    """

    def __init__(self, parts: Sequence[_Aligned]) -> None:
        self._parts = parts
        self._verified = False

    def all(self) -> Float32:
        """Every row."""
        return self.take(np.arange(len(self._parts[0].positions) + 1))

    def take(self, ids: Ids) -> Float32:
        """Rows of some items, (n, F); zero for id 0.

        Raises:
            InputError: damaged files, or rows that are not finite.
        """
        if not self._verified:
            for part in self._parts:
                part.store.verify(part.modalities)
            self._verified = True
        width = sum(array.shape[1] for part in self._parts for array in part.arrays)
        rows = np.zeros((len(ids), width), dtype=np.float32)
        column = 0
        for part in self._parts:
            for array in part.arrays:
                columns = slice(column, column + array.shape[1])
                for start in range(0, len(ids), _BLOCK):
                    own = ids[start : start + _BLOCK]
                    real = np.flatnonzero(own)
                    taken = array.take(part.positions[own[real] - 1])
                    rows[start + real, columns] = taken
                column = columns.stop
                bad = ids[~np.isfinite(rows[:, columns]).all(axis=1)]
                if bad.size:
                    named = ", ".join(part.store.item_ids[part.positions[k - 1]] for k in bad[:5])
                    raise InputError(
                        f"Item embeddings '{part.name}' have {bad.size} rows with NaN or infinite "
                        f"values, first: {named}. {_embed_again(part.store)}"
                    )
        return rows


def _names(name: str, folder: Path) -> list[str]:
    """Split joined names; a store whose own name holds a + is one store."""
    whole = (folder / "embeddings" / name).is_dir() or Path(name).is_dir()
    return [name] if whole else name.split("+")


def _store_path(name: str, folder: Path) -> Path:
    stores = folder / "embeddings"
    if (stores / name).is_dir():
        return stores / name
    if Path(name).is_dir():
        return Path(name)
    known = sorted(p.parent.name for p in stores.glob("*/manifest.json"))
    listed = f" Stores there: {', '.join(known)}." if known else " There are none yet."
    raise InputError(
        f"item_embeddings: '{name}' is neither a store in {stores} nor a folder."
        f"{nearest(name, known)}{listed} Make one with 'recbole-tpad embed --dataset "
        f"{folder.name} --generator …'."
    )


def _embed_again(store: ItemEmbeddings) -> str:
    return (
        f"Run 'recbole-tpad embed --generator {store.manifest.generator}' for this data set and "
        "split again."
    )


def _check_origin(store: ItemEmbeddings, name: str, dataset: Any) -> None:
    manifest = store.manifest
    if manifest.role == "T":
        raise InputError(
            f"Item embeddings '{name}' have role T (transition tower): it is the teacher and is "
            "never an item embedding. Use the store of role K1 that the same generator exports."
        )
    if manifest.dataset != dataset.dataset_name:
        raise InputError(
            f"Item embeddings '{name}' were made for data set '{manifest.dataset}', this run is on "
            f"'{dataset.dataset_name}': equal ids may name other items. {_embed_again(store)} "
            "If the items are the same, 'embeddings export' and 'embeddings import' move it over."
        )
    if manifest.split_fingerprint is None:
        return
    expected = training_fingerprint(dataset)
    if manifest.split_fingerprint != expected:
        raise InputError(
            f"Item embeddings '{name}' were made from another training part (its fingerprint is "
            f"{manifest.split_fingerprint[:12]}…, this run trains on {expected[:12]}…), so they "
            f"may have seen test sessions. {_embed_again(store)}"
        )


def without_padding(table: Tensor) -> Tensor:
    """Return the table with row 0 zero, and no gradient into that row."""
    keep = torch.ones(table.shape[0], 1, dtype=table.dtype, device=table.device)
    keep[0] = 0
    return table * keep


class EvaluationCache:
    """Keeps a computed table across evaluation batches until a parameter changes.

    A change is noticed by the parameters' version counters and storage, which optimisers,
    ``load_state_dict`` and ``.to()`` all move.
    """

    def __init__(self) -> None:
        self._key: tuple[tuple[int, int], ...] | None = None
        self._value: Any = None

    def get(self, parameters: Sequence[Tensor]) -> Any:
        """Return the kept value, or None where there is none for these parameters."""
        return self._value if self._key == self._state(parameters) else None

    def put(self, parameters: Sequence[Tensor], value: Any) -> None:
        """Keep `value` for the present state of `parameters`."""
        self._key, self._value = self._state(parameters), value

    def clear(self) -> None:
        """Forget the kept value."""
        self._key, self._value = None, None

    @staticmethod
    def _state(parameters: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
        return tuple((p.data_ptr(), p._version) for p in parameters)
