"""Conversions that end badly: a full disk, a kill, files of another kind, ids of another kind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raw_amazon import meta, random_reviews, raw_files, review, write_lines

from dataset_converters.amazon import convert_amazon
from dataset_converters.amazon_records import RELEASES
from dataset_converters.database import open_database
from dataset_converters.errors import InputError
from dataset_converters.item_rows import make_rows

ROOT = Path(__file__).resolve().parents[2]
CONVERT = (
    "import resource, signal, sys; from pathlib import Path\n"
    "from dataset_converters.amazon import convert_amazon\n"
    "from dataset_converters.errors import InputError\n"
    "reviews, meta, data_path, limit = sys.argv[1:]\n"
    "if int(limit): resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))\n"
    "options = {'overwrite': True, 'sessions': 'user'}\n"
    "try: convert_amazon('x', Path(reviews), Path(meta), Path(data_path), **options)\n"
    "except InputError as error: print(error); sys.exit(2)\n"
)


def command(files: tuple[Path, Path], folder: Path, limit: int = 0) -> list[str]:
    return [sys.executable, "-c", CONVERT, *map(str, files), str(folder), str(limit)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("limit", [2_000, 10_000])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    """A limit on the size of files makes writes fail as a full disk does.

    The lower one hits the spooled lines, the higher one the files of the folder.
    """
    reviews = random_reviews(50, users=400, n=3000)
    files = raw_files(tmp_path / "raw", reviews)
    if limit == 10_000:
        files = (short_lines(files[0], reviews), files[1])
    target = tmp_path / "data"
    done = subprocess.run(
        command(files, target, limit), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "Free disk space" in done.stdout
    assert list(target.iterdir()) == []


def test_a_process_of_rows_tells_what_stopped_it(tmp_path: Path) -> None:
    """Nowhere to write to, as the system tells; a record that is none, as Python does."""
    records = tmp_path / "records.tsv"
    records.write_text("I1\t\n")
    with pytest.raises(FileNotFoundError):
        make_rows(records, tmp_path / "absent" / "rows", RELEASES["2018"], 10_000)
    records.write_text("I1\tno JSON\n")
    with pytest.raises(RuntimeError, match="JSONDecodeError"):
        make_rows(records, tmp_path / "rows", RELEASES["2018"], 10_000)


def short_lines(path: Path, reviews: list[tuple[str, str, int]]) -> Path:
    """An array has no spooled lines: what is written first is the folder."""
    keys = ("reviewerID", "asin", "unixReviewTime")
    path.write_text(json.dumps([dict(zip(keys, r, strict=True)) for r in reviews]))
    return path


@pytest.mark.slow
def test_a_kill_leaves_no_folder_or_the_old_one(tmp_path: Path) -> None:
    files = raw_files(tmp_path / "raw", random_reviews(51, users=3000, n=40_000))
    target = tmp_path / "data"
    start = time.monotonic()
    subprocess.run(command(files, target), env=environment(), check=True)
    whole = time.monotonic() - start
    expected = {file.name: file.read_bytes() for file in (target / "x").iterdir()}
    killed = 0
    for share in (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95):
        with subprocess.Popen(command(files, target), env=environment()) as process:
            time.sleep(whole * share)
            process.send_signal(signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
        # In the moment between two renames the old folder has a hidden name; never is it half.
        if (target / "x").exists():
            assert {f.name: f.read_bytes() for f in (target / "x").iterdir()} == expected
    assert killed


def test_wrong_memory_is_named(tmp_path: Path) -> None:
    files = raw_files(tmp_path / "raw", random_reviews(52))
    with pytest.raises(InputError, match="memory='lots'"):
        convert_amazon("x", *files, tmp_path, memory="lots")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("key", ["reviewerID", "asin"])
@pytest.mark.parametrize("bad", ["a\tb", "a\nb", " a", "a\u00a0b", "null"])
@pytest.mark.parametrize("exact", [False, True])
def test_ids_that_a_file_cannot_carry_are_refused(
    tmp_path: Path, key: str, bad: str, exact: bool
) -> None:
    records = [review(*r) for r in random_reviews(53, n=40)]
    records[7][key] = bad
    source = write_lines(tmp_path / "r", records)
    metadata = write_lines(tmp_path / "m", [meta("I0")])
    with pytest.raises(InputError) as caught:
        convert_amazon("x", source, metadata, tmp_path, exact=exact)
    assert f"r, line 8: the {key} {bad!r}" in str(caught.value)


def test_unusual_ids_make_the_round_trip(tmp_path: Path) -> None:
    names = ["é", "#1", "'q'", "a,b", "a;b", "a\\b", "-", "\\N", "x|y", "日本", "A\x7f"]
    reviews = [(f"{u}{n}", i, 1_500_000_000) for n in range(3) for u in names for i in names]
    files = raw_files(tmp_path / "raw", reviews)
    made = convert_amazon("x", *files, tmp_path, augment=False, drop_repeats=False)
    found = [
        line.split("\t")
        for part in ("train", "valid", "test")
        for line in (made.path / f"x.{part}.inter").read_text("utf-8").split("\n")[1:-1]
    ]
    assert {row[0] for row in found} == {r[0] for r in reviews}
    assert all([*row[1].split(" "), row[2]] == names for row in found)
    items = (made.path / "items.jsonl").read_text("utf-8").split("\n")[:-1]
    assert [json.loads(line)["item_id"] for line in items] == sorted(names)


def test_nothing_is_downloaded_and_no_bar_is_printed(tmp_path: Path) -> None:
    with open_database(tmp_path, "x") as database:
        loaded = database.execute(
            "SELECT extension_name FROM duckdb_extensions() "
            "WHERE loaded AND install_mode != 'STATICALLY_LINKED'"
        )
        options = database.row(
            "SELECT current_setting('autoinstall_known_extensions'), "
            "current_setting('autoload_known_extensions'), "
            "current_setting('enable_progress_bar')"
        )
    assert (loaded, options) == ([], (False, False, False))
