"""Gives a built-in RecBole model frozen item embeddings, by replacing its item table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.recommenders.item_features import (
    EvaluationCache,
    FeatureAdapter,
    ItemFeatures,
    load_item_features,
    without_padding,
)

FUSIONS = ("add",)
_ID_STD = 1e-3


class FusedItemEmbedding(nn.Module):
    """A drop-in for a model's item table: trainable ID rows plus adapted frozen features.

    Row i is ``id_i · [i occurs in training] + adapter(features)_i``: an item without a training
    interaction is its content alone, because its ID row would stay at its random start. ID rows
    start near zero, so training starts from the content (assumption). ``id_dropout`` drops whole
    ID rows in training, so that content learns to stand alone.

    While training, items without a training interaction are zero rows: as eternal negatives of a
    full softmax their content would be pushed down although nothing was observed about it
    (assumption).

    Args:
        features: aligned features, (n_items, F).
        size: d of the model's item table.
        hidden_size: hidden width of the adapter.
        id_dropout: probability of dropping an item's ID row in a training step.
    """

    id_mask: Tensor

    def __init__(
        self, features: ItemFeatures, size: int, hidden_size: int, id_dropout: float
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = len(features.rows), size, 0
        self.id_embedding = nn.Embedding(self.num_embeddings, size, padding_idx=0)
        nn.init.normal_(self.id_embedding.weight, std=_ID_STD)
        self.adapter = FeatureAdapter(features, hidden_size, size)
        self.id_dropout = id_dropout
        mask = torch.from_numpy(features.trained.copy()).float().unsqueeze(1)
        self.register_buffer("id_mask", mask, persistent=False)
        self._scope_depth = 0
        self._step_table: Tensor | None = None
        self._cache = EvaluationCache()

    @property
    def weight(self) -> Tensor:
        """The fused table, shape (n_items, d); computed once inside a `step`."""
        if self._step_table is not None:
            return self._step_table
        table = self._table()
        if self._scope_depth:
            self._step_table = table
        return table

    def _table(self) -> Tensor:
        frozen = not self.training and not torch.is_grad_enabled()
        parameters = list(self.parameters())
        if frozen:
            kept = self._cache.get(parameters)
            if kept is not None:
                return kept  # type: ignore[no-any-return]
        mask = self.id_mask
        if self.training and self.id_dropout > 0:
            mask = mask * (torch.rand_like(mask) >= self.id_dropout)
        content: Tensor = self.adapter()
        if self.training:
            content = content * self.id_mask
        table = without_padding(self.id_embedding.weight * mask) + content
        if frozen:
            self._cache.put(parameters, table)
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


def attach_item_embeddings(model: Any, config: Any, dataset: Any) -> FusedItemEmbedding | None:
    """Replace ``model.item_embedding`` by a fused one if the configuration names a store.

    The model's ``calculate_loss``, ``predict`` and ``full_sort_predict`` then open one `step`.

    Args:
        model: a RecBole sequential model whose items live in one ``nn.Embedding`` table
            ``item_embedding`` of n_items rows.
        config: keys ``item_embeddings``, ``item_embeddings_modalities``,
            ``item_embeddings_fusion``, ``adapter_hidden_size``, ``id_dropout``.
        dataset: RecBole's built training data set.

    Returns:
        The new module, or None where ``item_embeddings`` is null.

    Raises:
        InputError: the model's items live elsewhere (the message says why), bad key values, or
            the store is refused (see `load_item_features`).
    """
    if config["item_embeddings"] is None:
        return None
    fusion, dropout = config["item_embeddings_fusion"], float(config["id_dropout"])
    if fusion not in FUSIONS:
        raise InputError(
            f"item_embeddings_fusion='{fusion}' is unknown.{nearest(str(fusion), FUSIONS)} "
            f"Known: {', '.join(FUSIONS)}."
        )
    if not 0 <= dropout < 1:
        raise InputError(f"id_dropout={dropout} must be in [0, 1).")
    table = _single_item_table(model, dataset.item_num)
    features = load_item_features(config, dataset)
    if features is None:
        raise AssertionError("a named store always gives features")
    hidden = int(config["adapter_hidden_size"])
    fused = FusedItemEmbedding(features, table.embedding_dim, hidden, dropout)
    fused.to(table.weight.device)
    model.item_embedding = fused
    for name in ("calculate_loss", "predict", "full_sort_predict"):
        setattr(model, name, _in_step(getattr(model, name), fused))
    return fused


def _in_step(method: Any, fused: FusedItemEmbedding) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with fused.step():
            return method(*args, **kwargs)

    return call


def _single_item_table(model: Any, n_items: int) -> nn.Embedding:
    name = type(model).__name__
    refusal = f"{name} cannot take item_embeddings: "
    remedy = " Use a model with one item table (SASRec, GRU4Rec, …) or DIMO."
    table = getattr(model, "item_embedding", None)
    if not isinstance(table, nn.Embedding):
        raise InputError(refusal + "it has no embedding table named 'item_embedding'." + remedy)
    if table.num_embeddings != n_items:
        raise InputError(
            refusal + f"its item table has {table.num_embeddings} rows for {n_items} items, "
            "the others (for instance a mask token) would have no features." + remedy
        )
    others = [
        path
        for path, parameter in model.named_parameters(remove_duplicate=False)
        if path != "item_embedding.weight" and n_items in parameter.shape
    ]
    if others:
        raise InputError(
            refusal + f"items also live in {', '.join(others)}, which would ignore them." + remedy
        )
    return table
