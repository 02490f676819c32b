"""Item tables that combine trainable ID rows with frozen item features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.recommenders.adapters import FeatureAdapter, make_adapter
from recbole_tpad.recommenders.item_features import EvaluationCache, ItemFeatures, without_padding
from recbole_tpad.recommenders.row_smoothing import RowSmoothing
from recbole_tpad.recommenders.whitening import whitened_rows

_ID_STD = 1e-3


class FusedItemEmbedding(nn.Module, ABC):
    """A drop-in for a model's item table: one row an item, the same for input and scoring.

    Common to all fusions:

    - An item that never occurs in training has no ID row (zero), because a row that no gradient
      reaches would stay at its random start; its row is what the fusion makes of content alone.
    - While training its row is zero: as an eternal negative of a full softmax its content would
      be pushed down although nothing was observed about it (assumption).
    - In evaluation `smoothing`, if there is one, draws rows of rare items towards similar items'.
    - The table is computed once inside a `step`, and once for all batches of an evaluation.

    Args:
        n_items: items including padding id 0, whose row is zero.
        size: d.
        trained: which items occur in training, (n_items,), bool.
        extra_rows: rows after the items' (mask tokens), (E, d): trainable, no content.
        id_dropout: probability of dropping an item's ID row in a training step.
    """

    id_mask: Tensor
    bias: Tensor | None = None  # GRU4RecCPR asks its output table for one

    def __init__(
        self, n_items: int, size: int, trained: Tensor, extra_rows: Tensor, id_dropout: float
    ) -> None:
        super().__init__()
        self.n_items = n_items
        self.num_embeddings, self.embedding_dim = n_items + len(extra_rows), size
        self.padding_idx = 0
        self.id_dropout = id_dropout
        self.extra_rows = nn.Parameter(extra_rows.clone()) if len(extra_rows) else None
        mask = trained.clone().float().unsqueeze(1)
        self.register_buffer("id_mask", mask, persistent=False)
        self._scope_depth = 0
        self._step_table: Tensor | None = None
        self._cache = EvaluationCache()
        self.smoothing: RowSmoothing | None = None

    @abstractmethod
    def _rows(self, kept: Tensor) -> Tensor:
        """Return the fused rows, (n_items, d).

        Args:
            kept: 1 where an item has an ID row in this step, else 0, (n_items, 1).
        """

    @property
    def weight(self) -> Tensor:
        """The table, shape (n_items + extra rows, d); computed once inside a `step`."""
        if self._step_table is not None:
            return self._step_table
        table = self._table()
        if self._scope_depth:
            self._step_table = table
        return table

    def _table(self) -> Tensor:
        frozen = not self.training and not torch.is_grad_enabled()
        state: list[Tensor] = list(self.parameters())
        if self.smoothing is not None:
            state.append(self.smoothing.strength)
        if frozen:
            found = self._cache.get(state)
            if found is not None:
                return found  # type: ignore[no-any-return]
        kept = self.id_mask
        if self.training and self.id_dropout > 0:
            kept = kept * (torch.rand_like(kept) >= self.id_dropout)
        rows = without_padding(self._rows(kept))
        if self.training:
            rows = rows * self.id_mask
        elif self.smoothing is not None:
            rows = self.smoothing(rows)
        table = rows if self.extra_rows is None else torch.cat([rows, self.extra_rows])
        if frozen:
            self._cache.put(state, table)
        return table

    def forward(self, item_ids: Tensor) -> Tensor:
        """Return the rows of `item_ids`, shape (*item_ids.shape, d)."""
        return functional.embedding(item_ids, self.weight)

    def train(self, mode: bool = True) -> FusedItemEmbedding:
        """Switch between training and evaluation; training forgets the kept table."""
        if mode:
            self._cache.clear()
        super().train(mode)
        return self

    def item_views(self) -> tuple[Tensor, Tensor] | None:
        """Return ID rows and content rows, both (n_items, d); None where a fusion has not both."""
        return None

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within this scope every use of the table is the same tensor (one adapter pass)."""
        self._scope_depth += 1
        try:
            yield
        finally:
            self._scope_depth -= 1
            if not self._scope_depth:
                self._step_table = None


class _WithAdapter(FusedItemEmbedding):
    """A fusion of ID rows with an adapter's output.

    ID rows start near zero, so training starts from the content (assumption).
    """

    has_ids = True

    def __init__(self, adapter: FeatureAdapter, size: int, **common: Any) -> None:
        super().__init__(size=size, **common)
        if self.has_ids:
            self.id_embedding = nn.Embedding(self.n_items, size, padding_idx=0)
            nn.init.normal_(self.id_embedding.weight, std=_ID_STD)
        self.adapter = adapter

    @torch.no_grad()
    def match_scale(self, rms: float) -> None:
        """Scale the content so that trained items' rows have this root mean square."""
        self.adapter.rescale(rms)

    def item_views(self) -> tuple[Tensor, Tensor] | None:
        """Return ID rows and the adapter's output, both (n_items, d)."""
        return (self.id_embedding.weight, self.adapter()) if self.has_ids else None


class AddedItemEmbedding(_WithAdapter):
    """``add``: row = ID + adapter(features)."""

    def _rows(self, kept: Tensor) -> Tensor:
        content: Tensor = self.adapter()
        return self.id_embedding.weight * kept + content


class GatedItemEmbedding(_WithAdapter):
    """``gate``: row = g ⊙ ID + (1 − g) ⊙ adapter(features), g = σ(W [ID ‖ adapter(features)]).

    One gate an item and dimension; gates start at one half, so content is doubled to be at the
    wanted scale. Without an ID row the gate is computed from ID = 0, as under ID dropout.
    """

    def __init__(self, adapter: FeatureAdapter, size: int, **common: Any) -> None:
        super().__init__(adapter, size, **common)
        self.gate = nn.Linear(2 * size, size)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def _rows(self, kept: Tensor) -> Tensor:
        ids = self.id_embedding.weight * kept
        content: Tensor = self.adapter()
        gate = torch.sigmoid(self.gate(torch.cat([ids, content], dim=1)))
        return gate * ids + (1 - gate) * content

    def match_scale(self, rms: float) -> None:
        """Scale the content so that trained items' rows have this root mean square."""
        super().match_scale(2 * rms)


class ConcatenatedItemEmbedding(_WithAdapter):
    """``concat``: row = W [ID ‖ adapter(features)] + b.

    W starts as [I ‖ I] (assumption), that is, as ``add``.
    """

    def __init__(self, adapter: FeatureAdapter, size: int, **common: Any) -> None:
        super().__init__(adapter, size, **common)
        self.projection = nn.Linear(2 * size, size)
        with torch.no_grad():
            self.projection.weight.copy_(torch.eye(size).repeat(1, 2))
            self.projection.bias.zero_()

    def _rows(self, kept: Tensor) -> Tensor:
        content: Tensor = self.adapter()
        both = torch.cat([self.id_embedding.weight * kept, content], dim=1)
        found: Tensor = self.projection(both)
        return found


class ReplacedItemEmbedding(_WithAdapter):
    """``replace``: row = adapter(features), no ID rows."""

    has_ids = False

    def _rows(self, kept: Tensor) -> Tensor:
        content: Tensor = self.adapter()
        return content


def initial_rows(features: ItemFeatures, size: int, rms: float) -> Tensor:
    """Return the whitened PCA of the features, cut to `size`, (n_items, size).

    Fitted on the items that occur in training, whose rows have root mean square `rms`. Where the
    features have k < size directions, the other columns are normal noise, zero for items that
    never occur in training. Row 0 is zero.
    """
    known = torch.from_numpy(whitened_rows(features, size))
    trained = torch.from_numpy(features.trained).float().unsqueeze(1)
    noise = torch.randn(len(known), size - known.shape[1]) * trained
    return without_padding(torch.cat([known, noise], dim=1)) * rms


class InitialisedItemEmbedding(FusedItemEmbedding):
    """``init``: a plain trainable table that starts as `initial_rows`.

    An item that never occurs in training keeps its PCA row for good: no gradient and no weight
    decay reaches it. In evaluation `smoothing` puts similar items' rows in its place, which
    training has moved.

    Args:
        features: aligned features.
        rms: root mean square the rows of trained items start with.
    """

    unseen_rows: Tensor

    def __init__(self, features: ItemFeatures, rms: float, size: int, **common: Any) -> None:
        super().__init__(size=size, **common)
        self.id_embedding = nn.Embedding(self.n_items, size, padding_idx=0)
        start = initial_rows(features, size, rms)
        with torch.no_grad():
            self.id_embedding.weight.copy_(start)
        # Not persistent: it follows from the features alone.
        self.register_buffer("unseen_rows", start * (1 - self.id_mask), persistent=False)
        self.store, self.store_sha256 = features.name, features.sha256

    def _rows(self, kept: Tensor) -> Tensor:
        return self.id_embedding.weight * kept + self.unseen_rows


_ADAPTED: dict[str, type[_WithAdapter]] = {
    "add": AddedItemEmbedding,
    "gate": GatedItemEmbedding,
    "concat": ConcatenatedItemEmbedding,
    "replace": ReplacedItemEmbedding,
}
FUSIONS = ("init", *_ADAPTED)


def make_fused_table(
    config: Any, features: ItemFeatures, size: int, rms: float, extra_rows: Tensor
) -> FusedItemEmbedding:
    """Build the configured fusion.

    Args:
        config: keys ``item_embeddings_fusion``, ``item_embeddings_scale``, ``id_dropout`` and the
            adapter's (see `make_adapter`).
        features: aligned features, (n_items, F).
        size: d.
        rms: root mean square of the table that is replaced; trained items' rows start with it
            unless ``item_embeddings_scale`` gives another. Those of ``init`` start with d^-½
            where that is more: Adam moves every entry by about the learning rate a step, so at
            the .02 of RecBole's models the PCA would be gone within an epoch (assumption).
        extra_rows: see `FusedItemEmbedding`.

    Raises:
        InputError: bad values, or keys that this fusion would ignore.
    """
    fusion, dropout = str(config["item_embeddings_fusion"]), float(config["id_dropout"])
    if fusion not in FUSIONS:
        raise InputError(
            f"item_embeddings_fusion='{fusion}' is unknown.{nearest(fusion, FUSIONS)} "
            f"Known: {', '.join(FUSIONS)}."
        )
    if not 0 <= dropout < 1:
        raise InputError(f"id_dropout={dropout} must be in [0, 1).")
    if dropout and fusion in ("init", "replace"):
        raise InputError(f"id_dropout has no meaning for item_embeddings_fusion '{fusion}'.")
    if fusion == "init":
        rms = max(rms, size**-0.5)
    if config["item_embeddings_scale"] is not None:
        rms = float(config["item_embeddings_scale"])
        if not 0 < rms < float("inf"):
            raise InputError(f"item_embeddings_scale={rms} must be positive.")
    common: dict[str, Any] = {
        "n_items": len(features.trained),
        "trained": torch.from_numpy(features.trained),
        "extra_rows": extra_rows,
        "id_dropout": dropout,
    }
    if fusion == "init":
        if config["adapter"] is not None:
            raise InputError(
                f"item_embeddings_fusion 'init' has no adapter, so adapter='{config['adapter']}' "
                "would be ignored; leave it out."
            )
        return InitialisedItemEmbedding(features, rms, size, **common)
    adapter = make_adapter(config, features, size)
    fused = _ADAPTED[fusion](adapter, size, **common)
    fused.match_scale(rms)
    return fused
