"""What a user can say about tables: which column is what, sessions, filters, split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dataset_converters.errors import InputError
from dataset_converters.sessions import SessionRule

TableSplit = Literal["temporal", "leave-one-out", "given"]
TABLE_SPLITS: tuple[TableSplit, ...] = ("temporal", "leave-one-out", "given")
# Microseconds in a unit of time.
TIME_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}


@dataclass(frozen=True, slots=True)
class TableOptions:
    """Sessions, filters and split of a conversion from tables.

    Attributes:
        sessions: None: "user"; a session column always makes one session of its rows.
        split: None: "given" with a split column, else "temporal" with a time column, else
            "leave-one-out".
        time_unit: of numbers in the time column: "s", "ms", "us", or "auto", by their size.
        min_rating: leave out interactions with a lower rating.
        drop_repeats: keep the first of several rows with one user, item and time.
        min_session_length: drop shorter sessions, before and after the item filter.
        min_item_count: drop items with fewer interactions in the remaining sessions, once.
        max_session_length: keep the first so many interactions of a session; None: all.
        augment: one training row for every prefix of a session instead of one a session.
        max_len: most context items in a row; the last ones are kept.
        train_share, valid_share: of the sessions under "temporal".
    """

    sessions: SessionRule | None = None
    split: TableSplit | None = None
    time_unit: str = "auto"
    min_rating: float | None = None
    drop_repeats: bool = False
    min_session_length: int = 2
    min_item_count: int = 1
    max_session_length: int | None = None
    augment: bool = True
    max_len: int = 50
    train_share: float = 0.8
    valid_share: float = 0.1

    def __post_init__(self) -> None:
        if self.time_unit != "auto" and self.time_unit not in TIME_UNITS:
            raise InputError(
                f"Unknown time_unit '{self.time_unit}': auto, {', '.join(TIME_UNITS)}."
            )
        if self.min_session_length < 2 or self.min_item_count < 1 or self.max_len < 1:
            raise InputError(
                "min_session_length must be at least 2, min_item_count and max_len at least 1."
            )
        if self.max_session_length is not None and self.max_session_length < 2:
            raise InputError("max_session_length must be at least 2: a context item and a target.")


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """The tables' columns, as named by the user; None looks for a common name.

    Attributes:
        items_id: the id column of the items table; None: the interactions' name for it, if the
            items table has it, else a common name.
        split: a column of the words train, valid and test; None: there is none.
    """

    user: str | None = None
    session: str | None = None
    item: str | None = None
    time: str | None = None
    rating: str | None = None
    split: str | None = None
    items_id: str | None = None
    title: str | None = None
    brand: str | None = None
    category: str | None = None
    description: str | None = None
    price: str | None = None
    image_url: str | None = None
