"""Plain co-occurrence: the baseline a learned session model has to beat; nothing is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.item_features import load_item_features
from recbole_tpad.recommenders.item_graph import cooccurrence_counts
from recbole_tpad.recommenders.sessions import training_sessions


class CoOccurrence(SequentialRecommender):  # type: ignore[misc]
    """Score of item j = Σ over context items i of F[i, j], F the training sessions' pair counts.

    With ``item_embeddings`` a content kernel is added, so that items without shared sessions can
    be reached: + kernel_weight · Σ_i exp((cos(x_i, x_j) − 1) / kernel_temperature), x the frozen
    rows, centred on the items that occur in training (assumption; the paper has no such model).
    """

    input_type = InputType.POINTWISE
    takes_item_embeddings = True
    is_trained = False

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        _, sessions = training_sessions(dataset)
        self.counts = cooccurrence_counts(sessions, self.n_items)
        self.kernel_weight = float(config["kernel_weight"])
        self.temperature = float(config["kernel_temperature"])
        if self.temperature <= 0:
            raise InputError(f"kernel_temperature={self.temperature} must be positive.")
        features = load_item_features(config, dataset)
        self.unit: Tensor | None
        unit = None
        if features is not None:
            rows = torch.from_numpy(features.rows)
            seen = torch.from_numpy(features.trained)
            rows = rows - (rows[seen] if bool(seen.any()) else rows[1:]).mean(dim=0)
            unit = functional.normalize(rows, dim=1, eps=1e-8)
        self.register_buffer("unit", unit, persistent=False)
        # RecBole's own trainer needs something to optimise.
        self.unused = nn.Parameter(torch.zeros(1))

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Return zero: nothing is trained."""
        return self.unused.sum() * 0.0

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return every item's score, shape (B, n_items)."""
        item_seq = interaction[self.ITEM_SEQ]
        rows, columns = torch.nonzero(item_seq != 0, as_tuple=True)
        context = item_seq[rows, columns]
        membership = _membership(rows, context, item_seq.shape[0], self.n_items)
        scores = torch.from_numpy((membership @ self.counts).toarray()).to(self.unused)
        if self.unit is not None and self.kernel_weight:
            scores = scores + self.kernel_weight * self._kernel(item_seq)
        return scores

    def _kernel(self, item_seq: Tensor) -> Tensor:
        if self.unit is None:
            raise AssertionError("the kernel needs item embeddings")
        total = self.unit.new_zeros((item_seq.shape[0], self.n_items))
        # One position at a time: a (B, L, n_items) tensor would not fit.
        for column in item_seq.t():
            near = torch.exp((self.unit[column] @ self.unit.t() - 1.0) / self.temperature)
            total += near * (column != 0).unsqueeze(1)
        return total

    def predict(self, interaction: Any) -> Tensor:
        """Return the scores of the batch's own items, shape (B,)."""
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)


def _membership(rows: Tensor, context: Tensor, batch: int, n_items: int) -> Any:
    ones = np.ones(rows.numel())
    index = (rows.cpu().numpy(), context.cpu().numpy())
    return sparse.csr_matrix((ones, index), shape=(batch, n_items))
