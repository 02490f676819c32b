"""What RecBole's data set does row by row, done on whole columns; every result is the same.

Functions of arrays only: `SessionDataset` calls them and has the switches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]
_CHUNK = 1 << 16  # rows whose index matrix is held at once


def read_table(path: Path, columns: Sequence[str], types: dict[str, Any], **options: Any) -> Any:
    """Read columns of a separated file as RecBole does, by pandas' C parser.

    Args:
        path: the file.
        columns: header entries to read, in the file's order.
        types: dtype of each.
        options: ``delimiter``, one character, and ``encoding``.
    """
    return pd.read_csv(
        path,
        usecols=list(columns),
        dtype=types,
        engine="c",
        float_precision="round_trip",  # what RecBole's Python parser does
        **options,
    )


def split_lists(values: Sequence[Any], separator: str) -> list[Any]:
    """Split each row's text into a list of tokens; missing values and empty tokens give none."""
    rows = [value.split(separator) if isinstance(value, str) else [] for value in values]
    return [[part for part in row if part] if "" in row else row for row in rows]


def cut(flat: Ints, lengths: Sequence[int]) -> list[Ints]:
    """Return consecutive pieces of an array, as views."""
    ends = np.cumsum(lengths).tolist()
    return [flat[low:high] for low, high in zip([0, *ends[:-1]], ends, strict=True)]


def first_seen_vocabulary(tokens: Any) -> tuple[Any, Ints]:
    """Return the distinct tokens by first appearance and each token's place, -1 if missing."""
    codes, distinct = pd.factorize(tokens)
    return list(distinct), codes.astype(np.int64)


def sorted_vocabulary(tokens: Any) -> tuple[Any, Ints]:
    """Return the sorted distinct tokens and each token's place among them, -1 for a missing one."""
    codes, distinct = pd.factorize(tokens)
    names = np.asarray(distinct).astype(str)
    order = np.argsort(names, kind="stable")
    place = np.empty(len(order) + 1, dtype=np.int64)
    place[order] = np.arange(len(order))
    place[-1] = -1  # the code of a missing value
    return names[order], place[codes]


def flatten(rows: Sequence[Any]) -> Any:
    """Return the tokens of all rows, one after the other."""
    return np.fromiter(chain.from_iterable(rows), dtype=object)


def pad_rows(rows: Sequence[Any], width: int) -> Tensor:
    """Return arrays of numbers as one zero-padded matrix, (rows, longest but at most `width`)."""
    lengths = np.minimum([len(row) for row in rows], width)
    longest = int(lengths.max(initial=0))
    found = np.zeros((len(rows), longest), dtype=np.int64)
    kept = [row if len(row) <= width else row[:width] for row in rows]
    flat = np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)
    found[np.arange(longest) < lengths[:, None]] = flat
    return torch.from_numpy(found)


def prefix_windows(users: Ints, max_length: int) -> tuple[Ints, Ints, Ints]:
    """Return the windows of prefix augmentation over rows sorted by user and time.

    Row i predicts the item of row i from at most `max_length` rows of the same user before it; a
    user's first row predicts nothing.

    Args:
        users: (rows,), equal ones adjacent.
        max_length: longest window.

    Returns:
        Target rows, first row of each window, and window lengths, each (samples,).
    """
    rows = np.arange(len(users))
    first = np.ones(len(users), dtype=np.bool_)
    first[1:] = users[1:] != users[:-1]
    start = np.maximum.accumulate(np.where(first, rows, 0))
    targets = rows[~first]
    begin = np.maximum(start[targets], targets - max_length)
    return targets, begin, targets - begin


def gather_windows(values: Tensor, begin: Ints, lengths: Ints, shape: tuple[int, ...]) -> Tensor:
    """Return each window's values, zero-padded to the right.

    Args:
        values: (rows, …).
        begin, lengths: from `prefix_windows`.
        shape: of the result, (samples, width, …).
    """
    found = torch.zeros(shape, dtype=values.dtype)
    steps = torch.arange(shape[1])
    first, count = torch.from_numpy(begin), torch.from_numpy(lengths)
    for low in range(0, len(begin), _CHUNK):
        part = slice(low, low + _CHUNK)
        inside = steps < count[part].unsqueeze(1)
        rows = (first[part].unsqueeze(1) + steps)[inside]
        found[part][inside] = values[rows]
    return found


def leave_one_out(groups: Ints, held_out: int) -> list[Ints]:
    """Split rows into a training part and `held_out` parts of one row a group, RecBole's way.

    Args:
        groups: group of each row, (rows,); groups may be interleaved.
        held_out: number of held-out parts; a group of n rows gives at most n - 1, the last ones.

    Returns:
        Row numbers of each part, groups in the order of their first appearance.
    """
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    appearance = np.empty(len(first), dtype=np.int64)
    appearance[np.argsort(first, kind="stable")] = np.arange(len(first))
    group = appearance[inverse]
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=len(first))
    ends = np.repeat(np.cumsum(sizes), sizes)
    from_end = ends - 1 - np.arange(len(order))  # 0 for a group's last row
    taken = np.repeat(np.minimum(held_out, sizes - 1), sizes)
    parts = [order[from_end >= taken]]
    for part in range(held_out):
        place = held_out - 1 - part
        parts.append(order[(from_end == place) & (place < taken)])
    return parts
