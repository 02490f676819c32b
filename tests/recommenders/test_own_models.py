"""A user's own models take item embeddings, or are told why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.fused_tables import FusedItemEmbedding
from recbole_tpad.recommenders.item_embeddings import attach_item_embeddings


class MeanOfProducts(SequentialRecommender):  # type: ignore[misc]
    """A user's own model; its one item table has another name."""

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.products = torch.nn.Embedding(self.n_items, 8, padding_idx=0)
        self.kinds = torch.nn.Embedding(7, 4)

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        return self.products(interaction[self.ITEM_SEQ]).sum(dim=1) @ self.products.weight.t()

    def calculate_loss(self, interaction: Any) -> torch.Tensor:
        scores = self.full_sort_predict(interaction)
        return torch.nn.functional.cross_entropy(scores, interaction[self.ITEM_ID])

    def predict(self, interaction: Any) -> torch.Tensor:
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)


class AttachesItself(MeanOfProducts):
    takes_item_embeddings = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        attach_item_embeddings(self, config, dataset)


class NamesItsTable(MeanOfProducts):
    item_table = "things"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.things = self.products


@pytest.mark.parametrize("model_class", [MeanOfProducts, AttachesItself, NamesItsTable])
def test_a_users_own_model(build: Any, model_class: Any) -> None:
    config, model, loaders = build(model_class, item_embeddings="content")
    fused = model.products
    assert isinstance(fused, FusedItemEmbedding)
    assert sum(isinstance(m, FusedItemEmbedding) for m in model.modules()) == 1
    calls = []
    fused.adapter.register_forward_hook(lambda *_: calls.append(1))
    model.calculate_loss(loaders.train.collate_fn(np.arange(8))).backward()
    assert len(calls) == 1
    assert all(p.grad is not None for p in fused.adapter.parameters())
    assert attach_item_embeddings(model, config, loaders.train._dataset) is fused


class TwoTables(MeanOfProducts):
    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.targets = torch.nn.Embedding(self.n_items, 8)


class OutputLayer(MeanOfProducts):
    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.out = torch.nn.Linear(8, self.n_items)


class FreeParameter(MeanOfProducts):
    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.rows = torch.nn.Parameter(torch.zeros(self.n_items, 3))


@pytest.mark.parametrize(
    ("model_class", "message"),
    [
        (TwoTables, "several tables, products, targets"),
        (OutputLayer, "also live in out"),
        (FreeParameter, "also live in rows"),
    ],
)
def test_a_users_model_with_items_elsewhere_is_refused(
    build: Any, model_class: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(model_class, item_embeddings="content")


def test_a_named_table_must_exist(build: Any) -> None:
    config, model, loaders = build("SASRec")
    config["item_embeddings"] = "content"
    with pytest.raises(InputError, match="'rows' is no table of 32 items"):
        attach_item_embeddings(model, config, loaders.train._dataset, table="rows")
