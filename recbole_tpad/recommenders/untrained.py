"""What the baselines without training share."""

from __future__ import annotations

from typing import Any

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn


class UntrainedRecommender(SequentialRecommender):  # type: ignore[misc]
    """A sequential recommender that only counts; subclasses give `full_sort_predict`."""

    input_type = InputType.POINTWISE
    is_trained = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        # RecBole's own trainer needs something to optimise.
        self.unused = nn.Parameter(torch.zeros(1))

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Return zero: nothing is trained."""
        return self.unused.sum() * 0.0

    def predict(self, interaction: Any) -> Tensor:
        """Return the scores of the batch's own items, shape (B,)."""
        scores: Tensor = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)
