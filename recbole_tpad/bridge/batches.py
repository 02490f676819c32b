"""Batches: which rows stand together, and how much padding is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

_POOL = 50  # batches

# Models whose scores do not change when padding to the right is cut off.
TRIMMED = {
    "BERT4Rec",
    "BiPNet",
    "CORE",
    "CoOccurrence",
    "DIMO",
    "FDSA",
    "FPMC",
    "GCSAN",
    "GRU4Rec",
    "GRU4RecF",
    "HRM",
    "MMSBR",
    "NARM",
    "Popularity",
    "RepeatLast",
    "SASRec",
    "SASRecF",
    "SKNN",
    "SPop",
    "SRGNN",
    "STAMP",
    "TransRec",
}


def list_field(config: Any) -> str:
    """Return the field that holds a row's context items."""
    return str(config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"])


def trimmed(config: Any, interaction: Any) -> Any:
    """Cut off the padding that all rows of a batch share, for the models of `TRIMMED`."""
    if config["model"] not in TRIMMED or config["trim_padding"] is False:
        return interaction
    longest = int(interaction[config["ITEM_LIST_LENGTH_FIELD"]].max())
    field = list_field(config)
    items = interaction[field]
    if longest >= items.shape[1]:
        return interaction
    kept = dict(interaction.interaction)
    kept[field] = items[:, :longest]
    return Interaction(kept)


def by_length(config: Any, train_data: Any) -> Iterator[Any]:
    """Yield an epoch's batches with sessions of similar length in each.

    The rows are shuffled, cut into pools of `_POOL` batches, sorted by length within a pool, and
    the batches shuffled again: chance stays in what is together and in the order.
    """
    lengths = train_data._dataset.inter_feat[config["ITEM_LIST_LENGTH_FIELD"]]
    generator, size = train_data.generator, int(train_data.step)
    order = torch.randperm(len(lengths), generator=generator)
    batches: list[Tensor] = []
    for pool in torch.split(order, size * _POOL):
        batches += torch.split(pool[lengths[pool].argsort(stable=True)], size)
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield train_data.collate_fn(batches[index].numpy())


def shuffled(config: Any, interaction: Any, generator: torch.Generator | None = None) -> Any:
    """Put each row's context into random order, its features with it.

    The control ``shuffle_history``: what a model still scores then, it does not owe to order.
    """
    field = list_field(config)
    items = interaction[field]
    keys = torch.rand(items.shape, generator=generator).to(items.device)
    # Padding keeps its place at the end.
    order = keys.masked_fill(items == 0, 2.0).argsort(dim=1, stable=True)
    changed = dict(interaction.interaction)
    for name, rows in changed.items():
        if name.endswith(str(config["LIST_SUFFIX"])) and rows.shape[:2] == items.shape:
            index = order.view(*order.shape, *[1] * (rows.dim() - 2)).expand_as(rows)
            changed[name] = rows.gather(1, index)
    return Interaction(changed)
