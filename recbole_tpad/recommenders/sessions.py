"""The training sessions, read back from what RecBole will actually train on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_converters.split import split_sha256

Ids = npt.NDArray[np.int64]


def training_sessions(dataset: Any) -> tuple[Ids, list[Ids]]:
    """Rebuild each training session once, so that prefix augmentation multiplies no count.

    A session is the list of its first row followed by each of its rows' targets, in row order.

    Args:
        dataset: RecBole's built training data set (its ``inter_feat`` holds tensors).

    Returns:
        RecBole's session ids, shape (S,), in order of first appearance, and for each session its
        item ids, shape (length,), without padding.
    """
    rows = dataset.inter_feat
    users = rows[dataset.uid_field].numpy()
    targets = rows[dataset.iid_field].numpy()
    lists = rows[dataset.iid_field + dataset.config["LIST_SUFFIX"]].numpy()
    lengths = rows[dataset.item_list_length_field].numpy()
    order = np.argsort(users, kind="stable")
    starts = np.flatnonzero(np.diff(users[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    first_rows = order[starts]
    sessions = []
    by_appearance = np.argsort(first_rows, kind="stable")
    for k in by_appearance:
        first = first_rows[k]
        prefix = lists[first, : lengths[first]]
        sessions.append(np.concatenate([prefix, targets[order[starts[k] : ends[k]]]]))
    return users[first_rows[by_appearance]], sessions


def training_fingerprint(dataset: Any) -> str:
    """Return the SHA-256 of RecBole's training sessions, comparable to ``split.json``'s."""
    session_token = dataset.field2id_token[dataset.uid_field]
    item_token = dataset.field2id_token[dataset.iid_field]
    users, sessions = training_sessions(dataset)
    return split_sha256(
        (str(session_token[u]), [str(t) for t in item_token[s]])
        for u, s in zip(users, sessions, strict=True)
    )


def training_item_counts(dataset: Any) -> Ids:
    """Return how often each item occurs in the training sessions, shape (n_items,)."""
    _, sessions = training_sessions(dataset)
    flat = np.concatenate(sessions) if sessions else np.zeros(0, dtype=np.int64)
    return np.bincount(flat, minlength=dataset.item_num).astype(np.int64)
