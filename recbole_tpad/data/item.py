"""What is known about one item."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Item:
    """One item's content; empty strings, None and () where the source has nothing.

    Attributes:
        category: the most specific category, an answer the model learns to give.
        price: in the source's currency.
        image: a decodable image file.
        keywords: visual keywords from an annotator.
        features: the source's bullet points.
        category_path: general to specific; `category` is its last entry.
    """

    item_id: str
    title: str
    brand: str
    category: str
    description: str
    price: float | None
    image: Path | None
    keywords: tuple[str, ...]
    features: tuple[str, ...] = ()
    category_path: tuple[str, ...] = ()
