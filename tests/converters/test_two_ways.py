"""Sessions, filters and splits in SQL (reviews) and in numpy (tables) give the same files."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from raw_amazon import START, Review, raw_files

from dataset_converters.amazon import convert_amazon
from dataset_converters.errors import InputError
from dataset_converters.table import convert_table
from dataset_converters.table_options import TableOptions

FILES = ("inter", "train.inter", "valid.inter", "test.inter", "valid-cold.inter", "test-cold.inter")
TIMES = st.sampled_from([0, 1, 1800, 76_799, 76_800, 86_399, 86_400, 200_000])
REVIEWS = st.lists(
    st.tuples(st.sampled_from(["A", "A_1", "B", "b", "C-", "D"]), st.sampled_from("vwxyz"), TIMES),
    min_size=8,
    max_size=60,
)
OPTIONS = st.fixed_dictionaries(
    {
        "sessions": st.sampled_from(["first-day", "day", "user"]),
        "split": st.sampled_from(["temporal", "leave-one-out"]),
        "drop_repeats": st.booleans(),
        "augment": st.booleans(),
        "min_session_length": st.sampled_from([2, 3]),
        "min_item_count": st.sampled_from([1, 2, 4]),
        "max_session_length": st.sampled_from([None, 3]),
        "max_len": st.sampled_from([2, 50]),
        "train_share": st.sampled_from([0.5, 0.34]),
        "valid_share": st.just(0.25),
    }
)


def by_sql(reviews: list[Review], folder: Path, options: dict[str, Any]) -> Path:
    return convert_amazon("x", *raw_files(folder / "raw", reviews), folder, **options).path


def by_numpy(reviews: list[Review], folder: Path, options: dict[str, Any]) -> Path:
    with (folder / "x.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("user_id", "item_id", "timestamp"), *reviews])
    return convert_table("x", folder / "x.csv", folder, options=TableOptions(**options)).path


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(REVIEWS, OPTIONS)
@example(
    [(f"U{k}", item, START + 9 * k) for k in range(12) for item in "vwvx"],
    {"sessions": "user", "split": "temporal"},
)
def test_the_files_are_equal(drawn: list[Review], options: dict[str, Any]) -> None:
    reviews = [(user, item, START + time) for user, item, time in drawn]
    options = {"drop_repeats": False} | options
    found: list[dict[str, bytes] | str] = []
    for convert in (by_sql, by_numpy):
        with tempfile.TemporaryDirectory() as temporary:
            try:
                path = convert(reviews, Path(temporary), options)
            except InputError as error:
                found.append(str(error))
            else:
                found.append({name: (path / f"x.{name}").read_bytes() for name in FILES})
    assert found[0] == found[1]
