"""Items' rows made before it is known which items stay: kept in a file, chosen from later.

Run as a module it makes them, for `make_rows` of another process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from dataset_converters.amazon_records import RELEASES, Release, content_record, item_content
from dataset_converters.item_content import ITEM_HEADER, ItemContent, ItemRow, item_row

_CELLS = ITEM_HEADER.count("\t") + 1
# To start a process takes as long as a few thousand items.
_WORTH_A_PROCESS = 5_000
_SYSTEM_REFUSED = 3  # exit status after an OSError, whose number is printed


def make_rows(records: Path, rows: Path, release: Release, count: int) -> None:
    """Write the rows of items to the file `rows`; `spooled_items` reads them.

    Many are made in a process of their own: in a thread this work, all of it Python's, would keep
    the others from running.

    Args:
        records: a line an item: its id, a tab, and its record (see `content_record`) or nothing.
        count: how many there are.

    Raises:
        OSError: the system refused a read or write.
    """
    if count < _WORTH_A_PROCESS or not sys.executable:
        _make_rows(records, rows, release)
        return
    command = [sys.executable, "-m", __name__, str(records), str(rows), release.name]
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    if done.returncode == _SYSTEM_REFUSED:
        raise OSError(int(done.stdout), os.strerror(int(done.stdout)), str(rows))
    if done.returncode:
        raise RuntimeError(f"making the items' rows failed:\n{done.stderr}")


def _make_rows(records: Path, rows: Path, release: Release) -> None:
    with (
        records.open(encoding="utf-8", newline="\n") as given,
        rows.open("w", encoding="utf-8", newline="\n") as out,
    ):
        for line in given:
            item_id, _, text = line.removesuffix("\n").partition("\t")
            if text:
                item = item_content(content_record(text, release), release)
            else:
                item = ItemContent(item_id)
            # No part of a row has a tab but its cells, nor a line end.
            out.write("\t".join(item_row(item)) + "\n")


def spooled_items(path: Path, ids: Iterable[str]) -> Iterator[ItemRow]:
    """Yield the kept rows of `ids`, which come in the order of the rows."""
    wanted = iter(ids)
    item_id = next(wanted, None)
    with path.open(encoding="utf-8", newline="\n") as kept:
        for text in kept:
            present, *cells, line = text.removesuffix("\n").split("\t", _CELLS + 1)
            if cells[0] == item_id:
                yield ItemRow(present, "\t".join(cells), line)
                item_id = next(wanted, None)
    if item_id is not None:
        raise RuntimeError(f"no row of item {item_id!r} was kept")


if __name__ == "__main__":
    try:
        _make_rows(Path(sys.argv[1]), Path(sys.argv[2]), RELEASES[sys.argv[3]])
    except OSError as error:
        print(error.errno)
        sys.exit(_SYSTEM_REFUSED)
