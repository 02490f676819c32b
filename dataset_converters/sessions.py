"""Interactions as compact arrays, and the ways to cut them into sessions."""

# `session_table` and `split_tables` do the same in SQL for reviews, which may be more than memory
# holds. These arrays stay for sessions in an order of the source's own (sequences, session ids, a
# column of parts), which have no user, time and place that a table could be ordered by. A property
# test (tests/converters/test_two_ways.py) compares the files of both.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import numpy.typing as npt

SessionRule = Literal["first-day", "day", "user"]
SESSION_RULES: tuple[SessionRule, ...] = ("first-day", "day", "user")
DAY = 86_400  # seconds

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Interactions:
    """M interactions in file order.

    Attributes:
        users, items: (M,) indices into `user_ids` and `item_ids`.
        times: (M,) seconds since 1970 UTC.
    """

    user_ids: Sequence[str]
    item_ids: Sequence[str]
    users: IntArray
    items: IntArray
    times: IntArray

    def keep(self, mask: BoolArray) -> Interactions:
        return replace(self, users=self.users[mask], items=self.items[mask], times=self.times[mask])

    def without_repeats(self) -> Interactions:
        """Keep the first of several interactions of one user with one item at one time."""
        order = np.lexsort((self.times, self.items, self.users))
        keys = np.stack((self.users[order], self.items[order], self.times[order]))
        repeated = np.zeros(len(order), dtype=np.bool_)
        repeated[1:] = (keys[:, 1:] == keys[:, :-1]).all(axis=0)
        mask = np.ones(len(order), dtype=np.bool_)
        # lexsort is stable: the first of a group is the first in the file.
        mask[order[repeated]] = False
        return self.keep(mask)


@dataclass(frozen=True, slots=True)
class SessionTable:
    """N sessions over M interactions, stored row by row.

    Attributes:
        owners: (N,) indices into `user_ids`; sessions are in the order of sorted user ids.
        days: (N,) days since 1970 UTC where the rule is "day", else None.
        offsets: (N+1,) session k has the interactions offsets[k]:offsets[k+1].
        items: (M,) indices into `item_ids`, in session order.
        times: (M,) seconds since 1970 UTC, or None where the source has no time.
    """

    user_ids: Sequence[str]
    item_ids: Sequence[str]
    owners: IntArray
    days: IntArray | None
    offsets: IntArray
    items: IntArray
    times: IntArray | None

    def __len__(self) -> int:
        return len(self.owners)

    @property
    def lengths(self) -> IntArray:
        """(N,) interactions a session."""
        return np.diff(self.offsets)

    def last_times(self) -> IntArray:
        """(N,) time of each session's last interaction; needs times and no empty session."""
        if self.times is None:
            raise ValueError("the sessions have no time stamps")
        return self.times[self.offsets[1:] - 1]

    def session_id(self, index: int) -> str:
        """The user id, followed by ``_YYYY-MM-DD`` where sessions are days."""
        user = self.user_ids[int(self.owners[index])]
        if self.days is None:
            return user
        day = datetime.fromtimestamp(int(self.days[index]) * DAY, tz=UTC)
        return f"{user}_{day:%Y-%m-%d}"

    def session_items(self, index: int) -> list[str]:
        start, stop = self.offsets[index], self.offsets[index + 1]
        return [self.item_ids[i] for i in self.items[start:stop].tolist()]

    def session_times(self, index: int) -> list[int] | None:
        if self.times is None:
            return None
        return [int(t) for t in self.times[self.offsets[index] : self.offsets[index + 1]]]

    def keep_sessions(self, mask: BoolArray) -> SessionTable:
        kept = self._keep_interactions(np.repeat(mask, self.lengths))
        return replace(
            kept,
            owners=self.owners[mask],
            days=None if self.days is None else self.days[mask],
            offsets=np.concatenate(([0], np.cumsum(self.lengths[mask]))),
        )

    def keep_items(self, mask: BoolArray) -> SessionTable:
        """Drop the interactions with items outside `mask` (one flag an item of `item_ids`)."""
        return self._keep_interactions(mask[self.items])

    def first(self, length: int) -> SessionTable:
        """Keep the first `length` interactions of every session."""
        position = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], self.lengths)
        return self._keep_interactions(position < length)

    def item_counts(self) -> IntArray:
        """Interactions an item, one count an item of `item_ids`."""
        return np.bincount(self.items, minlength=len(self.item_ids)).astype(np.int64)

    def _keep_interactions(self, mask: BoolArray) -> SessionTable:
        kept_before = np.concatenate(([0], np.cumsum(mask)))
        return replace(
            self,
            offsets=kept_before[self.offsets],
            items=self.items[mask],
            times=None if self.times is None else self.times[mask],
        )


@dataclass(frozen=True, slots=True)
class Part:
    """Sessions of one part of a split, read from a table; iterating gives (id, item ids).

    Attributes:
        indices: sessions of `table`, in output order.
        drop_last: interactions at each session's end that do not belong to this part.
    """

    table: SessionTable
    indices: IntArray
    drop_last: IntArray | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        for position, index in enumerate(self.indices.tolist()):
            items = self.table.session_items(index)
            dropped = 0 if self.drop_last is None else int(self.drop_last[position])
            yield self.table.session_id(index), items[: len(items) - dropped]


def build_sessions(interactions: Interactions, rule: SessionRule) -> SessionTable:
    """Cut interactions into sessions, ordered by user id and then by day.

    Within a session the order is by time stamp, then by position in the file: Amazon's stamps
    have day resolution, so within a day the order is mostly the file's.

    Rules:
        "first-day": a user's interactions strictly less than 86,400 s after that user's first one,
            one session a user (DIMO's recipe, SIGIR 2024).
        "day": a user's interactions of one calendar day, UTC.
        "user": all of a user's interactions.
    """
    by_name = sorted(range(len(interactions.user_ids)), key=interactions.user_ids.__getitem__)
    rank = np.empty(len(by_name), dtype=np.int64)
    rank[by_name] = np.arange(len(by_name))
    order = np.lexsort((interactions.times, rank[interactions.users]))
    users = interactions.users[order]
    items = interactions.items[order]
    times = interactions.times[order]

    starts = _run_starts(users)
    if rule == "first-day":
        first = np.repeat(times[starts], np.diff(np.append(starts, len(users))))
        inside = times - first < DAY
        users, items, times = users[inside], items[inside], times[inside]
        starts = _run_starts(users)
    elif rule == "day":
        starts = _run_starts(users, times // DAY)
    return SessionTable(
        user_ids=interactions.user_ids,
        item_ids=interactions.item_ids,
        owners=users[starts],
        days=times[starts] // DAY if rule == "day" else None,
        offsets=np.append(starts, len(users)),
        items=items,
        times=times,
    )


def _run_starts(*keys: IntArray) -> IntArray:
    """Positions at which any of the sorted key columns changes; empty for no rows."""
    if len(keys[0]) == 0:
        return np.zeros(0, dtype=np.int64)
    changed = np.zeros(len(keys[0]), dtype=np.bool_)
    changed[0] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changed)
