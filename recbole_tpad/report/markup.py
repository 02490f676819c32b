"""HTML and SVG elements as strings; everything that is not an element already is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = frozenset({"meta", "br", "hr", "img", "line", "circle", "rect", "path"})


class Html(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


def text(value: object) -> Html:
    """Return a value as escaped text; markup passes unchanged."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """Return parts one after another, each escaped unless it is markup."""
    return Html(separator.join(text(part) for part in parts))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return an element.

    Attribute names have `_` for `-` and may end in `_` to avoid keywords (`class_`); a value of
    None leaves the attribute out. A child of None is left out; a list is flattened.
    """
    pieces = [name]
    for key, value in attributes.items():
        if value is not None:
            shown = number(value) if isinstance(value, float) else value
            pieces.append(f'{key.rstrip("_").replace("_", "-")}="{text(str(shown))}"')
    opening = " ".join(pieces)
    if not children and name in VOID:
        return Html(f"<{opening}/>")
    inner = "".join(
        join(child) if isinstance(child, list | tuple) else text(child)
        for child in children
        if child is not None
    )
    return Html(f"<{opening}>{inner}</{name}>")


def number(value: float) -> str:
    """Return a coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
