"""Session-based nearest neighbours: SKNN and V-SKNN."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.recommenders.sessions import training_sessions
from recbole_tpad.recommenders.untrained import UntrainedRecommender

Floats = npt.NDArray[np.float64]
WEIGHTINGS = ("none", "linear", "div", "log", "quadratic")


def position_weights(weighting: str, length: int) -> Floats:
    """Return the weights of a session's positions, oldest first, the last being 1.

    With p = 1 … length: ``linear`` p/length, ``quadratic`` (p/length)², ``div`` 1/(steps from the
    end + 1), ``log`` 1/log10(steps from the end + 1.7) scaled to 1 at the end, ``none`` 1.
    """
    place = np.arange(1, length + 1, dtype=np.float64)
    steps = length - place
    if weighting == "linear":
        return place / length
    if weighting == "quadratic":
        return (place / length) ** 2
    if weighting == "div":
        return 1 / (steps + 1)
    if weighting == "log":
        return np.asarray(np.log10(1.7) / np.log10(steps + 1.7))
    return np.ones(length)


class SKNN(UntrainedRecommender):
    """Items of the training sessions most like this one (Jannach and Ludewig, RecSys 2017).

    Candidates are the ``sample_size`` most recent training sessions (in training order) that share
    an item; the ``n_neighbours`` most similar of them vote, each with its similarity. Similarity
    is Σ w(i) over the shared items / √(|s|·|n|), |·| the number of different items.

    V-SKNN (Ludewig and Jannach, UMUAI 2018) weighs what is recent more: ``position_weighting`` is
    w(i) by an item's last position in the session, ``vote_weighting`` multiplies a neighbour's
    vote by the weight of the last position it shares, and ``idf_weight`` λ scales an item's votes
    by 1 + λ·log(sessions / sessions with the item).
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.n_neighbours = int(config["n_neighbours"])
        self.sample_size = int(config["sample_size"])
        self.position_weighting = _weighting(config, "position_weighting")
        self.vote_weighting = _weighting(config, "vote_weighting")
        if self.n_neighbours < 1 or self.sample_size < self.n_neighbours:
            raise InputError(
                f"SKNN needs 1 <= n_neighbours <= sample_size, not n_neighbours="
                f"{self.n_neighbours} and sample_size={self.sample_size}."
            )
        _, sessions = training_sessions(dataset)
        items = [np.unique(session) for session in sessions]
        crow = np.concatenate([[0], np.cumsum([len(i) for i in items])])
        col = np.concatenate(items) if items else np.zeros(0, dtype=np.int64)
        shape = (len(items), self.n_items)
        self.sessions = sparse.csr_matrix((np.ones(len(col)), col, crow), shape=shape)
        self.by_item = self.sessions.T.tocsr()
        self.sizes = np.diff(crow)
        with_item = np.maximum(np.diff(self.by_item.indptr), 1)
        self.item_weight = 1 + float(config["idf_weight"]) * np.log(len(items) / with_item)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return every item's score, shape (B, n_items)."""
        item_seq = interaction[self.ITEM_SEQ].cpu().numpy()
        lengths = interaction[self.ITEM_SEQ_LEN].cpu().numpy()
        votes = [self._votes(row[:n]) for row, n in zip(item_seq, lengths, strict=True)]
        crow = np.concatenate([[0], np.cumsum([len(who) for who, _ in votes])])
        matrix = sparse.csr_matrix(
            (
                np.concatenate([weight for _, weight in votes]),
                np.concatenate([who for who, _ in votes]),
                crow,
            ),
            shape=(len(votes), self.sessions.shape[0]),
        )
        scores = (matrix @ self.sessions).toarray()
        scores *= self.item_weight  # in place: rows × items is what evaluation has a budget for
        return torch.from_numpy(scores).to(self.unused)

    def _votes(self, session: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Floats]:
        """Return a session's neighbours and their votes."""
        # Each item once, at its last position.
        items, from_end = np.unique(session[::-1], return_index=True)
        place = len(session) - 1 - from_end
        weight = position_weights(self.position_weighting, len(session))[place]
        recency = position_weights(self.vote_weighting, len(session))[place]
        rows = [
            self.by_item.indices[self.by_item.indptr[i] : self.by_item.indptr[i + 1]] for i in items
        ]
        met = np.concatenate(rows)
        counts = [len(r) for r in rows]
        who, inverse = np.unique(met, return_inverse=True)
        overlap = np.bincount(inverse, np.repeat(weight, counts), minlength=len(who))
        latest = np.zeros(len(who))
        np.maximum.at(latest, inverse, np.repeat(recency, counts))
        # Sessions are numbered in training order, so the largest numbers are the most recent.
        recent = slice(-self.sample_size, None)
        similarity = overlap[recent] / np.sqrt(len(items) * self.sizes[who[recent]])
        best = np.lexsort((-who[recent], -similarity))[: self.n_neighbours]
        votes: Floats = similarity[best] * latest[recent][best]
        return who[recent][best], votes


def _weighting(config: Any, key: str) -> str:
    value = str(config[key]).lower()
    if value not in WEIGHTINGS:
        raise InputError(
            f"{key}='{value}' is unknown.{nearest(value, WEIGHTINGS)} "
            f"Known: {', '.join(WEIGHTINGS)}."
        )
    return value
