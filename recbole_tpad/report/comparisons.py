"""The section on differences and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence

from recbole_tpad.report.markup import Html, join, tag
from recbole_tpad.report.page import Section, caption
from recbole_tpad.results import Comparison, Results

_TITLES = {
    "best baseline": "Against the best model without embeddings, chosen on validation",
    "without embeddings": "Against the same model without embeddings",
    "reference": "Against the same model with the reference embeddings",
}
_HEAD = ("Model", "Item embeddings", "Against", "NDCG@10", "95% interval", "p (Holm)")


def comparisons_section(results: Results) -> Section | None:
    """Return tables of differences in NDCG@10; None where the file holds none."""
    found: dict[tuple[str, str], list[Comparison]] = {}
    for entry in results.comparisons:
        if entry.metric == "NDCG@10" and entry.kind in _TITLES:
            found.setdefault((entry.kind, entry.targets), []).append(entry)
    if not found:
        return None
    body: list[Html] = [
        caption(
            "Intervals are those of a bootstrap that draws the test sessions, the same for both "
            "sides, and the seeds. Green and red: the interval excludes no difference and the "
            "p-value, corrected for all comparisons of the table (Holm), is below .05."
        )
    ]
    for (kind, targets), entries in found.items():
        sessions = max(entry.sessions for entry in entries)
        one_seed = any(entry.seeds < 2 for entry in entries)
        body.append(tag("h3", f"{_TITLES[kind]}: {targets} targets, {sessions:,} sessions"))
        body.append(_table(entries))
        if one_seed:
            body.append(
                caption(
                    "Some rows have a single seed: their intervals say nothing of what another "
                    "seed would give."
                )
            )
    return Section("differences", "Differences, and how sure they are", join(body))


def _table(entries: Sequence[Comparison]) -> Html:
    head = tag(
        "thead",
        tag(
            "tr",
            [tag("th", name, class_="name" if i < 3 else None) for i, name in enumerate(_HEAD)],
        ),
    )
    rows = []
    for entry in entries:
        better = "good" if entry.difference > 0 else "bad"
        shown = tag(
            "span",
            f"{entry.difference:+.4f}",
            class_=f"change {better}" if entry.certain else None,
        )
        rows.append(
            tag(
                "tr",
                tag("td", entry.model, class_="name"),
                tag("td", entry.item_embeddings or "none", class_="name"),
                tag("td", entry.against[0], class_="name"),
                tag("td", shown),
                tag("td", f"{entry.low:+.4f} to {entry.high:+.4f}"),
                tag("td", f"{entry.p_holm:.3f}"),
            )
        )
    return tag("div", tag("table", head, tag("tbody", rows)), class_="scroll")
