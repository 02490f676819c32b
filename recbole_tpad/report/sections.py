"""The report's sections about recommenders: results, curves, costs, failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_tpad.report.charts import Line, Mark, Point, cost_chart, dot_chart, line_chart
from recbole_tpad.report.finding import COLD, Comparison, main_metric, percent, trained_losses
from recbole_tpad.report.markup import Html, join, tag
from recbole_tpad.report.page import Section, caption, facts, figure, legend
from recbole_tpad.results import METRICS, Group, Results, Spread

NONE = "no item embeddings"
DASH = "\N{EN DASH}"


# The classes of the style sheet for series; c0 is "none", c8 what does not matter.
_SERIES = [f"c{number}" for number in range(1, 16) if number != 8]


class Colours:
    """One colour class a kind of item embeddings, the same in every chart."""

    def __init__(self, groups: Sequence[Group]) -> None:
        stores = dict.fromkeys(g.item_embeddings for g in groups if g.item_embeddings is not None)
        self._classes: dict[str | None, str] = {None: "c0"}
        self._classes |= {name: _SERIES[i % len(_SERIES)] for i, name in enumerate(stores)}
        used = {group.item_embeddings for group in groups}
        self.entries = [(c, name or NONE) for name, c in self._classes.items() if name in used]

    def __getitem__(self, store: str | None) -> str:
        return self._classes[store]


def _untrained(groups: Sequence[Group]) -> bool:
    rows = [row for group in groups for row in group.rows]
    return bool(rows) and all(row.loss == "none" for row in rows)


def protocol_line(results: Results, groups: Sequence[Group]) -> Html:
    """Return what must be known to compare these numbers with others."""
    protocol, data = results.content["protocol"], results.content["dataset"]
    counts, split = data.get("counts") or {}, data.get("split") or {}
    sessions = " / ".join(
        f"{counts[key]:,}"
        for key in ("sessions_train", "sessions_valid", "sessions_test")
        if isinstance(counts.get(key), int)
    )
    items = counts.get("items")
    seeds = sorted({len(group.rows) for group in groups})
    pairs: list[tuple[str, object]] = [
        ("Items", f"{items:,}" if isinstance(items, int) else "unknown"),
        ("Sessions, train / valid / test", sessions or "unknown"),
        ("Split", split.get("rule", "unknown")),
        (
            "Ranking",
            f"{protocol.get('ranking', 'unknown')}, over all items"
            if protocol.get("ranking") == "full"
            else protocol.get("ranking", "unknown"),
        ),
        (
            "Items of the session",
            "masked" if protocol.get("mask_history") else "may be recommended",
        ),
        ("Model selection", f"{protocol.get('valid_metric', 'unknown')} on validation"),
        (
            "Loss",
            ", ".join(trained_losses(groups))
            or ("none, nothing is trained" if _untrained(groups) else "unknown"),
        ),
        (
            "Seeds",
            DASH.join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1]))) if seeds else "0",
        ),
    ]
    return facts(pairs, "protocol")


def results_section(results: Results, groups: Sequence[Group], colours: Colours) -> Section:
    """Return the table of test metrics and the charts of the main ones."""
    metric = main_metric(results)
    charts = [
        figure(name, dot_chart(name, mark_rows(groups, colours, name), x_label=name))
        for name in dict.fromkeys((metric, "HR@10"))
    ]
    title = "HR@10 on rare and unseen targets"
    cold = mark_rows(groups, colours, "HR@10", slices=COLD)
    if cold:
        charts.append(figure(title, dot_chart(title, cold, x_label="HR@10")))
    body = [
        caption(
            "Mean ± standard deviation over seeds; the best mean of a column is marked. Below a "
            "value with item embeddings: its change against the same model without, in colour "
            "where the two are separable."
        ),
        tag("div", _results_table(groups), class_="scroll"),
        legend(colours.entries),
        tag("div", charts, class_="charts"),
        caption(
            "Disc: mean. Bar: one standard deviation to either side. Small dots: single seeds."
        ),
    ]
    return Section("results", "Results", join(body))


def curves_section(results: Results, groups: Sequence[Group], colours: Colours) -> Section | None:
    """Return validation metric and training loss by epoch; None where no run trained."""
    metric = main_metric(results)
    charts = []
    for model in dict.fromkeys(group.model for group in groups):
        own = [group for group in groups if group.model == model]
        valid = _curves(own, colours, lambda p: (p.get("valid") or {}).get(metric), best=True)
        loss = _curves(own, colours, lambda p: p.get("train_loss"), best=False)
        if any(line.points for line in valid):
            chart = line_chart(f"{model}: validation {metric}", valid, x_label="epoch")
            charts.append(figure(f"{model}: validation {metric}", chart))
        if any(line.points for line in loss):
            chart = line_chart(f"{model}: training loss", loss, x_label="epoch")
            charts.append(figure(f"{model}: training loss", chart))
    if not charts:
        return None
    body = [
        caption("One curve a run; the disc is the epoch whose parameters were tested."),
        legend(colours.entries),
        tag("div", charts, class_="charts"),
    ]
    return Section("curves", "Training curves", join(body))


def cost_section(results: Results, groups: Sequence[Group], colours: Colours) -> Section:
    """Return time, memory and size of the recommenders and time of the generators."""
    head = _head(
        ["Model", "Item embeddings"],
        ["Seconds a run", "ms a request", "Peak MB", "Parameters", "Epochs", "Best epoch"],
    )
    rows = []
    for group in groups:
        size = next((r.parameters for r in group.rows if r.parameters is not None), None)
        epochs = [r.epochs for r in group.rows if r.epochs is not None]
        best = [r.best_epoch for r in group.rows if r.best_epoch is not None]
        cells = [
            tag("td", _plain(group.seconds(), 1)),
            tag("td", _plain(group.latency_ms(), 2)),
            tag("td", _plain(group.peak_mb(), 0)),
            tag("td", DASH if size is None else f"{size:,}"),
            tag("td", _range(epochs)),
            tag("td", _range(best)),
        ]
        names = [
            tag("td", group.model, class_="name"),
            tag("td", group.item_embeddings or "none", class_="name"),
        ]
        rows.append(tag("tr", names, cells))
    ceilings = [
        (f"{g.model}, {g.item_embeddings or 'none'}", f"{ceiling.mean:.4f}")
        for g in groups
        if (ceiling := g.recall_ceiling()) is not None
    ]
    body = [
        caption(
            "A run is training, validation and test in its own process; its peak memory includes "
            "the libraries. Parameters are the trained ones, without the frozen item embeddings."
        ),
        tag("div", tag("table", head, tag("tbody", rows)), class_="scroll"),
        *_cost_charts(results, groups, colours),
    ]
    if ceilings:
        body.append(caption("Re-ranked: share of test sessions whose target was a candidate:"))
        body.append(facts(ceilings))
    made = [
        (name, f"{entry['seconds']:,.0f} s")
        for name, entry in results.content["generators"].items()
        if isinstance(entry, Mapping) and isinstance(entry.get("seconds"), int | float)
    ]
    if made:
        body.append(caption("Making the item embeddings, once for all recommenders:"))
        body.append(facts(made))
    return Section("cost", "Cost", join(body))


def _cost_charts(results: Results, groups: Sequence[Group], colours: Colours) -> list[Html]:
    """Accuracy against what a run takes, and against what a request takes where it was timed."""
    metric = main_metric(results)
    charts = []
    for what, cost_of in (("seconds a run", Group.seconds), ("ms a request", Group.latency_ms)):
        points = []
        for group in groups:
            cost, value = cost_of(group), group.metric(metric)
            if cost is not None and value is not None:
                name = f"{group.model}, {group.item_embeddings or NONE}"
                points.append(Point(cost.mean, value.mean, colours[group.item_embeddings], name))
        if len(points) > 1:
            title = f"{metric} against {what}"
            chart = cost_chart(title, points, x_label=what, y_label=metric)
            charts.append(figure(title, chart))
    return [legend(colours.entries), tag("div", charts, class_="charts")] if charts else []


def failures_section(results: Results) -> Section | None:
    """Return the failed runs; None where there are none."""
    if not results.failed:
        return None
    head = _head(["Model", "Item embeddings"], ["Seed"], ["Error"])
    rows = [
        tag(
            "tr",
            tag("td", row.model, class_="name"),
            tag("td", row.item_embeddings or "none", class_="name"),
            tag("td", row.seed),
            tag("td", row.error, class_="wrap"),
        )
        for row in results.failed
    ]
    return Section(
        "failed", "Failed runs", tag("div", tag("table", head, tag("tbody", rows)), class_="scroll")
    )


def environment_section(results: Results) -> Section:
    """Return versions, data fingerprint and the commands that made the numbers."""
    environment, split = (
        results.content["environment"],
        results.content["dataset"].get("split") or {},
    )
    pairs: list[tuple[str, object]] = list(environment.items())
    if split.get("fingerprint"):
        pairs.append(("split fingerprint", str(split["fingerprint"])[:16]))
    commands = "\n".join(results.content["commands"])
    return Section(
        "environment",
        "Environment and commands",
        join([facts(pairs), tag("pre", commands) if commands else Html("")]),
    )


def _results_table(groups: Sequence[Group]) -> Html:
    def value_of(group: Group, column: str) -> Spread | None:
        return group.slice_metric(COLD, "HR@10") if column == "cold" else group.metric(column)

    columns = [*METRICS, "cold"]
    head = _head(["Model", "Item embeddings"], [*METRICS, "HR@10 rare + unseen"], extra="Seeds")
    best: dict[str, float] = {}
    for column in columns:
        means = [v.mean for group in groups if (v := value_of(group, column)) is not None]
        best[column] = max(means, default=0.0)
    rows = []
    # Rows of one model stand together, the one without embeddings first.
    for model in dict.fromkeys(group.model for group in groups):
        own = sorted(
            (g for g in groups if g.model == model), key=lambda g: g.item_embeddings is not None
        )
        plain = own[0] if own[0].item_embeddings is None else None
        for index, group in enumerate(own):
            cells = []
            for column in columns:
                value = value_of(group, column)
                before = (
                    value_of(plain, column) if plain is not None and group is not plain else None
                )
                top = value is not None and value.mean > 0 and value.mean == best[column]
                cells.append(
                    tag(
                        "td",
                        _value(value),
                        _change(group, before, value),
                        class_="best" if top else None,
                    )
                )
            first = tag("td", model, class_="name", rowspan=len(own)) if index == 0 else None
            name = tag("td", group.item_embeddings or "none", class_="name")
            rows.append(
                tag(
                    "tr",
                    first,
                    name,
                    tag("td", len(group.rows), class_="extra"),
                    cells,
                    class_="inner" if index else None,
                )
            )
    return tag("table", head, tag("tbody", rows))


def _change(group: Group, before: Spread | None, after: Spread | None) -> Html | None:
    if before is None or after is None:
        return None
    comparison = Comparison(group.model, group.item_embeddings or "", before, after)
    kind = {"higher": "change good", "lower": "change bad"}.get(comparison.verdict, "change")
    return tag("span", percent(comparison.relative), class_=kind)


def _value(value: Spread | None) -> Html:
    if value is None:
        return Html(DASH)
    sd = tag("span", f" ± {value.sd:.4f}", class_="sd") if value.sd is not None else None
    return join([f"{value.mean:.4f}", sd or ""])


def _plain(value: Spread | None, digits: int) -> str:
    if value is None:
        return DASH
    return f"{value.mean:,.{digits}f}" + (
        f" ± {value.sd:,.{digits}f}" if value.sd is not None else ""
    )


def _range(values: Sequence[int]) -> str:
    if not values:
        return DASH
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}{DASH}{high}"


def _head(
    names: Sequence[str],
    numbers: Sequence[str],
    words: Sequence[str] = (),
    *,
    extra: str | None = None,
) -> Html:
    """A table's head; the column `extra` comes after the names and is left out on a phone."""
    cells = [tag("th", name, class_="name") for name in names]
    cells += [tag("th", extra, class_="extra")] if extra else []
    cells += [tag("th", name) for name in numbers]
    cells += [tag("th", name, class_="name") for name in words]
    return tag("thead", tag("tr", cells))


def mark_rows(
    groups: Sequence[Group], colours: Colours, metric: str, slices: tuple[str, ...] = ()
) -> list[tuple[str, list[Mark]]]:
    """Return one chart row a model with a mark for each kind of item embeddings."""
    rows: dict[str, list[Mark]] = {}
    for group in groups:
        value = group.slice_metric(slices, "HR@10") if slices else group.metric(metric)
        if value is None:
            continue
        dots = [] if slices else [r.metrics[metric] for r in group.rows if metric in r.metrics]
        known = value.sd is not None
        rows.setdefault(group.model, []).append(
            Mark(
                name=f"{group.model}, {group.item_embeddings or NONE}",
                value=value.mean,
                colour=colours[group.item_embeddings],
                low=value.low if known else None,
                high=value.high if known else None,
                dots=dots if known else [],
            )
        )
    return list(rows.items())


def _curves(groups: Sequence[Group], colours: Colours, pick: Any, *, best: bool) -> list[Line]:
    lines = []
    for group in groups:
        for row in group.rows:
            points = [
                (float(point["epoch"]), float(value))
                for point in row.curve
                if isinstance(point.get("epoch"), int | float)
                and isinstance(value := pick(point), int | float)
            ]
            name = f"{group.model}, {group.item_embeddings or NONE}, seed {row.seed}"
            marked = float(row.best_epoch) if best and row.best_epoch is not None else None
            lines.append(Line(name, points, colours[group.item_embeddings], marked))
    return lines
