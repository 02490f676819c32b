"""Popularity: every session gets the items with the most training interactions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_tpad.recommenders.sessions import training_item_counts
from recbole_tpad.recommenders.untrained import UntrainedRecommender


class Popularity(UntrainedRecommender):
    """Score of an item = its number of training interactions, whatever the session.

    RecBole's ``Pop`` is a general model: it always masks the history and counts prefix rows. This
    one goes through the same protocol as every sequential model.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        counts = torch.from_numpy(training_item_counts(dataset)).float()
        self.item_counts: Tensor
        self.register_buffer("item_counts", counts, persistent=False)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return every item's score, shape (B, n_items)."""
        return self.item_counts.expand(len(interaction[self.ITEM_SEQ]), -1).clone()
