"""Splits a database's sessions into training, validation and test parts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dataset_converters.database import Database, quoted
from dataset_converters.errors import InputError, nearest
from dataset_converters.session_table import EVENTS_AT_ONCE
from dataset_converters.split import PARTS

RULES = ("temporal", "dimo", "leave-one-out", "ratio")
ORDERS = ("shuffled", "session_id")
DIMO_TRAIN = 0.9
_RATIO = re.compile(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How sessions are split.

    Attributes:
        train_share, valid_share: of the sessions under "temporal" and "ratio". Under "dimo",
            `valid_share` of the published training sessions become the validation part.
        order: of the sessions under "ratio".
        seed: of the shuffled order.
    """

    rule: str
    train_share: float
    valid_share: float
    order: str = "shuffled"
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, known in (("split", self.rule, RULES), ("order", self.order, ORDERS)):
            if value not in known:
                raise InputError(
                    f"Unknown {option} '{value}'.{nearest(value, known)} Known: {', '.join(known)}."
                )
        train, valid = self.train_share, self.valid_share
        if self.rule == "dimo" and not 0 < valid < 1:
            raise InputError(f"valid_share={valid} must lie between 0 and 1.")
        if self.rule in ("temporal", "ratio") and not (
            0 < train < 1 and 0 < valid < 1 and round(train + valid, 9) < 1
        ):
            raise InputError(
                f"train_share={train} and valid_share={valid} must be positive and sum to less "
                "than 1: the rest is the test part."
            )


def parse_ratio(text: str) -> tuple[float, float]:
    """Return the shares of train and valid of ``train:valid:test``.

    Raises:
        InputError: not three positive numbers.
    """
    match = _RATIO.fullmatch(text)
    numbers = [float(number) for number in match.groups()] if match else []
    if not numbers or not all(numbers):
        raise InputError(f"ratio={text!r} must be three positive numbers, for instance 8:1:1.")
    return numbers[0] / sum(numbers), numbers[1] / sum(numbers)


def split_sessions(database: Database, options: SplitOptions) -> None:
    """Make the tables `train`, `valid`, `test` (id, items) of `sessions`, and `everything`.

    `everything` (id, user_id, items, times) holds every kept interaction, in output order. All
    are filled in output order.

    Raises:
        InputError: too few sessions for three non-empty parts.
    """
    if options.rule == "leave-one-out":
        _leave_one_out(database)
    else:
        if options.rule == "dimo":
            _dimo(database, options.valid_share)
        else:
            _by_share(database, options)
        database.execute(
            "CREATE TABLE everything AS SELECT id, user_id, items, times FROM parted "
            "ORDER BY part, position"
        )
        for number, part in enumerate(PARTS):
            database.execute(
                f"CREATE TABLE {part} AS SELECT id, items FROM parted WHERE part = {number} "
                "ORDER BY position"
            )
        database.execute("DROP TABLE parted")
    sizes = {part: database.value(f"SELECT count(*) FROM {part}") for part in PARTS}
    if not all(sizes.values()):
        raise InputError(
            "Too few sessions for a split into three parts: "
            + ", ".join(f"{name} would have {size}" for name, size in sizes.items())
            + ". Loosen the filters, or choose other shares or another split rule."
        )


def _by_share(database: Database, options: SplitOptions) -> None:
    """The first sessions of an order train, the last test: by time, by id, or shuffled.

    Shuffled is the order of the MD5 of ``<seed>:<session id>``, so it depends on nothing else.
    """
    order = "last_time, id"
    if options.rule == "ratio":
        order = "id"
        if options.order == "shuffled":
            order = f"md5({quoted(f'{options.seed}:')} || id), id"
    count = int(database.value("SELECT count(*) FROM sessions"))
    # Rounded against binary fractions: .8 + .1 is not .9.
    first = int(round(count * options.train_share, 6))
    second = int(round(count * (options.train_share + options.valid_share), 6))
    database.execute(
        "CREATE TABLE parted AS SELECT *, CASE WHEN position <= "
        f"{first} THEN 0 WHEN position <= {second} THEN 1 ELSE 2 END AS part FROM (SELECT id, "
        f"user_id, items, times, row_number() OVER (ORDER BY {order}) AS position FROM sessions)"
    )


def _dimo(database: Database, valid_share: float) -> None:
    """Split as DIMO's public data preparation does, with a validation part added.

    Sessions before `boundary` (see `number_sessions`) are the published training part. Items of
    test sessions that it lacks are dropped, then test sessions shorter than 2. The recipe has no
    validation part: the last `valid_share` of its training sessions become one (assumption), so an
    item may occur in valid and test, yet not in train. Not chronological.
    """
    before = "(user_id, key) < (SELECT (user_id, key) FROM boundary)"
    training = int(database.value(f"SELECT count(*) FROM sessions WHERE {before}"))
    held = training - int(training * valid_share)
    database.execute(
        "CREATE TABLE parted AS SELECT id, user_id, items, times, place AS position, CASE WHEN "
        f"row_number() OVER (ORDER BY place) <= {held} THEN 0 ELSE 1 END AS part FROM sessions "
        f"WHERE {before}"
    )
    database.execute("CREATE TABLE seen AS SELECT DISTINCT unnest(items) AS item_id FROM parted")
    database.execute(
        "CREATE TABLE tested AS SELECT place, unnest(items) AS item_id, unnest(times) AS time, "
        "generate_subscripts(items, 1) AS k FROM sessions WHERE NOT " + before
    )
    # Places are rows of events: as many of them hold at most as many events, and a session's rest.
    last = database.value("SELECT coalesce(max(place), -1) FROM tested")
    for start in range(0, int(last) + 1, EVENTS_AT_ONCE):
        database.execute(
            "INSERT INTO parted SELECT id, user_id, list_transform(list, lambda x: x.item_id), "
            "list_transform(list, lambda x: x.time), place, 2 FROM (SELECT place, list_sort(list("
            "{'k': k, 'item_id': item_id, 'time': time})) AS list FROM tested WHERE item_id IN "
            f"(SELECT item_id FROM seen) AND place BETWEEN {start} AND "
            f"{start + EVENTS_AT_ONCE - 1} GROUP BY place) JOIN sessions USING (place) "
            "WHERE len(list) >= 2"
        )
    for table in ("seen", "tested"):
        database.execute(f"DROP TABLE {table}")


def _leave_one_out(database: Database) -> None:
    """Split each sequence: last item → test target, second last → valid target, rest → train.

    As in RecBole, a sequence of 3 gives no valid row, and one of 2 only a training row, so that
    every sequence keeps at least one training row.
    """
    cuts = {
        "train": ("items[: len(items) - least(greatest(len(items) - 2, 0), 2)]", 1),
        "valid": ("items[: len(items) - 1]", 4),
        "test": ("items", 3),
    }
    for part, (items, shortest) in cuts.items():
        database.execute(
            f"CREATE TABLE {part} AS SELECT id, {items} AS items FROM sessions "
            f"WHERE len(items) >= {shortest} ORDER BY place"
        )
    database.execute(
        "CREATE TABLE everything AS SELECT id, user_id, items, times FROM sessions ORDER BY place"
    )
