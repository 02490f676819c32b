"""Scales, ticks, markup and charts."""

from __future__ import annotations

import math
import re

import pytest

from recbole_tpad.report.charts import (
    MAX_POINTS,
    Line,
    Mark,
    Point,
    bar_chart,
    cost_chart,
    line_chart,
    thinned,
)
from recbole_tpad.report.markup import Html, tag
from recbole_tpad.report.scale import Scale, fitted, log_ticks, tick_text


def test_markup_escapes_text_and_keeps_markup() -> None:
    assert tag("p", "<b>", Html("<i>x</i>"), [tag("b", 1)]) == "<p>&lt;b&gt;<i>x</i><b>1</b></p>"
    assert tag("a", "x", class_='"', stroke_width=1.5, href=None) == (
        '<a class="&quot;" stroke-width="1.5">x</a>'
    )
    assert tag("path", d="M0 0") == '<path d="M0 0"/>'


@pytest.mark.parametrize(
    "values",
    [[0.0], [3.0], [-2.0, 5.0], [1e-6, 2e-6], [1e5, 3e5], [0.0123, 0.0124], [], [1.0, 1.0]],
)
def test_fitted_scales_hold_their_values_and_have_distinct_ticks(values: list[float]) -> None:
    scale = fitted(values, 0.0, 100.0)
    assert all(-1e-6 <= scale(v) <= 100 + 1e-6 for v in values)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 7
    labels = [tick_text(tick, ticks) for tick in ticks]
    assert len(set(labels)) == len(labels)


def test_from_zero_contains_zero() -> None:
    assert fitted([3.0, 5.0], 0, 1, from_zero=True).low == 0
    assert fitted([-3.0, -1.0], 0, 1, from_zero=True).high == 0


def test_ticks_are_round() -> None:
    assert Scale(0.0, 1.0, 0, 1).ticks(4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert tick_text(0.25, [0.0, 0.25]) == "0.25"
    assert tick_text(20_000, [0, 20_000]) == "20k"


def test_long_curves_are_thinned_to_their_shape() -> None:
    points = [(float(i), math.sin(i / 500)) for i in range(5000)]
    kept = thinned(points)
    assert len(kept) == MAX_POINTS
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]


def test_line_chart_leaves_out_what_is_not_a_number() -> None:
    line = Line("a", [(0.0, 1.0), (1.0, math.nan), (2.0, math.inf), (3.0, 2.0)], "c1")
    chart = line_chart("t", [line], x_label="epoch")
    assert "nan" not in chart
    assert "inf" not in chart
    assert line_chart("t", [Line("a", [(0.0, math.nan)], "c1")], x_label="x") == (
        '<p class="empty">No values were recorded.</p>'
    )
    assert "<circle" in line_chart("t", [Line("a", [(1.0, 2.0)], "c1")], x_label="x")


def test_bars_start_at_zero() -> None:
    chart = bar_chart("t", [("m", [Mark("a", 0.5, "c1"), Mark("b", 0.0, "c0")])], x_label="HR")
    assert 'x="104"' in chart
    assert "b: 0.0000" in chart
    assert "No values" in bar_chart("t", [("m", [])], x_label="HR")


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.4), (-1.0, 2.0), (0.0, 6.0), (-9.0, 9.0)])
def test_ticks_of_a_logarithmic_axis(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 1 <= len(ticks) <= 6
    assert ticks == sorted(set(ticks))
    assert all(low <= math.log10(t) <= high for t in ticks)


def test_cost_is_on_a_logarithmic_axis() -> None:
    points = [Point(x, 0.1, "c1", f"{x:g} units") for x in (1.0, 10.0, 100.0)]
    page = cost_chart("cost", [*points, Point(0.0, 0.5, "c1", "free")], x_label="s", y_label="HR")
    places = [float(x) for x in re.findall(r'cx="([\d.]+)"', page)]
    assert len(places) == 3
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)
    assert "100 units: HR 0.1000, 100 s" in page
    assert "No values" in cost_chart("cost", [], x_label="s", y_label="HR")
