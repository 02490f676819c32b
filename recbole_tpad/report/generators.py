"""The report's section about how the item embeddings came about, one part a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from recbole_tpad.report.charts import (
    Line,
    Mark,
    Point,
    bar_chart,
    line_chart,
    scatter_chart,
)
from recbole_tpad.report.markup import Html, join, tag
from recbole_tpad.report.page import Section, caption, facts, figure, legend

STAGES = {
    "knowledge": "Knowledge stage",
    "transition": "Transition stage",
    "alignment": "Alignment stage (TPA)",
    "encoding": "Encoding",
}
QUANTITIES = {
    "loss_generation": "generation loss",
    "loss_contrastive_visual": "contrastive loss, visual",
    "loss_contrastive_text": "contrastive loss, text",
    "mi_lower": "lower bound, I(wᴴ; z)",
    "mi_upper": "upper bound, I(wᴸ; z)",
}
RATES = (
    ("recall", "keyword recall", "c1"),
    ("f1", "keyword F1", "c1"),
    ("exact", "exact match", "c1"),
    ("category_accuracy", "category", "c1"),
    ("chance", "chance", "c0"),
    ("shuffled_images", "shuffled images", "c0"),
)
CATEGORIES = 7
MODALITIES = ("visual", "text")


def generators_section(entries: Mapping[str, Any]) -> Section | None:
    """Return one part for each store in the results; None without stores."""
    parts = [
        join([tag("h3", name), _store(entry)])
        for name, entry in entries.items()
        if isinstance(entry, Mapping)
    ]
    if not parts:
        return None
    return Section("embeddings", "Item embeddings", join(parts))


def _store(entry: Mapping[str, Any]) -> Html:
    stages = [stage for stage in entry.get("stages") or [] if isinstance(stage, Mapping)]
    pairs: list[tuple[str, object]] = [("Generator", entry.get("generator") or "unknown")]
    if _is_number(entry.get("seconds")):
        pairs.append(("Time", f"{entry['seconds']:,.1f} s"))
    body = [facts(pairs)]
    if stages:
        body.append(tag("div", _stage_table(stages), class_="scroll"))
        body += _modality_tables(stages)
    charts = [chart for stage in stages for chart in _stage_charts(stage)]
    rate = entry.get("generation_rate")
    if isinstance(rate, Mapping):
        charts.append(_rate_chart(rate))
    shown = entry.get("map")
    if isinstance(shown, Mapping) and shown.get("points"):
        charts.append(_map_chart(shown))
    if charts:
        body.append(tag("div", charts, class_="charts"))
    if not stages:
        body.append(caption("No training stages are recorded for this store."))
    body += [tag("p", str(line), class_="warn") for line in entry.get("warnings") or []]
    return join(body)


def _stage_table(stages: Sequence[Mapping[str, Any]]) -> Html:
    head = tag(
        "thead",
        tag(
            "tr",
            tag("th", "Stage", class_="name"),
            tag("th", "Seconds"),
            tag("th", "Summary", class_="name"),
        ),
    )
    rows = []
    for stage in stages:
        summary = stage.get("summary") or {}
        plain = {k: v for k, v in summary.items() if _by_modality(k) is None}
        words = "; ".join(f"{_words(key)} {_short(value)}" for key, value in plain.items())
        seconds = f"{stage['seconds']:,.1f}" if _is_number(stage.get("seconds")) else "unknown"
        rows.append(
            tag(
                "tr",
                tag("td", _stage_name(stage), class_="name"),
                tag("td", seconds),
                tag("td", words, class_="wrap"),
            )
        )
    return tag("table", head, tag("tbody", rows))


def _modality_tables(stages: Sequence[Mapping[str, Any]]) -> list[Html]:
    """What stages say of each modality: a row a quantity, a column a modality."""
    found = []
    for stage in stages:
        values: dict[str, dict[str, Any]] = {}
        for key, value in (stage.get("summary") or {}).items():
            place = _by_modality(key)
            if place is not None:
                values.setdefault(place[0], {})[place[1]] = value
        if not values:
            continue
        columns = [m for m in MODALITIES if any(m in row for row in values.values())]
        head = tag(
            "thead",
            tag(
                "tr",
                [tag("th", t, class_="name") for t in (_stage_name(stage),)],
                [tag("th", column) for column in columns],
            ),
        )
        rows = [
            tag(
                "tr",
                tag("td", _words(name), class_="name"),
                [tag("td", _short(row[c]) if c in row else "") for c in columns],
            )
            for name, row in values.items()
        ]
        found.append(tag("div", tag("table", head, tag("tbody", rows)), class_="scroll"))
    return found


def _by_modality(key: str) -> tuple[str, str] | None:
    """The quantity and the modality that a summary's key names, if it names one."""
    name, _, last = key.rpartition("_")
    return (name, last) if name and last in MODALITIES else None


def _stage_charts(stage: Mapping[str, Any]) -> list[Html]:
    history = [point for point in stage.get("history") or [] if isinstance(point, Mapping)]
    names = list(dict.fromkeys(key for point in history for key in point))
    losses = [name for name in names if name.startswith("loss")]
    bounds = [name for name in ("mi_lower", "mi_upper") if name in names]
    charts = []
    if losses:
        charts.append(_history_chart(f"{_stage_name(stage)}: losses", history, losses, None))
    if bounds:
        charts.append(
            _history_chart(
                f"{_stage_name(stage)}: mutual information, nats",
                history,
                bounds,
                "The lower bound is raised (what T knows enters K), the upper one lowered (what "
                "the item is stays apart). An estimate of the upper bound may be negative.",
            )
        )
    return charts


def _history_chart(
    title: str, history: Sequence[Mapping[str, Any]], names: Sequence[str], note: str | None
) -> Html:
    lines = []
    for index, name in enumerate(names):
        points = [
            (float(point["step"]), float(point[name]))
            for point in history
            if _is_number(point.get("step")) and _is_number(point.get(name))
        ]
        lines.append(Line(QUANTITIES.get(name, _words(name)), points, f"c{1 + index % 7}"))
    chart = line_chart(title, lines, x_label="step")
    return figure(title, join([chart, legend([(line.colour, line.name) for line in lines])]), note)


def _rate_chart(rate: Mapping[str, Any]) -> Html:
    rows = [
        (label, [Mark(label, float(rate[key]), colour)])
        for key, label, colour in RATES
        if _is_number(rate.get(key))
    ]
    return figure(
        "Generation rate on held-out items",
        bar_chart("Generation rate", rows, x_label="share"),
        "Grey: keyword recall against other items' keywords (chance), and with every item shown "
        "another item's image.",
    )


def _map_chart(shown: Mapping[str, Any]) -> Html:
    points = [
        point
        for point in shown["points"]
        if isinstance(point, Mapping) and _is_number(point.get("x")) and _is_number(point.get("y"))
    ]
    counts = Counter(str(point.get("label") or "unknown") for point in points)
    # Ties by name, so that equal inputs give an equal page.
    common = sorted(counts, key=lambda name: (-counts[name], name))[:CATEGORIES]
    colours = {name: f"c{i + 1}" for i, name in enumerate(common)}
    marks = [
        Point(
            float(point["x"]),
            float(point["y"]),
            colours.get(str(point.get("label") or "unknown"), "c8"),
            f"{point.get('title') or point.get('item_id')} ({point.get('label') or 'unknown'})",
        )
        for point in points
    ]
    # Rest first, so that the named categories lie on top.
    marks.sort(key=lambda mark: mark.colour != "c8")
    entries = [(colour, f"{name} ({counts[name]:,})") for name, colour in colours.items()]
    rest = sum(counts.values()) - sum(counts[name] for name in common)
    if rest:
        entries.append(("c8", f"other ({rest:,})"))
    method, label = shown.get("method") or "projection", shown.get("label") or "label"
    title = f"Map of the items ({method}), by {label}"
    note = (
        "Neighbours here are neighbours in the embedding; distances between clusters mean little."
    )
    return figure(title, join([scatter_chart(title, marks), legend(entries)]), note, wide=True)


def _stage_name(stage: Mapping[str, Any]) -> str:
    name = str(stage.get("name") or "stage")
    return STAGES.get(name, name)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
