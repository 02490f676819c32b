"""The report card as plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_WIDTH = 100


def card_text(card: Mapping[str, Any]) -> str:
    """Return a report card of `describe` as lines of about 120 characters."""
    counts, lengths, order = card["counts"], card["session_length"], card["order"]
    overlap, popularity = card["train_test_overlap"], card["popularity"]
    split = card["split"]
    lines = [
        f"{card['name']} ({card['release']}): {counts['sessions']:,} sessions, "
        f"{counts['interactions']:,} interactions, {counts['items']:,} items",
        f"split {split['rule']}, sessions {split['sessions']}; "
        f"{counts['items_unseen_in_train']:,} items unseen in training",
        "",
        f"session length     mean {lengths['mean']:.2f}, median {lengths['median']:g}, "
        f"90% {lengths['p90']:g}, longest {lengths['max']:,}",
        "  "
        + "  ".join(f"{name}: {count:,}" for name, count in lengths["histogram"].items() if count),
        "",
        f"{'':32}{'train':>10}{'valid':>10}{'test':>10}",
    ]
    parts = [card["parts"][part] for part in ("train", "valid", "test")]
    lines.append(f"{'sessions':32}" + "".join(f"{p['sessions']:>10,}" for p in parts))
    for key, text in (
        ("target_repeats_last", "target repeats the last item"),
        ("target_in_context", "target is in its context"),
        ("sessions_with_repeated_item", "sessions with an item twice"),
        ("target_unseen_in_train", "target unseen in training"),
    ):
        lines.append(f"{text:32}" + "".join(f"{percent(p[key]):>10}" for p in parts))
    lines += [
        "",
        *_time_lines(card["time"]),
        f"order of item pairs: {percent(order['one_order'])} of the {order['pairs_seen_twice']:,} "
        "pairs seen in two or more sessions keep one order",
        f"  (by chance {percent(order['by_chance'])}; of all {order['pairs']:,} pairs "
        f"{percent(order['one_order_all'])})",
        f"co-occurrence: {percent(overlap['edges_in_train'])} of the test part's "
        f"{overlap['edges']:,} edges are in training;",
        f"  {percent(overlap['targets_linked'])} of the test targets are linked to their context "
        "there",
        f"test sessions also in training: {percent(overlap['test_sessions_in_train'])}",
        f"popularity: Gini {popularity['gini']:.2f}; the top 10 items are "
        f"{percent(popularity['test_targets_in_top_10'])} of the test targets",
        "",
        f"{'coverage':14}" + "".join(f"{key:>13}" for key in card["coverage"]["items"]),
    ]
    for key in ("items", "interactions"):
        shares = card["coverage"][key].values()
        lines.append(f"{key:14}" + "".join(f"{percent(share):>13}" for share in shares))
    for warning in card["warnings"]:
        told = f"{warning['code']}: {warning['text']}"
        lines += ["", *textwrap.wrap(told, _WIDTH, initial_indent="! ", subsequent_indent="  ")]
    return "\n".join(lines)


def _time_lines(time: Mapping[str, Any] | None) -> list[str]:
    if time is None:
        return ["time: none"]
    first, last = (datetime.fromtimestamp(time[key], UTC) for key in ("first", "last"))
    return [
        f"time: {first:%Y-%m-%d} to {last:%Y-%m-%d}; {percent(time['at_midnight_utc'])} at "
        "midnight UTC;",
        f"  {percent(time['sessions_with_one_time'])} of the sessions have a single time stamp",
    ]


def percent(share: float | None) -> str:
    """A share as a percentage with one digit; a dash for None."""
    return "-" if share is None else f"{share:.1%}"
