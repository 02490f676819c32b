"""Examples for the report: test sessions, and what two rows of the table recommend to them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recbole_tpad.data import Item
from recbole_tpad.data.thumbnails import thumbnail
from recbole_tpad.evaluation.suite import RunSpec


def examples(
    specs: Sequence[RunSpec], outcomes: Sequence[Mapping[str, Any]], items: Sequence[Item]
) -> dict[str, Any] | None:
    """Return what the best row with item embeddings and the same model without recommend.

    The best is chosen on validation; of each row the first seed that ran is shown.

    Args:
        specs, outcomes: the runs; an outcome may hold ``examples``.
        items: the catalogue.

    Returns:
        ``rows``: the rows' model and item_embeddings, one or two; ``sessions``: session, context,
        target, and ``shown``, for each row its rank, top and reasons; ``items``: id → title and
        image (a small JPEG as a data URI, or None). None where no row with embeddings has any.
    """
    groups: dict[tuple[str, str | None], list[int]] = {}
    for index, (spec, outcome) in enumerate(zip(specs, outcomes, strict=True)):
        if outcome.get("error") is None and outcome.get("examples"):
            groups.setdefault((spec.row_model, spec.item_embeddings), []).append(index)

    def valid(group: tuple[str, str | None]) -> float:
        return statistics.fmean(float(outcomes[i]["valid"]["NDCG@10"]) for i in groups[group])

    fed = [group for group in groups if group[1] is not None]
    if not fed:
        return None
    best = max(fed, key=valid)
    plain = [(best[0], None), (specs[groups[best][0]].model, None)]
    chosen = [best, *[group for group in plain if group in groups][:1]]
    found = [outcomes[groups[group][0]]["examples"] for group in chosen]
    sessions = []
    for entries in zip(*found, strict=True):
        shown = [{k: e[k] for k in ("rank", "top", "reasons") if k in e} for e in entries]
        first = {key: entries[0][key] for key in ("session", "context", "target")}
        sessions.append({**first, "shown": shown})
    used = {i for s in sessions for i in _ids(s)}
    return {
        "rows": [{"model": model, "item_embeddings": store} for model, store in chosen],
        "sessions": sessions,
        "items": {
            item.item_id: {"title": item.title, "image": thumbnail(item.image)}
            for item in items
            if item.item_id in used
        },
    }


def _ids(session: Mapping[str, Any]) -> Iterable[str]:
    yield from session["context"]
    yield session["target"]
    for row in session["shown"]:
        yield from row["top"]
