"""Frozen item features for a recommender: aligned rows of an item-embedding store, an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.recommenders.sessions import training_fingerprint, training_item_counts
from recbole_tpad.store import ItemEmbeddings, open_store

MIN_SCALE = 1e-3  # fp16 columns that hardly vary would otherwise be blown up


@dataclass(frozen=True, slots=True)
class ItemFeatures:
    """Features in RecBole's item order.

    Attributes:
        name: the store as the user named it.
        sha256: hash of the store's manifest.
        rows: shape (n_items, F); row 0 (padding) is zero.
        trained: which items occur in a training session, shape (n_items,), bool.
    """

    name: str
    sha256: str
    rows: npt.NDArray[np.float32]
    trained: npt.NDArray[np.bool_]


def load_item_features(config: Any, dataset: Any) -> ItemFeatures | None:
    """Read the store of key ``item_embeddings``, aligned by RecBole's item tokens.

    Args:
        config: RecBole's configuration with ``item_embeddings`` (null, the name of a store in
            ``<data set folder>/embeddings``, or a path) and ``item_embeddings_modalities``.
        dataset: RecBole's built training data set.

    Returns:
        The features, or None where ``item_embeddings`` is null.

    Raises:
        InputError: no such store; role T; a generator that saw another training part; items
            without a vector; rows that are not finite.
    """
    name = config["item_embeddings"]
    if name is None:
        return None
    store = open_store(_store_path(str(name), Path(config["data_path"])))
    _check_origin(store, str(name), dataset)
    tokens = [str(t) for t in dataset.field2id_token[dataset.iid_field][1:]]
    missing = store.missing(tokens)
    if missing:
        raise InputError(
            f"Item embeddings '{name}' miss {len(missing)} of the data set's {len(tokens)} items, "
            f"first: {', '.join(missing[:5])}. {_embed_again(store)}"
        )
    modalities = config["item_embeddings_modalities"]
    found = store.rows(tokens, None if modalities is None else list(modalities))
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if bad.size:
        raise InputError(
            f"Item embeddings '{name}' have {bad.size} rows with NaN or infinite values, first: "
            f"{', '.join(tokens[i] for i in bad[:5])}. {_embed_again(store)}"
        )
    rows = np.concatenate([np.zeros((1, found.shape[1]), dtype=np.float32), found])
    trained = training_item_counts(dataset) > 0
    return ItemFeatures(str(name), store.sha256, rows, trained)


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
    if manifest.split_fingerprint is None:
        return
    expected = training_fingerprint(dataset)
    if manifest.split_fingerprint != expected:
        raise InputError(
            f"Item embeddings '{name}' were made from another training part (its fingerprint is "
            f"{manifest.split_fingerprint[:12]}…, this run trains on {expected[:12]}…), so they "
            f"may have seen test sessions. {_embed_again(store)}"
        )


class FeatureAdapter(nn.Module):
    """Frozen features → d: standardise, LayerNorm, Linear, GELU, Linear.

    The trainable part is the adapter TPAD puts into the recommender. Standardising each column
    with mean and deviation over the items that occur in training is an assumption: language-model
    states have a few huge columns that would otherwise dominate LayerNorm.
    """

    features: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, features: ItemFeatures, hidden_size: int, output_size: int) -> None:
        super().__init__()
        seen = features.rows[features.trained] if features.trained.any() else features.rows[1:]
        scale = np.maximum(seen.std(axis=0, dtype=np.float64), MIN_SCALE)
        # Not persistent: the store is the one place of these numbers, its hash names them.
        for name, array in (
            ("features", features.rows),
            ("mean", seen.mean(axis=0, dtype=np.float64).astype(np.float32)),
            ("scale", scale.astype(np.float32)),
        ):
            self.register_buffer(name, torch.from_numpy(array.copy()), persistent=False)
        width = features.rows.shape[1]
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, hidden_size)
        self.activation = nn.GELU()
        self.output = nn.Linear(hidden_size, output_size)
        self.store = features.name
        self.store_sha256 = features.sha256

    def forward(self) -> Tensor:
        """Return every item's vector, shape (n_items, d); the padding row is zero."""
        rows = self.norm((self.features - self.mean) / self.scale)
        table = self.output(self.activation(self.hidden(rows)))
        return without_padding(table)


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
