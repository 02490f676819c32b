"""Histories of items a session did not hold, which DIEN's auxiliary loss compares with the real."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def needs_negative_histories(model_class: type) -> bool:
    """Whether a model is RecBole's DIEN or built on it."""
    return any(base.__name__ == "DIEN" for base in model_class.__mro__)


def negative_history(items: Tensor, n_items: int, generator: torch.Generator) -> Tensor:
    """Draw for each item a uniform other one.

    Args:
        items: (rows, width) item ids, 0 is padding and stays.
        n_items: ids run from 1 to n_items - 1.
        generator: of the draw.
    """
    drawn = torch.randint(1, max(n_items - 1, 2), items.shape, generator=generator)
    other = drawn + (drawn >= items)
    return torch.where(items > 0, other, 0)


def add_negative_histories(parts: Sequence[Any], config: Any) -> None:
    """Add the field RecBole's own data set gives DIEN only where it augments the data itself."""
    field = str(config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"])
    generator = torch.Generator().manual_seed(int(config["seed"]))
    for part in parts:
        items = part.inter_feat[field]
        found = negative_history(items, part.item_num, generator)
        part.inter_feat[str(config["NEG_PREFIX"]) + field] = found
