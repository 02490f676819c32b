"""The suite's result as a plain-text or markdown table: mean ± standard deviation over seeds."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from recbole_tpad.results import METRICS, Group, Results, Spread, read_results

COLD = ("rare", "unseen")
HEADER = (
    "Model",
    "Item embeddings",
    "Seeds",
    *METRICS,
    "HR@10 rare+unseen",
    "Seconds",
    "Peak MB",
)


_OTHERS = {
    "best baseline": "the best model without embeddings (chosen on validation)",
    "without embeddings": "the same model without embeddings",
    "reference": "the reference (same row of models)",
}
COMPARED = ("Model", "Item embeddings", "Against", "NDCG@10", "95% interval", "p (Holm)")


def plain_table(results: Results | str | Path) -> str:
    """Return the table with aligned columns, for a terminal.

    Raises:
        InputError: a results file that cannot be read.
    """
    rows = [list(HEADER), *_cells(results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = []
    for row in rows:
        # Names left, numbers right.
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, *_reranked(results), *_failures(results)]) + "\n"


def markdown_table(results: Results | str | Path) -> str:
    """Return the table as GitHub-flavoured markdown.

    Raises:
        InputError: a results file that cannot be read.
    """
    lines = [_markdown_row(list(HEADER)), _markdown_row(["---"] * 2 + ["---:"] * (len(HEADER) - 2))]
    lines += [_markdown_row(row) for row in _cells(results)]
    for title, rows in _comparisons(_load(results)):
        lines += ["", title, "", _markdown_row(list(COMPARED))]
        lines.append(_markdown_row(["---"] * 3 + ["---:"] * (len(COMPARED) - 3)))
        lines += [_markdown_row(row) for row in rows]
    notes = [*_reranked(results), *_failures(results)]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def csv_table(results: Results | str | Path) -> str:
    """Return the table as CSV: unrounded numbers, means and deviations in columns of their own.

    Raises:
        InputError: a results file that cannot be read.
    """
    head = ["model", "item_embeddings", "seeds"]
    for name in (
        *METRICS,
        "HR@10 rare+unseen",
        "seconds",
        "latency_ms",
        "peak_mb",
        "recall_ceiling",
    ):
        head += [name, f"{name} sd"]
    head += ["loss", "mask_history", "parameters"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for group in _load(results).groups():
        spreads = [
            *(group.metric(name) for name in METRICS),
            group.slice_metric(COLD, "HR@10"),
            group.seconds(),
            group.latency_ms(),
            group.peak_mb(),
            group.recall_ceiling(),
        ]
        cells: list[Any] = [group.model, group.item_embeddings or "none", len(group.rows)]
        for value in spreads:
            cells += (
                ["", ""] if value is None else [value.mean, "" if value.sd is None else value.sd]
            )
        first = group.rows[0]
        writer.writerow([*cells, first.loss, first.mask_history, first.parameters])
    return text.getvalue()


def _reranked(results: Results | str | Path) -> list[str]:
    """One line a re-ranked pair: what no re-ranker could exceed, and what a request costs."""
    lines = []
    for group in _load(results).groups():
        ceiling, latency = group.recall_ceiling(), group.latency_ms()
        account = next((row.rerank for row in group.rows if row.rerank is not None), None)
        if ceiling is None or account is None:
            continue
        took = "" if latency is None else f", {latency.mean:.1f} ms a request"
        lines.append(
            f"{group.model} + {group.item_embeddings or 'none'}: re-ranks the best "
            f"{account.get('top_k')}, recall ceiling {ceiling.mean:.4f}{took}."
        )
    return lines


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _load(results: Results | str | Path) -> Results:
    return results if isinstance(results, Results) else read_results(results)


def _cells(results: Results | str | Path) -> list[list[str]]:
    return [_group_cells(group) for group in _load(results).groups()]


def _group_cells(group: Group) -> list[str]:
    return [
        group.model,
        group.item_embeddings or "none",
        str(len(group.rows)),
        *(_text(group.metric(name), 4) for name in METRICS),
        _text(group.slice_metric(COLD, "HR@10"), 4),
        _text(group.seconds(), 1),
        _text(group.peak_mb(), 0),
    ]


def _comparisons(results: Results) -> list[tuple[str, list[list[str]]]]:
    """Tables of differences in NDCG@10: (what is compared on which targets, rows)."""
    found: dict[str, list[list[str]]] = {}
    for entry in results.comparisons:
        if entry.metric != "NDCG@10":
            continue
        other = _OTHERS[entry.kind]
        drawn = "sessions and seeds" if entry.seeds > 1 else "sessions only (one seed)"
        title = f"Difference to {other}, {entry.targets} targets; paired bootstrap over {drawn}:"
        row = [
            entry.model,
            entry.item_embeddings or "none",
            " + ".join(name for name in entry.against if name),
            f"{entry.difference:+.4f}",
            f"{entry.low:+.4f} to {entry.high:+.4f}",
            f"{entry.p_holm:.3f}",
        ]
        found.setdefault(title, []).append(row)
    return list(found.items())


def _text(value: Spread | None, digits: int) -> str:
    if value is None:
        return "\N{EN DASH}"
    mean = f"{value.mean:.{digits}f}"
    return mean if value.sd is None else f"{mean} ± {value.sd:.{digits}f}"


def _failures(results: Results | str | Path) -> list[str]:
    return [
        f"Failed: {row.model} with {row.item_embeddings or 'none'}, seed {row.seed}: "
        f"{' '.join((row.error or '').split())}"
        for row in _load(results).failed
    ]
