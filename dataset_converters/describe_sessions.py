"""Sessions as arrays, and what their order and their pairs of items say."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_converters.errors import InputError
from dataset_converters.sessions import BoolArray, IntArray

WINDOW = 20  # items; pairs further apart in a session do not count
_MOST_PAIRS = 20_000_000

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sequences:
    """N sessions with M items in all.

    Attributes:
        offsets: (N+1,) session k has the items offsets[k]:offsets[k+1].
        items: (M,) item numbers.
    """

    offsets: IntArray
    items: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        return np.diff(self.offsets)

    @property
    def owners(self) -> IntArray:
        """(M,) the session of each item."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def sampled(self, most_pairs: int = _MOST_PAIRS) -> Sequences:
        """Keep every k-th session, so that there are about `most_pairs` pairs at most."""
        lengths = self.lengths
        pairs = int(np.minimum(lengths * (lengths - 1) // 2, lengths * WINDOW).sum())
        step = -(-pairs // most_pairs)
        if step <= 1:
            return self
        kept = np.arange(len(self)) % step == 0
        mask = np.repeat(kept, lengths)
        return Sequences(np.concatenate(([0], np.cumsum(lengths[kept]))), self.items[mask])

    def first_occurrences(self) -> Sequences:
        """Leave out an item's further occurrences in its session."""
        owners = self.owners
        width = int(self.items.max(initial=0)) + 1
        _, first = np.unique(owners * width + self.items, return_index=True)
        mask: BoolArray = np.zeros(len(self.items), dtype=np.bool_)
        mask[first] = True
        kept = np.concatenate(([0], np.cumsum(mask)))
        return Sequences(kept[self.offsets], self.items[mask])

    def pairs(self) -> tuple[IntArray, IntArray]:
        """Earlier and later item of every pair in a session, at most `WINDOW` positions apart."""
        owners = self.owners
        earlier, later = [], []
        for distance in range(1, min(WINDOW, int(self.lengths.max(initial=1)) - 1) + 1):
            same = owners[:-distance] == owners[distance:]
            earlier.append(self.items[:-distance][same])
            later.append(self.items[distance:][same])
        nothing = np.zeros(0, dtype=np.int64)
        return np.concatenate([nothing, *earlier]), np.concatenate([nothing, *later])


@dataclass
class Vocabulary:
    """Numbers for item ids, in order of first appearance."""

    index: dict[str, int] = field(default_factory=dict)

    def numbers(self, ids: Sequence[str]) -> list[int]:
        known = self.index
        return [known.setdefault(item, len(known)) for item in ids]


def read_benchmark(path: Path, vocabulary: Vocabulary) -> Sequences:
    """Read a part's sessions: a session is its first row's list and the targets of its rows.

    Raises:
        InputError: unreadable, or a row that has not three cells.
    """
    items, offsets = array("q"), array("q", [0])
    known = vocabulary.index
    current: str | None = None
    try:
        with path.open(encoding="utf-8", newline="\n") as rows:
            next(rows, None)
            for number, row in enumerate(rows, start=2):
                cells = row.rstrip("\n").split("\t")
                if len(cells) != 3:
                    raise InputError(f"{path}, line {number}: {len(cells)} cells, not 3.")
                if cells[0] != current:
                    if current is not None:
                        offsets.append(len(items))
                    current = cells[0]
                    items.extend(vocabulary.numbers(cells[1].split(" ")))
                items.append(known.setdefault(cells[2], len(known)))
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    if current is not None:
        offsets.append(len(items))
    return Sequences(_whole(offsets), _whole(items))


def read_interactions_file(path: Path, vocabulary: Vocabulary) -> tuple[Sequences, IntArray | None]:
    """Read ``<name>.inter``: sessions, and the time stamps in seconds where there are any.

    Raises:
        InputError: unreadable, or not a file a converter wrote.
    """
    items, offsets, times = array("q"), array("q", [0]), array("q")
    known = vocabulary.index
    current: str | None = None
    try:
        with path.open(encoding="utf-8", newline="\n") as rows:
            header = next(rows, "").rstrip("\n").split("\t")
            if header[:2] != ["session_id:token", "item_id:token"]:
                raise InputError(f"{path}: the header must start with session_id and item_id.")
            timed = "timestamp:float" in header
            for number, row in enumerate(rows, start=2):
                cells = row.rstrip("\n").split("\t")
                if len(cells) != len(header):
                    raise InputError(f"{path}, line {number}: {len(cells)} cells.")
                if cells[0] != current:
                    if current is not None:
                        offsets.append(len(items))
                    current = cells[0]
                items.append(known.setdefault(cells[1], len(known)))
                if timed:
                    times.append(int(float(cells[2])))
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}.") from error
    except ValueError as error:
        raise InputError(f"{path}: a time stamp is no number ({error}).") from error
    if current is not None:
        offsets.append(len(items))
    return Sequences(_whole(offsets), _whole(items)), _whole(times) if timed else None


def _whole(values: array[int]) -> IntArray:
    return np.array(values, dtype=np.int64)


def order_of_pairs(sessions: Sequences) -> dict[str, Any]:
    """How constant the order of two items is across sessions.

    A pair counts once a session, by the first occurrences of its items. A pair seen in k sessions
    keeps one order by chance with probability 2^(1-k), so a pair seen once always does: the share
    over all pairs says little, and the one over pairs seen at least twice is to be compared with
    `by_chance`.
    """
    used = sessions.sampled()
    earlier, later = used.first_occurrences().pairs()
    # The direction is a key's last bit: one sort brings a pair's occurrences together.
    key = np.sort((_edge(earlier, later) << 1) | (earlier < later))
    starts = _run_starts(key >> 1)
    seen = np.diff(np.append(starts, len(key)))
    forward = np.add.reduceat(key & 1, starts) if len(key) else seen
    constant = (forward == 0) | (forward == seen)
    often = seen >= 2
    return {
        "pairs": len(seen),
        "pairs_seen_twice": int(often.sum()),
        "one_order_all": _mean(constant),
        "one_order": _mean(constant[often]),
        "by_chance": _mean(np.exp2(1.0 - seen[often])),
        "sampled_sessions": len(used),
    }


def edge_overlap(train: Sequences, test: Sequences) -> dict[str, Any]:
    """How much of the test part's co-occurrence is in the training part's graph.

    Keys: `edges` of the test sessions (unordered pairs of different items), the share of them
    `edges_in_train`, and `targets_linked`, the share of test targets that occur in training in one
    session with an item of their context. Pairs more than `WINDOW` apart do not count.
    """
    known = _distinct(_edges(train.sampled()))
    asked = _distinct(_edges(test.sampled()))
    linked = np.zeros(len(test), dtype=np.bool_)
    last = test.offsets[1:] - 1
    lengths = test.lengths
    for distance in range(1, min(WINDOW, int(lengths.max(initial=1)) - 1) + 1):
        rows = np.flatnonzero(lengths > distance)
        target, context = test.items[last[rows]], test.items[last[rows] - distance]
        linked[rows] |= _among(_edge(context, target), known) & (context != target)
    return {
        "edges": len(asked),
        "edges_in_train": _mean(_among(asked, known)),
        "targets_linked": _mean(linked),
    }


def _run_starts(ordered: IntArray) -> IntArray:
    """Positions at which a sorted array's value changes; empty for an empty one."""
    changed = np.ones(len(ordered), dtype=np.bool_)
    changed[1:] = ordered[1:] != ordered[:-1]
    return np.flatnonzero(changed)


def _distinct(values: IntArray) -> IntArray:
    """The different values, sorted; for millions of them several times as fast as np.unique."""
    ordered = np.sort(values)
    return ordered[_run_starts(ordered)]


def _among(values: IntArray, ordered: IntArray) -> BoolArray:
    """Which values are in a sorted array; np.isin would sort it again each time."""
    if len(ordered) == 0:
        return np.zeros(len(values), dtype=np.bool_)
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[at] == values, dtype=np.bool_)


def _edges(sessions: Sequences) -> IntArray:
    earlier, later = sessions.pairs()
    different = earlier != later
    return _edge(earlier[different], later[different])


def _edge(one: IntArray, other: IntArray) -> IntArray:
    # Item numbers stay below 2^30, and one bit is left for a direction.
    return (np.minimum(one, other) << 30) | np.maximum(one, other)


def target_statistics(part: Sequences, in_train: BoolArray) -> dict[str, Any]:
    """What the last item of each session has to do with the others and with training."""
    last = part.items[part.offsets[1:] - 1]
    before = part.items[np.maximum(part.offsets[1:] - 2, part.offsets[:-1])]
    mask = np.ones(len(part.items), dtype=np.bool_)
    mask[part.offsets[1:] - 1] = False
    again = np.zeros(len(part), dtype=np.bool_)
    owners = part.owners[mask]
    again[owners[part.items[mask] == last[owners]]] = True
    return {
        "sessions": len(part),
        "target_repeats_last": _mean(last == before),
        "target_in_context": _mean(again),
        "sessions_with_repeated_item": _mean(part.lengths != part.first_occurrences().lengths),
        "target_unseen_in_train": _mean(~in_train[last]),
    }


def repeated_sessions(train: Sequences, test: Sequences) -> float | None:
    """Share of test sessions that occur item by item in training as a whole."""
    known = set(_as_bytes(train))
    return _mean(np.array([items in known for items in _as_bytes(test)], dtype=np.bool_))


def _as_bytes(sessions: Sequences) -> Iterator[bytes]:
    whole, size = sessions.items.tobytes(), sessions.items.itemsize
    ends = (sessions.offsets * size).tolist()
    for start, end in itertools.pairwise(ends):
        yield whole[start:end]


def _mean(values: BoolArray | FloatArray) -> float | None:
    """The mean to six digits; None for nothing."""
    return round(float(np.mean(values)), 6) if len(values) else None
