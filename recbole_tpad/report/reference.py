"""The section that shows what each change of the reference embeddings costs: ablations."""

from __future__ import annotations

from recbole_tpad.report.charts import Mark, dot_chart
from recbole_tpad.report.markup import Html, join, tag
from recbole_tpad.report.page import Section, caption, figure, legend
from recbole_tpad.results import Comparison, Results

_METRIC = "NDCG@10"


def reference_section(results: Results) -> Section | None:
    """Return a chart a model and kind of targets; None for a suite without a reference."""
    found: dict[tuple[str, str], list[Comparison]] = {}
    for entry in results.comparisons:
        if entry.kind == "reference" and entry.metric == _METRIC:
            found.setdefault((entry.targets, entry.model), []).append(entry)
    if not found:
        return None
    name = next(iter(found.values()))[0].against[1] or ""
    charts = []
    for (targets, model), entries in found.items():
        title = f"{model}: {_METRIC}, {targets} targets"
        rows = [(e.item_embeddings or "none", [_mark(e)]) for e in entries]
        # The reference itself, so that zero is on the chart and named.
        rows.insert(0, (name, [Mark(name, 0.0, "c0")]))
        chart = dot_chart(title, rows, x_label=f"{_METRIC}, difference from {name}")
        charts.append(figure(title, chart))
    body: list[Html] = [
        caption(
            f"Difference from the same model with {name}; left of zero is worse. Bar: 95% interval "
            "of a bootstrap over test sessions and seeds."
        ),
        legend(
            [
                ("c7", "certainly worse"),
                ("c3", "certainly better"),
                ("c8", "not certain"),
                ("c0", "reference"),
            ]
        ),
        tag("div", charts, class_="charts"),
    ]
    return Section("reference", f"What becomes of {name} when it is changed", join(body))


def _mark(entry: Comparison) -> Mark:
    colour = "c8"
    if entry.certain:
        colour = "c3" if entry.difference > 0 else "c7"
    name = f"{entry.model}, {entry.item_embeddings}"
    return Mark(name, entry.difference, colour, entry.low, entry.high)
