"""Plain co-occurrence: the baseline a learned session model has to beat; nothing is trained."""

from __future__ import annotations

from typing import Any

import torch
from scipy import sparse
from torch import Tensor

from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.context_kernel import log_shares
from recbole_tpad.recommenders.item_graph import cooccurrence_counts, following_counts
from recbole_tpad.recommenders.sessions import training_sessions
from recbole_tpad.recommenders.untrained import UntrainedRecommender


class CoOccurrence(UntrainedRecommender):
    """Score of item j = Σ over context positions p of δ^(steps from the end) · C[i_p, j].

    ``max_order: 0`` counts pairs wherever they stand: C = F, the number of position pairs of the
    training sessions that hold i and j. ``max_order: k`` counts what follows: C[i, j] = Σ over
    orders o ≤ k of 1/o · the number of times j stands o places after i, i ≠ j (T-MLLM's pairs,
    methods.md). δ is ``history_decay``; 1 counts all of the context alike.

    With ``item_embeddings`` the similarity kernel of `ScoreAdjustments` is added, so that items
    without shared sessions can be reached; the model's own scores are then log(1 + n · share of the
    count), which rank as the counts do and have a scale that the kernel's weight can be chosen for
    (assumption; the paper has no such model).
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
        self.log_shares = config["item_embeddings"] is not None

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
        scores = log_shares(counts) if self.log_shares else torch.from_numpy(counts)
        return scores.to(self.unused)
