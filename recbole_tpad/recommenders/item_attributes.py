"""Price, category and brand of items as small whole numbers, from the ``.item`` file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_tpad.errors import InputError, nearest

Ids = npt.NDArray[np.int64]
PRICE_SCALES = ("linear", "logistic")
PADDING, UNKNOWN, FIRST = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of every item.

    Attributes:
        of_item: value of each RecBole item id, (n_items,): 0 of the padding item, 1 unknown,
            from 2 the known values.
        count: values, padding and unknown included.
    """

    of_item: Ids
    count: int


def read_columns(config: Any, dataset: Any, names: Sequence[str]) -> dict[str, list[str]]:
    """Read columns of ``<data set>.item``, by RecBole's item id; "" is missing, and id 0 is "".

    Args:
        config: with ``data_path``, the data set's folder.
        dataset: RecBole's, for the item tokens.
        names: columns without their types.

    Raises:
        InputError: no such file, no such column, or a line of another length.
    """
    folder = Path(config["data_path"])
    path = folder / f"{folder.name}.item"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(
            f"This model needs items' prices and categories, and {path} cannot be read: "
            f"{error.strerror}."
        ) from error
    columns = [column.partition(":")[0] for column in lines[0].split("\t")]
    for name in names:
        if name not in columns[1:]:
            raise InputError(
                f"{path} has no column '{name}', which this model reads."
                f"{nearest(name, columns[1:])} It has: {', '.join(columns[1:])}."
            )
    place = {str(t): k for k, t in enumerate(dataset.field2id_token[dataset.iid_field])}
    found = {name: [""] * dataset.item_num for name in names}
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(columns):
            if line:
                raise InputError(
                    f"{path}, line {number}: {len(cells)} columns, not {len(columns)}."
                )
            continue
        row = place.get(cells[0])
        if row:
            for name in names:
                found[name][row] = cells[columns.index(name)].strip()
    return found


def codes(values: Sequence[str]) -> Attribute:
    """Number the distinct values in sorted order."""
    number = {value: k for k, value in enumerate(sorted({v for v in values if v}), start=FIRST)}
    of_item = np.array([number.get(value, UNKNOWN) for value in values], dtype=np.int64)
    of_item[0] = PADDING
    return Attribute(of_item, FIRST + len(number))


def price_levels(
    prices: Sequence[str], categories: Ids, levels: int, scale: str = "linear"
) -> Attribute:
    """Price levels of items inside their category.

    ``linear``: ⌊(p − min)/(max − min) · levels⌋ of the category's prices (MMSBR's preprocessing).
    ``logistic``: the same on Φ(p), Φ the logistic distribution with the category's mean and
    deviation (BiPNet's paper). Both are cut to the highest level. Where a category has one price
    only the middle level is taken (assumption; the public code drops such items).

    Args:
        prices: as text, by item id; "" or 0 is unknown.
        categories: by item id.
        levels: how many.
        scale: see above.

    Raises:
        InputError: a price that is no number, fewer than one level, an unknown scale.
    """
    if levels < 1:
        raise InputError(f"price_levels={levels} must be at least 1.")
    if scale not in PRICE_SCALES:
        raise InputError(
            f"price_scale='{scale}' is unknown.{nearest(scale, PRICE_SCALES)} "
            f"Known: {', '.join(PRICE_SCALES)}."
        )
    amount = np.array([_number(p) for p in prices])
    of_item = np.full(len(amount), UNKNOWN, dtype=np.int64)
    of_item[0] = PADDING
    known = np.isfinite(amount) & (amount > 0)
    known[0] = False
    for category in np.unique(categories[known]):
        rows = np.flatnonzero(known & (categories == category))
        own = amount[rows]
        if scale == "logistic" and own.std() > 0:
            width = own.std() * math.sqrt(3) / math.pi
            own = 1 / (1 + np.exp(-(own - own.mean()) / width))
        spread = own.max() - own.min()
        if spread == 0:
            of_item[rows] = FIRST + levels // 2
        else:
            level = ((own - own.min()) / spread * levels).astype(np.int64)
            of_item[rows] = FIRST + np.minimum(level, levels - 1)
    return Attribute(of_item, FIRST + levels)


def _number(text: str) -> float:
    if not text:
        return math.nan
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"The column 'price' holds {text!r}, which is not a number.") from error
