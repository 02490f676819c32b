"""Multi-order meta pairs from training sessions (TPAD stage 2a)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from recbole_tpad.errors import InputError

_BLOCK = 1024
_CANDIDATES = 8
Rows = npt.NDArray[np.int64]


def check_orders(orders: Sequence[int]) -> None:
    """Refuse transition orders that are not positive, and none at all.

    Raises:
        InputError: naming them.
    """
    if not orders or min(orders) < 1:
        raise InputError(f"orders must be positive integers, not {list(orders)}.")


@dataclass(frozen=True, slots=True)
class _Order:
    """One order's pairs: where they are is found again, block by block."""

    order: int
    ends: Rows  # running number of pairs at the end of each block of positions

    def __len__(self) -> int:
        return int(self.ends[-1])


class MetaPairs:
    """Pairs (s_t, s_{t+o}) of training sessions, sampled by order.

    The pairs are never written down: memory is that of the sessions, 8 bytes an interaction, and
    of an index of the same size once `known` is asked.

    Args:
        sessions: item row sequences, training part only; read once.
        items: number of items.
        orders: transition orders o, for example (1, 2, 3).
        popularity_balance: β; pairs are drawn with a weight ∝ (popularity of both items)^(−β/2),
            by resampling from 8 candidates a pair (assumption). 0: as they occur.

    An order is drawn with P(o) ∝ 1/o, then a pair of it uniformly; identical items are skipped.

    Raises:
        InputError: no session has two different items.
    """

    def __init__(
        self,
        sessions: Iterable[Sequence[int]],
        items: int,
        orders: Sequence[int],
        *,
        popularity_balance: float = 0.0,
    ) -> None:
        check_orders(orders)
        flat, lengths = array("i"), array("i")
        for session in sessions:
            flat.extend(session)
            lengths.append(len(session))
        self.items = items
        self._rows = np.frombuffer(flat, dtype=np.int32) if flat else np.empty(0, np.int32)
        self._session = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        self._orders: list[_Order] = []
        weights: list[float] = []
        for order in orders:
            counts = [
                int(self._valid(order, start, start + _BLOCK).sum())
                for start in range(0, len(self._rows) - order, _BLOCK)
            ]
            if sum(counts):
                self._orders.append(_Order(order, np.cumsum(counts)))
                weights.append(1 / order)
        if not self._orders:
            raise InputError(
                "The training sessions hold no pair of different items, so there is no transition "
                "to learn. Convert with longer sessions (for example --sessions user)."
            )
        self._weights = torch.tensor(weights, dtype=torch.float64)
        self._rarity: npt.NDArray[np.float64] | None = None
        if popularity_balance:
            popularity = np.bincount(self._rows, minlength=items).astype(np.float64)
            self._rarity = np.maximum(popularity, 1) ** (-popularity_balance / 2)

    def __len__(self) -> int:
        return sum(len(o) for o in self._orders)

    def _valid(self, order: int, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """For positions start…stop: whether they and `order` further make a pair."""
        stop = min(stop, len(self._rows) - order)
        first, second = slice(start, stop), slice(start + order, stop + order)
        same_session = self._session[first] == self._session[second]
        found: npt.NDArray[np.bool_] = same_session & (self._rows[first] != self._rows[second])
        return found

    def _positions(self, order: _Order, numbers: Rows) -> Rows:
        """Positions of an order's pairs by their running numbers."""
        blocks = np.searchsorted(order.ends, numbers, side="right")
        found = np.empty_like(numbers)
        for block in np.unique(blocks):
            inside = np.flatnonzero(self._valid(order.order, block * _BLOCK, (block + 1) * _BLOCK))
            chosen = blocks == block
            before = order.ends[block - 1] if block else 0
            found[chosen] = inside[numbers[chosen] - before] + block * _BLOCK
        return found

    @property
    def known_pairs(self) -> sp.csr_matrix:
        """(items, items) bool, True where two items are a pair in either direction; all of them."""
        first, second = [], []
        for order in self._orders:
            where = self._positions(order, np.arange(len(order)))
            first.append(self._rows[where])
            second.append(self._rows[where + order.order])
        a, b = np.concatenate(first), np.concatenate(second)
        shape = (self.items, self.items)
        known = sp.csr_matrix((np.ones(len(a), dtype=bool), (a, b)), shape=shape)
        return (known + known.T).tocsr()

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw `count` pairs (anchor row, target row), shape (count, 2)."""
        return torch.from_numpy(self._rows[self._draw(count, generator)].astype(np.int64))

    def sample_contexts(
        self, count: int, generator: torch.Generator, length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw pairs as `sample` does, with what came before the anchor in its session.

        Returns:
            Contexts (count, length), the anchor first and earlier items after it, −1 beyond the
            session's start; and targets (count,).
        """
        where = self._draw(count, generator)
        back = where[:, :1] - np.arange(length)
        inside, back = back >= 0, back.clip(min=0)
        inside &= self._session[back] == self._session[where[:, :1]]
        contexts = np.where(inside, self._rows[back], -1).astype(np.int64)
        targets = self._rows[where[:, 1]].astype(np.int64)
        return torch.from_numpy(contexts), torch.from_numpy(targets)

    def _draw(self, count: int, generator: torch.Generator) -> Rows:
        """(count, 2) positions of pairs."""
        if self._rarity is None:
            return self._draw_as_they_occur(count, generator)
        candidates = self._draw_as_they_occur(_CANDIDATES * count, generator)
        weights = torch.from_numpy(self._rarity[self._rows[candidates]].prod(axis=1))
        chosen: Rows = torch.multinomial(weights, count, generator=generator).numpy()
        return candidates[chosen]

    def _draw_as_they_occur(self, count: int, generator: torch.Generator) -> Rows:
        which = torch.multinomial(self._weights, count, replacement=True, generator=generator)
        uniform = torch.rand(count, generator=generator, dtype=torch.float64).numpy()
        drawn = np.empty((count, 2), dtype=np.int64)
        for number, order in enumerate(self._orders):
            chosen = np.flatnonzero(which.numpy() == number)
            first = self._positions(order, (uniform[chosen] * len(order)).astype(np.int64))
            drawn[chosen] = np.stack([first, first + order.order], axis=1)
        return drawn

    @cached_property
    def _occurrences(self) -> tuple[npt.NDArray[np.int32], Rows]:
        """Positions sorted by item, and where each item's begin."""
        positions = np.argsort(self._rows, kind="stable").astype(np.int32)
        counts = np.bincount(self._rows, minlength=self.items)
        return positions, np.concatenate([[0], np.cumsum(counts)])

    def known(self, rows: Rows) -> torch.Tensor:
        """(U, U) bool for distinct rows (U,): whether two items are a pair in either direction."""
        positions, begins = self._occurrences
        counts = begins[rows + 1] - begins[rows]
        total = int(counts.sum())
        # All places where one of the rows occurs, and which of the rows it is.
        offsets = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
        places = positions[np.repeat(begins[rows], counts) + offsets].astype(np.int64)
        owner = np.repeat(np.arange(len(rows)), counts)
        slot = np.full(self.items, -1, dtype=np.int64)
        slot[rows] = np.arange(len(rows))
        found = np.zeros((len(rows), len(rows)), dtype=bool)
        for order in self._orders:
            inside = places < len(self._rows) - order.order
            first, second = places[inside], places[inside] + order.order
            partner = slot[self._rows[second]]
            keep = (self._session[first] == self._session[second]) & (partner >= 0)
            found[owner[inside][keep], partner[keep]] = True
        np.fill_diagonal(found, False)  # a repeated item is no pair
        return torch.from_numpy(found | found.T)
