"""What a source says about one item, and how the data set folder's files hold it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

ITEM_HEADER = "item_id:token\ttitle:token_seq\tbrand:token\tcategory:token\tprice:float\n"
ITEM_COUNTS = tuple(
    f"items_with_{what}"
    for what in ("title", "brand", "category", "description", "price", "image_url")
)
# Made once: to make an encoder takes as long as to use it.
_to_json = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class ItemContent:
    """What a source says about one item; empty values where it says nothing.

    Attributes:
        category: the last, most specific, entry of `category_path`.
        price: in the source's currency.
        has_large_image: an image URL that the source calls high resolution, or any image URL where
            it makes no difference between sizes. Not written to the folder.
        smaller_image_urls: for each of `image_urls` the source's smaller sizes, large to small;
            empty where it has none at all.
    """

    item_id: str
    title: str = ""
    brand: str = ""
    category_path: tuple[str, ...] = ()
    description: str = ""
    features: tuple[str, ...] = ()
    price: float | None = None
    image_urls: tuple[str, ...] = ()
    has_large_image: bool = False
    smaller_image_urls: tuple[tuple[str, ...], ...] = ()

    @property
    def category(self) -> str:
        return self.category_path[-1] if self.category_path else ""

    @property
    def filled(self) -> int:
        """How many of the content fields have a value."""
        fields = (
            self.title,
            self.brand,
            self.category_path,
            self.description,
            self.features,
            self.price is not None,
            self.image_urls,
        )
        return sum(map(bool, fields))

    def to_json(self) -> dict[str, Any]:
        """Return the item's object in ``items.jsonl``; tuples are its lists."""
        row: dict[str, Any] = {
            "item_id": self.item_id,
            "title": self.title,
            "brand": self.brand,
            "category": self.category,
            "category_path": self.category_path,
            "description": self.description,
            "features": self.features,
            "price": self.price,
            "image_urls": self.image_urls,
        }
        if self.smaller_image_urls:
            row["smaller_image_urls"] = self.smaller_image_urls
        return row

    def to_line(self) -> str:
        """Return the item's line in ``items.jsonl``, without the line end."""
        return _to_json(self.to_json())


class ItemRow(NamedTuple):
    """What the folder's files say about one item.

    Attributes:
        present: one digit, 0 or 1, for each of `ITEM_COUNTS`.
        cells: the row of the ``.item`` file, without the line end.
        line: the line of ``items.jsonl``, without the line end; it has no tab.
    """

    present: str
    cells: str
    line: str


def item_row(item: ItemContent) -> ItemRow:
    """Return the rows of an item."""
    title, brand, category = item.title, item.brand, item.category
    price = "" if item.price is None else repr(item.price)
    cells = f"{item.item_id}\t{_cell(title)}\t{_cell(brand)}\t{_cell(category)}\t{price}"
    values = (title, brand, category, item.description, price, item.image_urls)
    return ItemRow("".join(["1" if value else "0" for value in values]), cells, item.to_line())


def _cell(text: str) -> str:
    # A double quote at a cell's start would make pandas read on to the next quote, rows later.
    return " ".join(text.replace('"', "'").split())
