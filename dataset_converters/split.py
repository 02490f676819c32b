"""Split rules, and the fingerprint of a split part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dataset_converters.errors import InputError
from dataset_converters.sessions import IntArray, Part, SessionTable

SplitRule = Literal["temporal", "leave-one-out"]
PARTS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class Split:
    """The three parts, and every kept interaction (`everything`) for the ``.inter`` file."""

    train: Part
    valid: Part
    test: Part
    everything: tuple[Part, ...]

    def part(self, name: str) -> Part:
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]


def split_sha256(sessions: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return the fingerprint of a part's sessions, whatever order they come in.

    Sessions sorted by id, one line ``id<TAB>item item ...`` each, UTF-8, SHA-256 in hex.
    """
    digest = hashlib.sha256()
    for session_id, items in sorted(sessions, key=lambda session: session[0]):
        digest.update(f"{session_id}\t{' '.join(items)}\n".encode())
    return digest.hexdigest()


def split_temporal(
    table: SessionTable, *, train_share: float = 0.8, valid_share: float = 0.1
) -> Split:
    """Order sessions by their last time stamp (ties: session id); first train, last test.

    Items of valid and test sessions that training never saw stay: they are the cold items.

    Raises:
        InputError: shares outside (0, 1), or too few sessions for three non-empty parts.
    """
    if not (0 < train_share < 1 and 0 < valid_share < 1 and train_share + valid_share < 1):
        raise InputError(
            f"train_share={train_share} and valid_share={valid_share} must be positive and sum to "
            "less than 1: the rest is the test part."
        )
    ids = np.array([table.session_id(k) for k in range(len(table))])
    order = np.lexsort((ids, table.last_times())).astype(np.int64)
    # Rounded against binary fractions: .8 + .1 is not .9.
    first = int(round(len(order) * train_share, 6))
    second = int(round(len(order) * (train_share + valid_share), 6))
    parts = [Part(table, part) for part in (order[:first], order[first:second], order[second:])]
    return _whole_sessions(*parts)


def split_leave_one_out(table: SessionTable) -> Split:
    """Split each sequence: last item → test target, second last → valid target, rest → train.

    As in RecBole, a sequence of 3 gives no valid row, and one of 2 only a training row, so that
    every sequence keeps at least one training row.

    Raises:
        InputError: no sequence is long enough for a valid and a test row.
    """
    lengths = table.lengths
    everything = np.arange(len(table))
    with_test = everything[lengths >= 3]
    with_valid = everything[lengths >= 4]
    dropped: IntArray = np.clip(lengths - 2, 0, 2).astype(np.int64)
    split = Split(
        train=Part(table, everything, dropped),
        valid=Part(table, with_valid, np.ones(len(with_valid), dtype=np.int64)),
        test=Part(table, with_test),
        everything=(Part(table, everything),),
    )
    return _refuse_empty(split)


def _whole_sessions(train: Part, valid: Part, test: Part) -> Split:
    return _refuse_empty(Split(train, valid, test, (train, valid, test)))


def _refuse_empty(split: Split) -> Split:
    sizes = {name: len(split.part(name)) for name in PARTS}
    if not all(sizes.values()):
        raise InputError(
            "Too few sessions for a split into three parts: "
            + ", ".join(f"{name} would have {size}" for name, size in sizes.items())
            + ". Loosen the filters, or choose other shares or another split rule."
        )
    return split


def cut_parts(
    split: Split, *, max_len: int, augment: bool
) -> dict[str, list[tuple[str, list[str]]]]:
    """Return each part's sessions as the benchmark files hold them.

    A row's list has at most the last `max_len` items before its target, so valid and test
    sessions, and training sessions without augmentation, shorten to ``max_len + 1`` items.
    """
    parts: dict[str, list[tuple[str, list[str]]]] = {}
    for name in PARTS:
        keep_whole = name == "train" and augment
        parts[name] = [
            (session_id, items if keep_whole else items[-(max_len + 1) :])
            for session_id, items in split.part(name)
        ]
    return parts
