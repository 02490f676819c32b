"""The ways to cut reviews into sessions, as SQL over a table of reviews."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dataset_converters.errors import InputError, nearest

RULES = ("first-day", "day", "user", "timestamp", "gap:<duration>")
DAY = 86_400_000  # milliseconds
_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": DAY}
_DURATION = re.compile(r"([1-9]\d{0,8})([smhd])")


@dataclass(frozen=True, slots=True)
class SessionCut:
    """One rule; a session is what has the same user and the same `key` (a whole number).

    Attributes:
        gap: milliseconds, under "gap".
        name: the rule as it was written.

    Rules:
        "first-day": a user's reviews strictly less than 86,400 s after that user's first one, one
            session a user (DIMO's recipe, SIGIR 2024). Later reviews belong to no session.
        "day": a user's reviews of one calendar day, UTC.
        "gap:30m": a new session starts where more than the duration (s, m, h or d) has passed
            since the user's review before.
        "timestamp": a user's reviews with one time stamp.
        "user": all of a user's reviews.
    """

    rule: str
    gap: int = 0
    name: str = ""

    @classmethod
    def parse(cls, rule: str) -> SessionCut:
        """Read a rule as written on the command line.

        Raises:
            InputError: unknown rule, or a gap without a duration.
        """
        name, _, duration = rule.partition(":")
        if name == "gap":
            match = _DURATION.fullmatch(duration)
            if match is None:
                raise InputError(
                    f"Unknown sessions '{rule}': a gap needs a whole number with its unit (s, m, h "
                    "or d), for instance gap:30m."
                )
            return cls("gap", int(match.group(1)) * _UNITS[match.group(2)], rule)
        if rule not in RULES:
            raise InputError(
                f"Unknown sessions '{rule}'.{nearest(rule, RULES)} Known: {', '.join(RULES)}."
            )
        return cls(rule, name=rule)

    def events(self, reviews: str) -> str:
        """Return the query that adds `key` to the rows (user_id, item_id, time, place).

        `place` is a review's position in the source: it orders reviews of equal time.
        """
        columns = "user_id, item_id, time, place"
        if self.rule == "first-day":
            return (
                f"SELECT r.*, 0::BIGINT AS key FROM (SELECT {columns} FROM {reviews}) r JOIN "
                f"(SELECT user_id, min(time) AS first FROM {reviews} GROUP BY user_id) f "
                f"ON r.user_id = f.user_id AND r.time < f.first + {DAY}"
            )
        if self.rule == "gap":
            order = "OVER (PARTITION BY user_id ORDER BY time, place)"
            starts = (
                f"SELECT {columns}, CASE WHEN time - lag(time) {order} <= {self.gap} "
                f"THEN NULL ELSE time END AS start FROM {reviews}"
            )
            # Starts grow with time, so the latest one so far is the largest so far.
            return f"SELECT {columns}, max(start) {order} AS key FROM ({starts})"
        key = {"day": f"time // {DAY}", "timestamp": "time", "user": "0::BIGINT"}[self.rule]
        return f"SELECT {columns}, {key} AS key FROM {reviews}"

    def session_id(self, ticks: int) -> str:
        """Return the SQL of the session id, for time stamps of `ticks` units a second.

        The user id; with the date where sessions are days; with the first time stamp as published
        where they are cut by gaps or time stamps.
        """
        if self.rule == "day":
            return f"user_id || '_' || strftime(make_timestamp(key * {DAY * 1000}), '%Y-%m-%d')"
        if self.rule in ("gap", "timestamp"):
            return f"user_id || '_' || (key // {1000 // ticks})"
        return "user_id"
