"""Items' rows made before it is known which items stay: kept in a file, chosen from later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from dataset_converters.item_content import ITEM_HEADER, ItemRow

_CELLS = ITEM_HEADER.count("\t") + 1


def spool_items(rows: Iterable[ItemRow], path: Path) -> None:
    """Keep rows in a file; no part of a row has a tab but its `cells`, nor a line end."""
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write("\t".join(row) + "\n")


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
