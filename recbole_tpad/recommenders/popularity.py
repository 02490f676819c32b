"""Popularity: every session gets the items with the most training interactions."""

from __future__ import annotations

from typing import Any

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_tpad.recommenders.sessions import training_item_counts


class Popularity(SequentialRecommender):  # type: ignore[misc]
    """Score of an item = its number of training interactions, whatever the session.

    RecBole's ``Pop`` is a general model: it always masks the history and counts prefix rows. This
    one goes through the same protocol as every sequential model.
    """

    input_type = InputType.POINTWISE
    is_trained = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        counts = torch.from_numpy(training_item_counts(dataset)).float()
        self.item_counts: Tensor
        self.register_buffer("item_counts", counts, persistent=False)
        # RecBole's own trainer needs something to optimise.
        self.unused = nn.Parameter(torch.zeros(1))

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Return zero: nothing is trained."""
        return self.unused.sum() * 0.0

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return every item's score, shape (B, n_items)."""
        return self.item_counts.expand(len(interaction[self.ITEM_SEQ]), -1).clone()

    def predict(self, interaction: Any) -> Tensor:
        """Return the scores of the batch's own items, shape (B,)."""
        return self.item_counts[interaction[self.ITEM_ID]]
