"""The report's section with test sessions and what is recommended to them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from recbole_tpad.report.markup import Html, join, tag
from recbole_tpad.report.page import Section, caption

# Only what evaluation writes: a results file may come from anywhere.
_IMAGE = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/]+={0,2}")


def examples_section(content: Any) -> Section | None:
    """Return the examples; None where the results hold none."""
    if not isinstance(content, Mapping) or not content.get("sessions"):
        return None
    items, rows = content.get("items") or {}, content.get("rows") or []
    body: list[Html] = [
        caption(
            "Test sessions spread evenly over the test part, not chosen for their results. The "
            "item that really followed is marked."
        )
    ]
    for session in content["sessions"]:
        context = [tag("li", item_label(items, i)) for i in session["context"]]
        target = session["target"]
        lists = []
        for row, shown in zip(rows, session["shown"], strict=False):
            name = f"{row['model']} with {row['item_embeddings'] or 'no item embeddings'}"
            reasons = shown.get("reasons") or [None] * len(shown["top"])
            best = [
                tag(
                    "li",
                    item_label(items, i),
                    _reason(items, why),
                    class_="hit" if i == target else None,
                )
                for i, why in zip(shown["top"], reasons, strict=False)
            ]
            place = f"{name}: rank {shown['rank']}"
            lists.append(tag("div", tag("h4", place), tag("ol", best, class_="items")))
        body.append(
            tag(
                "div",
                tag("h4", "Seen, oldest first"),
                tag("ul", context, class_="items across"),
                tag("h4", "Then"),
                tag("ul", tag("li", item_label(items, target)), class_="items across"),
                tag("div", lists, class_="pair"),
                class_="example",
            )
        )
    return Section("examples", "Examples", join(body))


def item_label(items: Mapping[str, Any], item_id: str) -> Html:
    """Return an item's thumbnail and title; `items`: id → title and image, a data URI or None."""
    found = items.get(item_id) or {}
    title = str(found.get("title") or item_id)
    shown = title if len(title) <= 70 else title[:69] + "…"
    image = str(found.get("image") or "")
    picture = tag("img", src=image, alt="") if _IMAGE.fullmatch(image) else None
    return tag("span", picture, shown, class_="item", title=title)


def _reason(items: Mapping[str, Any], why: Any) -> Html | None:
    if not isinstance(why, Mapping):
        return None
    item_id = str(why.get("item"))
    other = str((items.get(item_id) or {}).get("title") or item_id)
    other = other if len(other) <= 40 else other[:39] + "…"
    times = why.get("times")
    words = {
        "bought together": f"bought together with “{other}”"
        + (f", {times} times" if isinstance(times, int) and times > 1 else ""),
        "connected": f"bought by the same sort of sessions as “{other}”",
        "repeated": "already in this session",
        "similar": f"similar to “{other}” by content",
    }.get(str(why.get("reason")))
    return tag("span", words, class_="why") if words else None
