"""The section on ID space and embedding space: their gap, and both on one map."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from recbole_tpad.report.charts import Point, scatter_chart
from recbole_tpad.report.markup import Html, join, tag
from recbole_tpad.report.page import Section, caption, figure, legend
from recbole_tpad.results import Group, Spaces, Spread, spread

_COLUMNS: tuple[tuple[str, Callable[[Spaces], float]], ...] = (
    ("Gap", lambda s: s.gap),
    ("Told apart", lambda s: s.separability),
    ("Shared neighbours", lambda s: s.overlap),
    ("by chance", lambda s: s.chance),
)


def spaces_section(groups: Sequence[Group]) -> Section | None:
    """Return a table of all rows and a map of each row's first seed; None without any."""
    kept = [
        (group, spaces)
        for group in groups
        if (spaces := [r.item_spaces for r in group.rows if r.item_spaces is not None])
    ]
    if not kept:
        return None
    head = tag(
        "thead",
        tag(
            "tr",
            [tag("th", name, class_="name") for name in ("Model", "Item embeddings")],
            [tag("th", name) for name in ("Items", *(name for name, _ in _COLUMNS))],
        ),
    )
    rows, charts = [], []
    for group, spaces in kept:
        values = [spread(value(s) for s in spaces) for _, value in _COLUMNS]
        rows.append(
            tag(
                "tr",
                tag("td", group.model, class_="name"),
                tag("td", group.item_embeddings or "none", class_="name"),
                tag("td", f"{spaces[0].items:,}"),
                [tag("td", _shown(value)) for value in values],
            )
        )
        title = f"{group.model}, {group.item_embeddings}"
        charts.append(figure(title, scatter_chart(title, _points(spaces[0]))))
    body: list[Html] = [
        caption(
            "The vector a trained model has for an item's ID beside the one it makes of its "
            "content, both at length 1. Gap: distance between the means of both sets, 0 to 2. Told "
            "apart: how often a linear classifier knows an ID from content on items it has not "
            "seen; .5 is a coin. Shared neighbours: of an item's ten nearest, the share common to "
            "both spaces."
        ),
        tag("div", tag("table", head, tag("tbody", rows)), class_="scroll"),
        legend([("c1", "ID"), ("c2", "content")]),
        tag("div", charts, class_="charts"),
        caption("Maps are t-SNE of both sets together, of the first seed."),
    ]
    return Section("spaces", "ID space and embedding space", join(body))


def _points(spaces: Spaces) -> list[Point]:
    ids = len(spaces.points) // 2
    return [
        Point(x, y, "c1" if n < ids else "c2", "ID" if n < ids else "content")
        for n, (x, y) in enumerate(spaces.points)
    ]


def _shown(value: Spread | None) -> Html:
    assert value is not None  # every run kept has all numbers
    sd = tag("span", f" ± {value.sd:.3f}", class_="sd") if value.sd is not None else None
    return join([f"{value.mean:.3f}", sd or ""])
