"""A page of items and their nearest neighbours, with thumbnails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_tpad.report.examples import item_label
from recbole_tpad.report.markup import Html, join, tag
from recbole_tpad.report.page import Section, caption, facts, page


def neighbours_page(content: Mapping[str, Any]) -> str:
    """Return the HTML document.

    Args:
        content: ``store`` (its facts, name → value), ``measure`` (what nearness is, in words),
            ``items`` (id → title and image, a data URI or None) and ``found`` (one mapping an item
            asked for: ``item`` and ``neighbours``, pairs of id and cosine).
    """
    items = content["items"]
    title = f"Nearest items in {content['store']['store']}"
    lead = tag("header", tag("h1", title), facts(list(content["store"].items())))
    found = [_found(items, entry["item"], entry["neighbours"]) for entry in content["found"]]
    body = join([caption(str(content["measure"])), *found])
    return page(title, lead, [Section("neighbours", "Neighbours", body)])


def _found(items: Mapping[str, Any], item_id: str, neighbours: Sequence[tuple[str, float]]) -> Html:
    listed = [
        tag("li", item_label(items, other), tag("span", f"{cosine:.3f}", class_="why"))
        for other, cosine in neighbours
    ]
    return tag(
        "div",
        tag("ul", tag("li", item_label(items, item_id)), class_="items across"),
        tag("ol", listed, class_="items"),
        class_="example",
    )
