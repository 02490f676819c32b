"""Multi-order meta pairs from training sessions (TPAD stage 2a)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from recbole_tpad.errors import InputError


def check_orders(orders: Sequence[int]) -> None:
    """Refuse transition orders that are not positive, and none at all.

    Raises:
        InputError: naming them.
    """
    if not orders or min(orders) < 1:
        raise InputError(f"orders must be positive integers, not {list(orders)}.")


class MetaPairs:
    """Pairs (s_t, s_{t+o}) of training sessions, sampled by order.

    Args:
        sessions: item row sequences, training part only.
        items: number of items.
        orders: transition orders o, for example (1, 2, 3).

    An order is drawn with P(o) ∝ 1/o, then a pair of it uniformly; identical items are skipped.

    Raises:
        InputError: no session has two different items.
    """

    def __init__(
        self, sessions: Iterable[Sequence[int]], items: int, orders: Sequence[int]
    ) -> None:
        check_orders(orders)
        flat: list[int] = []
        ends: list[int] = []
        for session in sessions:
            flat.extend(session)
            ends.append(len(flat))
        rows = np.asarray(flat, dtype=np.int64)
        session_of = np.repeat(np.arange(len(ends)), np.diff([0, *ends]))
        self._pairs: list[npt.NDArray[np.int64]] = []
        weights: list[float] = []
        for order in orders:
            if len(rows) <= order:
                continue
            first, second = rows[:-order], rows[order:]
            keep = (session_of[:-order] == session_of[order:]) & (first != second)
            if keep.any():
                self._pairs.append(np.stack([first[keep], second[keep]], axis=1))
                weights.append(1 / order)
        if not self._pairs:
            raise InputError(
                "The training sessions hold no pair of different items, so there is no transition "
                "to learn. Convert with longer sessions (for example --sessions user)."
            )
        self._weights = torch.tensor(weights, dtype=torch.float64)
        every = np.concatenate(self._pairs)
        known = sp.csr_matrix(
            (np.ones(len(every), dtype=bool), (every[:, 0], every[:, 1])), shape=(items, items)
        )
        self._known = (known + known.T).tocsr()

    def __len__(self) -> int:
        return sum(len(p) for p in self._pairs)

    @property
    def known_pairs(self) -> sp.csr_matrix:
        """(items, items) bool, True where two items are a pair in either direction."""
        return self._known

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw `count` pairs (anchor row, target row), shape (count, 2)."""
        which = torch.multinomial(self._weights, count, replacement=True, generator=generator)
        uniform = torch.rand(count, generator=generator, dtype=torch.float64).numpy()
        drawn = np.empty((count, 2), dtype=np.int64)
        for order, pairs in enumerate(self._pairs):
            chosen = np.flatnonzero(which.numpy() == order)
            drawn[chosen] = pairs[(uniform[chosen] * len(pairs)).astype(np.int64)]
        return torch.from_numpy(drawn)

    def known(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Dense (U, U) bool block of `known_pairs` for the given rows."""
        return torch.from_numpy(self._known[rows][:, rows].toarray().astype(bool))
