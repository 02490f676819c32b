"""A batch in parts that fit a token budget: gradient accumulation with little padding."""

from __future__ import annotations

import torch


def micro_batches(rows: torch.Tensor, lengths: torch.Tensor, tokens: int) -> list[torch.Tensor]:
    """Cut a batch into parts of similar length.

    The sum of the parts' gradients is the batch's, so nothing but time and memory depends on the
    cut, unlike with batches that are made of items of one length.

    Args:
        rows: (B,) int64 item rows.
        lengths: (N,) tokens of every item's prompt with its answer.
        tokens: padded tokens a part may have; at least one item a part. 0 keeps the batch whole.

    Returns:
        The rows in parts, longest items first; the rows as they are where one part holds all.
    """
    if len(rows) == 0:
        return []
    if tokens == 0:
        return [rows]
    order = rows[torch.argsort(lengths[rows], descending=True, stable=True)]
    parts, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        size = max(1, tokens // max(1, longest))
        parts.append(order[start : start + size])
        start += size
    return parts if len(parts) > 1 else [rows]
