"""Filters the reviews of a database and builds its table of sessions."""

from __future__ import annotations

from dataclasses import dataclass

from dataset_converters.database import Database
from dataset_converters.folder import Funnel
from dataset_converters.session_rules import SessionCut

# Sessions are put together from so many events at a time: lists under construction cannot spill.
EVENTS_AT_ONCE = 1_000_000
_ROUNDS = 1000  # far more than a k-core takes


@dataclass(frozen=True, slots=True)
class SessionFilters:
    """What stays; see `AmazonOptions` for each."""

    drop_repeats: bool
    needs_text: bool
    needs_image: bool
    drop_consecutive: bool
    min_session_length: int
    min_item_count: int
    iterate: bool
    max_session_length: int | None


def filter_reviews(database: Database, filters: SessionFilters, funnel: Funnel) -> None:
    """Make `kept` (user_id, item_id, time, place) of `reviews`, before sessions are cut."""
    if filters.drop_repeats:
        database.execute(
            "CREATE TABLE kept AS SELECT user_id, item_id, time, min(rowid) AS place "
            "FROM reviews GROUP BY user_id, item_id, time"
        )
        funnel.step("drop_repeats", database.value("SELECT count(*) FROM kept"))
    else:
        database.execute(
            "CREATE VIEW kept AS SELECT user_id, item_id, time, rowid AS place FROM reviews"
        )
    conditions = []
    if filters.needs_text:
        conditions.append(("needs_text", "has_title AND has_brand AND has_category"))
    if filters.needs_image:
        conditions.append(("needs_image", "large_image"))
    if not conditions:
        return
    passed = "true"
    counts = []
    for _, condition in conditions:
        passed = f"{passed} AND {condition}"
        counts.append(f"coalesce(sum(reviews) FILTER ({passed}), 0)")
    left = database.row(
        f"SELECT {', '.join(counts)} FROM items JOIN "
        "(SELECT item_id, count(*) AS reviews FROM kept GROUP BY item_id) USING (item_id)"
    )
    for (name, _), interactions in zip(conditions, left, strict=True):
        funnel.step(name, int(interactions))
    kind = "TABLE" if filters.drop_repeats else "VIEW"
    database.execute(f"ALTER {kind} kept RENAME TO kept_before")
    database.execute(
        "CREATE VIEW kept AS SELECT * FROM kept_before WHERE item_id IN "
        f"(SELECT item_id FROM items WHERE {passed})"
    )


def cut_events(database: Database, cut: SessionCut, funnel: Funnel) -> None:
    """Make `events` of `kept`, with the column key, and `sizes` (user_id, key, n)."""
    database.execute(f"CREATE TABLE events AS {cut.events('kept')}")
    _measure(database)
    _step(database, funnel, f"sessions={cut.name}")


def filter_events(database: Database, filters: SessionFilters, funnel: Funnel) -> None:
    """Apply the length and count filters: short sessions, then rare items, then short sessions.

    Consecutive duplicates go before each look at the lengths. With `iterate` the round of rare
    items and short sessions is repeated until it removes nothing.
    """
    _drop_consecutive(database, filters, funnel)
    _drop_short(database, filters, funnel)
    if filters.min_item_count == 1:
        return
    for _ in range(_ROUNDS):
        before = funnel.interactions
        database.replace(
            "events",
            "SELECT * FROM events WHERE item_id IN (SELECT item_id FROM events GROUP BY item_id "
            f"HAVING count(*) >= {filters.min_item_count})",
        )
        _measure(database)
        _step(database, funnel, f"min_item_count={filters.min_item_count}")
        _drop_consecutive(database, filters, funnel)
        _drop_short(database, filters, funnel)
        if not filters.iterate or funnel.interactions == before:
            return
    raise RuntimeError("the filters came to no end")


def _drop_consecutive(database: Database, filters: SessionFilters, funnel: Funnel) -> None:
    if not filters.drop_consecutive:
        return
    database.replace(
        "events",
        "SELECT * EXCLUDE (previous) FROM (SELECT *, lag(item_id) OVER "
        "(PARTITION BY user_id, key ORDER BY time, place) AS previous FROM events) "
        "WHERE previous IS DISTINCT FROM item_id",
    )
    _measure(database)
    _step(database, funnel, "drop_consecutive")


def _drop_short(database: Database, filters: SessionFilters, funnel: Funnel) -> None:
    shortest = filters.min_session_length
    long_enough = f"(SELECT user_id, key FROM sizes WHERE n >= {shortest})"
    database.replace("events", f"SELECT * FROM events SEMI JOIN {long_enough} USING (user_id, key)")
    database.execute(f"DELETE FROM sizes WHERE n < {shortest}")
    _step(database, funnel, f"min_session_length={shortest}")


def _measure(database: Database) -> None:
    database.replace(
        "sizes", "SELECT user_id, key, count(*) AS n FROM events GROUP BY user_id, key"
    )


def _step(database: Database, funnel: Funnel, name: str) -> None:
    sessions, interactions = database.row("SELECT count(*), coalesce(sum(n), 0) FROM sizes")
    funnel.step(name, int(interactions), int(sessions))


def number_sessions(database: Database, share: float) -> None:
    """Make `boundary` (user_id, key): the session with the number ``int(share · highest number)``.

    The user id is a text, as in the sessions that are compared to it. Sessions are numbered from 0
    in the order of user id and key. Call it before the filters.
    """
    highest = int(database.value("SELECT count(*) FROM sizes")) - 1
    database.execute(
        "CREATE TABLE boundary AS SELECT n.name AS user_id, s.key FROM sizes s JOIN user_names n "
        f"ON s.user_id = n.key ORDER BY n.rowid, s.key LIMIT 1 OFFSET {int(share * highest)}"
    )


def build_sessions(
    database: Database, cut: SessionCut, ticks: int, longest: int | None, funnel: Funnel
) -> None:
    """Make `sessions` of `events`, which is dropped. Ids are texts from here on.

    Columns: `id`; `place`, its position by user id and key; `user_id`, `key`; `items`, `times`
    (whole seconds) in the order of time stamp and place in the source, at most `longest`;
    `last_time`, the last of them in milliseconds.
    """
    # A table made by an ordered query: its row ids are in that order.
    database.replace(
        "events",
        "SELECT u.name AS user_id, i.name AS item_id, e.key, time FROM events e "
        "JOIN user_names u ON e.user_id = u.key JOIN item_names i ON e.item_id = i.key "
        "ORDER BY u.rowid, e.key, time, place",
    )
    database.execute(
        "CREATE TABLE sessions (id VARCHAR, place BIGINT, user_id VARCHAR, key BIGINT, "
        "items VARCHAR[], times BIGINT[], last_time BIGINT)"
    )
    rows = int(database.value("SELECT count(*) FROM events"))
    cut_off = "" if longest is None else f"[:{longest}]"
    start = 0
    with database.one_thread():
        while start < rows:
            stop = _session_end(database, min(start + EVENTS_AT_ONCE, rows) - 1)
            database.execute(
                f"INSERT INTO sessions SELECT {cut.session_id(ticks)}, place, user_id, key, "
                "list_transform(list, lambda x: x.item_id), "
                "list_transform(list, lambda x: x.time // 1000), list[-1].time "
                "FROM (SELECT user_id, key, min(rowid) AS place, list_sort(list("
                f"{{'row': rowid, 'item_id': item_id, 'time': time}})){cut_off} AS list "
                f"FROM events WHERE rowid BETWEEN {start} AND {stop} GROUP BY user_id, key) "
                "ORDER BY place"
            )
            start = stop + 1
    database.execute("DROP TABLE events")
    if longest is not None:
        left, count = database.row("SELECT coalesce(sum(len(items)), 0), count(*) FROM sessions")
        funnel.step(f"max_session_length={longest}", int(left), int(count))


def _session_end(database: Database, position: int) -> int:
    """Return the last row of the session that has this row."""
    return int(
        database.value(
            "SELECT max(e.rowid) FROM events e JOIN (SELECT user_id, key FROM events WHERE "
            f"rowid = {position}) USING (user_id, key) WHERE e.rowid >= {position}"
        )
    )
