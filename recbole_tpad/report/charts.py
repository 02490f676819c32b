"""Inline SVG charts. Colours come from the page's style sheet through the classes c0 … c15."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recbole_tpad.report.markup import Html, number, tag
from recbole_tpad.report.scale import Scale, fitted, log_ticks, tick_text

# One width for all: about a phone's, so text keeps its size there and two or three charts fit
# side by side on a desk's screen.
WIDTH = 360.0
MAX_POINTS = 240
MAX_NAMES = 14  # points with their names beside them


@dataclass(frozen=True, slots=True)
class Line:
    """A curve: (x, y) points in x order, a colour class, and its name for the hover text."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    marked: float | None = None
    """The x of a point to be marked, such as the best epoch."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A value with an optional interval and single observations, in one row of a chart."""

    name: str
    value: float
    colour: str
    low: float | None = None
    high: float | None = None
    dots: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a scatter chart, coordinates in [0, 1] unless the chart has axes."""

    x: float
    y: float
    colour: str
    title: str


def line_chart(
    label: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    from_zero: bool = False,
    x_names: Sequence[str] = (),
) -> Html:
    """Return curves over a common x axis; an empty figure's note where there is no finite point.

    Args:
        label: for screen readers.
        lines: the curves.
        x_label: under the axis.
        from_zero: the y axis begins at 0.
        x_names: what x = 0, 1, 2, … are called, instead of numbers.
    """
    kept = [
        Line(line.name, thinned(_finite(line.points)), line.colour, line.marked) for line in lines
    ]
    kept = [line for line in kept if line.points]
    if not kept:
        return tag("p", "No values were recorded.", class_="empty")
    height, left, right, top, bottom = 210.0, 48.0, 10.0, 8.0, 34.0
    x = fitted((p[0] for ln in kept for p in ln.points), left, WIDTH - right, ticks=5)
    xs = [p[0] for ln in kept for p in ln.points]
    if min(xs) < max(xs):
        x = Scale(min(xs), max(xs), left, WIDTH - right)
    y = fitted((p[1] for ln in kept for p in ln.points), height - bottom, top, from_zero=from_zero)
    ticks = (
        [
            tag("text", name, x=x(float(place)), y=height - bottom + 14, class_="tick middle")
            for place, name in enumerate(x_names)
        ]
        if x_names
        else _x_ticks(x, height - bottom, grid_top=None, whole=True)
    )
    parts = [*_y_grid(y, left, WIDTH - right), *ticks]
    parts.append(_axis_label(x_label, (left + WIDTH - right) / 2, height - 4))
    for line in kept:
        places = [(x(a), y(b)) for a, b in line.points]
        hover = tag("title", f"{line.name}: last {line.points[-1][1]:.4g}")
        if len(places) == 1:
            parts.append(
                tag(
                    "circle",
                    hover,
                    cx=places[0][0],
                    cy=places[0][1],
                    r=3,
                    class_=f"dot {line.colour}",
                )
            )
            continue
        path = "M" + "L".join(f"{number(a)} {number(b)}" for a, b in places)
        parts.append(tag("path", hover, d=path, class_=f"line {line.colour}"))
        for a, b in line.points:
            if line.marked is not None and a == line.marked:
                hover = tag("title", f"{line.name}: {b:.4g} at {x_label} {a:g}")
                parts.append(
                    tag("circle", hover, cx=x(a), cy=y(b), r=3.2, class_=f"dot {line.colour}")
                )
    return _figure(label, height, parts)


def dot_chart(label: str, rows: Sequence[tuple[str, Sequence[Mark]]], *, x_label: str) -> Html:
    """Return one row per name: mean as a disc, interval as a bar, observations as small dots."""
    values = [v for _, marks in rows for m in marks for v in _extent(m)]
    return _rows_chart(label, rows, values, x_label, from_zero=False, bars=False)


def bar_chart(label: str, rows: Sequence[tuple[str, Sequence[Mark]]], *, x_label: str) -> Html:
    """Return horizontal bars from zero, grouped by row, with intervals where given."""
    values = [v for _, marks in rows for m in marks for v in _extent(m)]
    return _rows_chart(label, rows, values, x_label, from_zero=True, bars=True)


def cost_chart(label: str, points: Sequence[Point], *, x_label: str, y_label: str) -> Html:
    """Return points over a logarithmic x axis and a y axis; the title is the hover text.

    Args:
        label: for screen readers.
        points: x positive, y any; in the quantities' own units.
        x_label: under the axis.
        y_label: of the values, in the hover text.
    """
    kept = [p for p in points if p.x > 0 and math.isfinite(p.x) and math.isfinite(p.y)]
    if not kept:
        return tag("p", "No values were recorded.", class_="empty")
    height, left, right, top, bottom = 230.0, 48.0, 14.0, 8.0, 34.0
    base = height - bottom
    powers = [math.log10(p.x) for p in kept]
    margin = max(0.05, 0.06 * (max(powers) - min(powers)))
    x = Scale(min(powers) - margin, max(powers) + margin, left, WIDTH - right)
    y = fitted((p.y for p in kept), base, top)
    parts = _y_grid(y, left, WIDTH - right)
    for value in log_ticks(x.low, x.high):
        place = x(math.log10(value))
        parts.append(tag("line", x1=place, x2=place, y1=top, y2=base, class_="grid"))
        parts.append(tag("text", f"{value:,g}", x=place, y=base + 14, class_="tick middle"))
    parts.append(_axis_label(x_label, (left + WIDTH - right) / 2, height - 4))
    for p in kept:
        hover = tag("title", f"{p.title}: {y_label} {p.y:.4f}, {p.x:,.3g} {x_label}")
        across, up = x(math.log10(p.x)), y(p.y)
        parts.append(tag("circle", hover, cx=across, cy=up, r=4.5, class_=f"dot {p.colour}"))
    if len(kept) <= MAX_NAMES:  # on paper nothing hovers
        places = [(x(math.log10(p.x)), y(p.y)) for p in kept]
        parts += _names([p.title.partition(",")[0] for p in kept], places, left, WIDTH - right)
    return _figure(label, height, parts)


def _names(
    names: Sequence[str], places: Sequence[tuple[float, float]], left: float, right: float
) -> list[Html]:
    """Names beside their points, on a free side; those without one are left out."""
    taken = [(a - 5, a + 5, b) for a, b in places]
    parts = []
    for name, (across, up) in zip(names, places, strict=True):
        width = 6.0 * len(name)
        for start, anchor in ((across + 8, ""), (across - 8 - width, " end")):
            end = start + width
            is_free = all(end < a or start > b or abs(up - c) > 11 for a, b, c in taken)
            if is_free and start > left and end < right:
                taken.append((start, end, up))
                at = across - 8 if anchor else start
                parts.append(tag("text", name, x=at, y=up + 4, class_="tick" + anchor))
                break
    return parts


def scatter_chart(label: str, points: Iterable[Point]) -> Html:
    """Return a map of points; each one's title appears when the pointer rests on it."""
    width, height, margin = 560.0, 400.0, 8.0
    marks = []
    for point in points:
        marks.append(
            tag(
                "circle",
                tag("title", point.title),
                cx=margin + point.x * (width - 2 * margin),
                cy=margin + (1 - point.y) * (height - 2 * margin),
                r=3,
                class_=f"point {point.colour}",
            )
        )
    frame = tag("rect", x=0.5, y=0.5, width=width - 1, height=height - 1, rx=4, class_="frame")
    return _figure(label, height, [frame, *marks], width=width)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most about MAX_POINTS of the points, evenly chosen, first and last included."""
    if len(points) <= MAX_POINTS:
        return list(points)
    step = (len(points) - 1) / (MAX_POINTS - 1)
    return [points[round(i * step)] for i in range(MAX_POINTS)]


def _rows_chart(
    label: str,
    rows: Sequence[tuple[str, Sequence[Mark]]],
    values: Sequence[float],
    x_label: str,
    *,
    from_zero: bool,
    bars: bool,
) -> Html:
    rows = [(name, marks) for name, marks in rows if marks]
    if not rows:
        return tag("p", "No values were recorded.", class_="empty")
    left, right, top, bottom = 104.0, 20.0, 6.0, 34.0
    pitch, gap = 15.0, 12.0
    height = top + bottom + sum(gap + pitch * len(marks) for _, marks in rows)
    x = fitted(values, left, WIDTH - right, from_zero=from_zero)
    base = height - bottom
    parts = _x_ticks(x, base, grid_top=top)
    parts.append(_axis_label(x_label, (left + WIDTH - right) / 2, height - 4))
    cursor = top
    for name, marks in rows:
        cursor += gap / 2
        middle = cursor + pitch * len(marks) / 2
        shown = name if len(name) <= 16 else name[:15] + "…"
        parts.append(
            tag("text", shown, tag("title", name), x=left - 8, y=middle + 4, class_="row-name")
        )
        for mark in marks:
            parts += _mark(mark, x, cursor + pitch / 2, bars)
            cursor += pitch
        cursor += gap / 2
    return _figure(label, height, parts)


def _mark(mark: Mark, x: Scale, y: float, bars: bool) -> list[Html]:
    interval = (
        "" if mark.low is None or mark.high is None else f" ± {(mark.high - mark.low) / 2:.4f}"
    )
    hover = tag("title", f"{mark.name}: {mark.value:.4f}{interval}")
    parts = []
    if bars:
        start, end = sorted((x(0.0), x(mark.value)))
        parts.append(
            tag(
                "rect",
                hover,
                x=start,
                y=y - 5.5,
                width=max(end - start, 0.8),
                height=11,
                rx=1.5,
                class_=f"bar {mark.colour}",
            )
        )
    if mark.low is not None and mark.high is not None:
        kind = "whisker ink" if bars else f"whisker {mark.colour}"
        parts.append(tag("line", x1=x(mark.low), x2=x(mark.high), y1=y, y2=y, class_=kind))
    if not bars:
        parts += [
            tag("circle", cx=x(v), cy=y, r=2, class_=f"seed {mark.colour}") for v in mark.dots
        ]
        parts.append(
            tag("circle", hover, cx=x(mark.value), cy=y, r=4.5, class_=f"dot {mark.colour}")
        )
    return parts


def _extent(mark: Mark) -> list[float]:
    return [mark.value, *mark.dots, *(v for v in (mark.low, mark.high) if v is not None)]


def _finite(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b)]


def _y_grid(y: Scale, left: float, right: float) -> list[Html]:
    ticks = y.ticks()
    parts = []
    for value in ticks:
        place = y(value)
        parts.append(tag("line", x1=left, x2=right, y1=place, y2=place, class_="grid"))
        parts.append(
            tag("text", tick_text(value, ticks), x=left - 6, y=place + 4, class_="tick end")
        )
    return parts


def _x_ticks(x: Scale, base: float, grid_top: float | None, whole: bool = False) -> list[Html]:
    ticks = x.ticks()
    if whole:
        # Epochs and steps are counted: no label between two of them.
        ticks = [value for value in ticks if abs(value - round(value)) < 1e-9]
    parts = []
    for value in ticks:
        place = x(value)
        if grid_top is not None:
            parts.append(tag("line", x1=place, x2=place, y1=grid_top, y2=base, class_="grid"))
        parts.append(
            tag("text", tick_text(value, ticks), x=place, y=base + 14, class_="tick middle")
        )
    return parts


def _axis_label(label: str, x: float, y: float) -> Html:
    return tag("text", label, x=x, y=y, class_="axis")


def _figure(label: str, height: float, parts: Sequence[Html], width: float = WIDTH) -> Html:
    box = f"0 0 {number(width)} {number(height)}"
    return tag("svg", list(parts), viewBox=box, role="img", aria_label=label)
