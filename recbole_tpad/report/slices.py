"""The report's section on how often a target occurs in training."""

from __future__ import annotations

from collections.abc import Sequence

from recbole_tpad.report.charts import Line, bar_chart, line_chart
from recbole_tpad.report.markup import Html, join, tag
from recbole_tpad.report.page import Section, caption, figure, legend
from recbole_tpad.report.sections import DASH, NONE, Colours, mark_rows
from recbole_tpad.results import SLICES, Group

SLICE_TITLES = {
    "warm": "Warm targets: 5 or more training interactions",
    "rare": "Rare targets: 1 to 4 training interactions",
    "unseen": "Unseen targets: no training interaction",
}


def slices_section(groups: Sequence[Group], colours: Colours) -> Section:
    """Return HR@10 by how often the target occurs in training."""
    charts = []
    for name in SLICES:
        rows = mark_rows(groups, colours, name, slices=(name,))
        count = max(
            (int(r.slices.get(name, {}).get("rows", 0)) for g in groups for r in g.rows), default=0
        )
        sessions = "1 test session" if count == 1 else f"{count:,} test sessions"
        note = sessions + ("; too few to compare" if 0 < count < 30 else "")
        charts.append(
            figure(SLICE_TITLES[name], bar_chart(SLICE_TITLES[name], rows, x_label="HR@10"), note)
        )
    charts += _frequency_charts(groups, colours)
    body = [
        caption(
            "Test sessions by how often their target occurs in training. Item embeddings carry "
            "content, so they should help most where interactions say little."
        ),
        legend(colours.entries),
        tag("div", charts, class_="charts"),
    ]
    return Section("slices", "Warm, rare and unseen targets", join(body))


def _frequency_charts(groups: Sequence[Group], colours: Colours) -> list[Html]:
    """One chart a model: HR@10 over the training frequency of the target, by bins."""
    bins = {
        (part["from"], part["to"]): part["rows"]
        for group in groups
        for row in group.rows
        for part in row.by_frequency
    }
    order = sorted(bins, key=lambda ends: ends[0] or 0)
    if len(order) < 2:
        return []
    names = [_bin_name(*ends) for ends in order]
    charts = []
    for model in dict.fromkeys(group.model for group in groups):
        lines = []
        for group in groups:
            if group.model != model:
                continue
            values: dict[tuple[float | None, float | None], list[float]] = {}
            for row in group.rows:
                for part in row.by_frequency:
                    if part.get("HR@10") is not None:
                        values.setdefault((part["from"], part["to"]), []).append(
                            float(part["HR@10"] or 0)
                        )
            points = [
                (float(order.index(ends)), sum(found) / len(found))
                for ends, found in sorted(values.items(), key=lambda item: item[0][0] or 0)
            ]
            name = f"{model}, {group.item_embeddings or NONE}"
            lines.append(Line(name, points, colours[group.item_embeddings]))
        title = f"{model}: HR@10 by training interactions of the target"
        chart = line_chart(
            title, lines, x_label="training interactions", from_zero=True, x_names=names
        )
        rows = ", ".join(f"{bins[ends]:,.0f}" for ends in order)
        charts.append(figure(title, chart, f"Test sessions: {rows}"))
    return charts


def _bin_name(low: float | None, high: float | None) -> str:
    if high is None:
        return f"{low or 0:g}+"
    return f"{low or 0:g}" if low == high else f"{low or 0:g}{DASH}{high:g}"
