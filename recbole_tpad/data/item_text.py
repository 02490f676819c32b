"""An item's text from a template such as ``{title}, {brand}``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from recbole_tpad.data.item import Item
from recbole_tpad.errors import InputError

FIELDS = ("title", "brand", "category", "description")


def check_item_text(template: str, fields: Sequence[str] = FIELDS, *, why: str = "") -> None:
    """Refuse a template with placeholders that are no item fields.

    Args:
        template: the text.
        fields: placeholders it may use.
        why: a sentence to add to the message.

    Raises:
        InputError: naming the placeholder.
    """
    rest = re.sub(r"\{(" + "|".join(fields) + r")\}", "", template)
    other = re.search(r"\{[^{}]*\}|[{}].*", rest)
    if other:
        known = ", ".join(f"{{{name}}}" for name in fields)
        raise InputError(
            f"item_text is {template!r}: '{other.group()}' is not one of {known}. {why}".rstrip()
        )


def item_text(item: Item, template: str) -> str:
    """Fill in the template; absent fields leave no stray punctuation at the ends."""
    filled = template.format(**{name: getattr(item, name) for name in FIELDS})
    return " ".join(filled.split()).strip(" ,.;")
