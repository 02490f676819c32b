"""Where a data set's own numbers say that a result on it would mislead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Assumptions: below these shares an effect hides in the spread of a few seeds.
_REPEATS = 0.05
_DUPLICATES = 0.10
_ONE_TIME = 0.50
_MIDNIGHT = 0.90
_UNSEEN = 0.05
_COPIES = 0.05
_COVERED = 0.50
_POPULAR = 0.10
_ORDER_MARGIN = 0.05
_ROWS = 1000


def find_warnings(card: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the warnings a report card deserves, as ``{"code": …, "text": …}``."""
    found = [*_of_order(card), *_of_targets(card), *_of_split(card), *_of_content(card)]
    return [{"code": code, "text": text} for code, text in found]


def _of_order(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    time, order = card["time"], card["order"]
    if time is None:
        yield (
            "no-time",
            "There are no time stamps: the order within a session is the source's, and it cannot "
            "be checked. Report a shuffled-order control.",
        )
    else:
        if time["sessions_with_one_time"] >= _ONE_TIME:
            yield (
                "file-order",
                f"{time['sessions_with_one_time']:.1%} of the sessions have a single time stamp: "
                "the order within them is the source file's. A model that uses order learns that; "
                "report a shuffled-order control.",
            )
        if time["at_midnight_utc"] >= _MIDNIGHT:
            yield (
                "day-resolution",
                f"{time['at_midnight_utc']:.1%} of the time stamps are midnight UTC: time has day "
                "resolution.",
            )
    if order["one_order"] is None:
        return
    seen = f"{order['pairs_seen_twice']:,} item pairs seen in two or more sessions"
    if order["one_order"] <= order["by_chance"] + _ORDER_MARGIN:
        yield (
            "order-like-chance",
            f"Of {seen}, {order['one_order']:.1%} keep one order; chance alone gives "
            f"{order['by_chance']:.1%}. Order says little about what follows.",
        )
    elif time is not None and time["sessions_with_one_time"] >= _ONE_TIME:
        yield (
            "order-of-the-source",
            f"Of {seen}, {order['one_order']:.1%} keep one order (chance {order['by_chance']:.1%}) "
            "although most sessions have a single time stamp: the source sorts them by something "
            "else.",
        )


def _of_targets(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    test = card["parts"]["test"]
    if test["target_repeats_last"] >= _REPEATS:
        yield (
            "repeat-last",
            f"Repeating the last item is right for {test['target_repeats_last']:.1%} of the test "
            "targets. Report it as a control.",
        )
    if test["sessions_with_repeated_item"] >= _DUPLICATES:
        yield (
            "repeated-items",
            f"{test['sessions_with_repeated_item']:.1%} of the test sessions have an item twice; "
            f"{test['target_in_context']:.1%} of the targets are in their own context. Models that "
            "mask the history cannot reach those.",
        )
    if test["target_unseen_in_train"] >= _UNSEEN:
        yield (
            "unseen-targets",
            f"{test['target_unseen_in_train']:.1%} of the test targets never occur in training: no "
            "model of ids alone can reach them.",
        )
    popular = card["popularity"]["test_targets_in_top_10"]
    if popular >= _POPULAR:
        yield (
            "popular-targets",
            f"The ten most popular training items are {popular:.1%} of the test targets. Report "
            "the popularity baseline.",
        )


def _of_split(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    rule, test = card["split"]["rule"], card["parts"]["test"]
    if rule in ("dimo", "given"):
        yield (
            "not-chronological",
            f"The split '{rule}' does not follow time: training sessions may be later than test "
            "sessions.",
        )
    copies = card["train_test_overlap"]["test_sessions_in_train"]
    if copies is not None and copies >= _COPIES:
        yield (
            "repeated-sessions",
            f"{copies:.1%} of the test sessions occur in training item by item.",
        )
    if test["sessions"] < _ROWS:
        margin = 1.96 * 0.5 / test["sessions"] ** 0.5
        yield (
            "few-test-sessions",
            f"{test['sessions']:,} test sessions: a hit rate near one half is uncertain by "
            f"±{margin:.1%}.",
        )


def _of_content(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    covered = card["coverage"]["items"]
    for key, what in (("title", "a title"), ("image", "an image")):
        if covered[key] < _COVERED:
            yield (
                f"few-{key}s",
                f"{covered[key]:.1%} of the items have {what}: a comparison of item embeddings is "
                "mostly one of missing content.",
            )
