"""The report's section about the data: the report card that `describe` makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_tpad.report.charts import Mark, bar_chart
from recbole_tpad.report.markup import Html, join, tag
from recbole_tpad.report.page import Section, caption, facts, figure

_CONTENT = ("title", "brand", "category", "description", "price", "image", "keywords")


def data_section(card: Any) -> Section | None:
    """Return what must be known about the data; None where the results hold no report card."""
    if not isinstance(card, Mapping) or not isinstance(card.get("counts"), Mapping):
        return None
    counts, length = card["counts"], card.get("session_length") or {}
    test = (card.get("parts") or {}).get("test") or {}
    overlap, popularity = card.get("train_test_overlap") or {}, card.get("popularity") or {}
    pairs: list[tuple[str, object]] = [
        (label, f"{value:,}")
        for label, value in (
            ("Sessions", counts.get("sessions")),
            ("Interactions", counts.get("interactions")),
            ("Items", counts.get("items")),
            ("Items unseen in training", counts.get("items_unseen_in_train")),
        )
        if isinstance(value, int)
    ]
    if isinstance(length.get("mean"), int | float):
        pairs.append(("Mean session length", f"{length['mean']:.2f}"))
    for label, source, key in (
        ("Target repeats the last item", test, "target_repeats_last"),
        ("Target occurs in its context", test, "target_in_context"),
        ("Test sessions that training holds item by item", overlap, "test_sessions_in_train"),
        ("Test targets among the ten most popular", popularity, "test_targets_in_top_10"),
    ):
        if isinstance(source.get(key), int | float):
            pairs.append((label, f"{100 * source[key]:.1f} %"))
    charts = []
    histogram = length.get("histogram")
    if isinstance(histogram, Mapping) and histogram:
        bars = [(str(k), [Mark(f"{k} items", float(v), "c1")]) for k, v in histogram.items()]
        charts.append(
            figure("Session lengths", bar_chart("Session lengths", bars, x_label="sessions"))
        )
    covered = (card.get("coverage") or {}).get("items") or {}
    bars = [
        (name, [Mark(f"items with {name}", float(covered[name]), "c1")])
        for name in _CONTENT
        if isinstance(covered.get(name), int | float)
    ]
    if bars:
        title = "Share of items with content"
        charts.append(figure(title, bar_chart(title, bars, x_label="share of items")))
    body: list[Html] = [facts(pairs), tag("div", charts, class_="charts")]
    listed = card.get("warnings") or []
    warnings = [str(w["text"]) for w in listed if isinstance(w, Mapping) and "text" in w]
    if warnings:
        body.append(caption("Where results on this data set would mislead:"))
        body += [tag("p", words, class_="warn") for words in warnings]
    return Section("data", "The data", join(body))
