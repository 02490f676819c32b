"""Plain co-occurrence: the baseline a learned session model has to beat; nothing is trained."""

from __future__ import annotations

from typing import Any

import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.context_kernel import log_shares
from recbole_tpad.recommenders.item_features import load_item_features
from recbole_tpad.recommenders.item_graph import cooccurrence_counts, following_counts
from recbole_tpad.recommenders.sessions import training_sessions
from recbole_tpad.recommenders.untrained import UntrainedRecommender


class CoOccurrence(UntrainedRecommender):
    """Score of item j = Σ over context positions p of δ^(steps from the end) · C[i_p, j].

    ``max_order: 0`` counts pairs wherever they stand: C = F, the number of position pairs of the
    training sessions that hold i and j. ``max_order: k`` counts what follows: C[i, j] = Σ over
    orders o ≤ k of 1/o · the number of times j stands o places after i, i ≠ j (T-MLLM's pairs,
    methods.md). δ is ``history_decay``; 1 counts all of the context alike.

    With ``item_embeddings`` a content kernel is added, so that items without shared sessions can
    be reached: + kernel_weight · Σ_p δ^… · exp((cos(x_{i_p}, x_j) − 1) / kernel_temperature), x
    the frozen rows, centred on the items that occur in training (assumption; the paper has no such
    model). With ``similarity_kernel`` that takes its place: the scores are then log(1 + n · share
    of the count), which rank as the counts do and have a scale that a weight can be chosen for.
    """

    takes_item_embeddings = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        _, sessions = training_sessions(dataset)
        self.max_order, self.decay = int(config["max_order"]), float(config["history_decay"])
        if self.max_order < 0 or not 0 < self.decay <= 1:
            raise InputError(
                f"CoOccurrence needs max_order >= 0 and history_decay in (0, 1], not max_order="
                f"{self.max_order} and history_decay={self.decay}."
            )
        self.counts = (
            following_counts(sessions, self.n_items, self.max_order)
            if self.max_order
            else cooccurrence_counts(sessions, self.n_items)
        )
        self.kernel_weight = float(config["kernel_weight"])
        self.temperature = float(config["kernel_temperature"])
        if self.temperature <= 0:
            raise InputError(f"kernel_temperature={self.temperature} must be positive.")
        self.log_shares = bool(config["similarity_kernel"])
        features = None if self.log_shares else load_item_features(config, dataset)
        self.unit: Tensor | None
        unit = None
        if features is not None:
            rows = torch.from_numpy(features.rows)
            seen = torch.from_numpy(features.trained)
            rows = rows - (rows[seen] if bool(seen.any()) else rows[1:]).mean(dim=0)
            unit = functional.normalize(rows, dim=1, eps=1e-8)
        self.register_buffer("unit", unit, persistent=False)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return every item's score, shape (B, n_items)."""
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        steps = lengths[:, None] - 1 - torch.arange(item_seq.shape[1], device=item_seq.device)
        weights = torch.where(item_seq != 0, self.decay ** steps.clamp(min=0).double(), 0.0)
        rows, columns = torch.nonzero(weights, as_tuple=True)
        context = sparse.csr_matrix(
            (
                weights[rows, columns].cpu().numpy(),
                (rows.cpu().numpy(), item_seq[rows, columns].cpu().numpy()),
            ),
            shape=(item_seq.shape[0], self.n_items),
        )
        counts = (context @ self.counts).toarray()
        if self.log_shares:
            return log_shares(counts).to(self.unused)
        scores = torch.from_numpy(counts).to(self.unused)
        if self.unit is not None and self.kernel_weight:
            kernel = self._kernel(self.unit, item_seq, weights)
            scores = scores.add_(kernel, alpha=self.kernel_weight)
        return scores

    def _kernel(self, unit: Tensor, item_seq: Tensor, weights: Tensor) -> Tensor:
        total = unit.new_zeros((item_seq.shape[0], self.n_items))
        # One position at a time: a (B, L, n_items) tensor would not fit.
        for column, weight in zip(item_seq.t(), weights.t(), strict=True):
            near = (unit[column] @ unit.t()).sub_(1.0).div_(self.temperature).exp_()
            total.addcmul_(near, weight.to(near)[:, None])
        return total
