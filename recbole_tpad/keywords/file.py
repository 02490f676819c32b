"""Annotator `file`: keywords that exist already, as CSV or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.files import atomic_path


@dataclass(frozen=True, slots=True)
class KeywordReport:
    """Counts of one annotation run."""

    items: int
    annotated: int
    keywords: int
    unknown: int

    def __str__(self) -> str:
        text = (
            f"{self.annotated:,} of {self.items:,} items have keywords, "
            f"{self.keywords:,} different ones"
        )
        if self.unknown:
            text += f"; {self.unknown:,} lines were for items that the data set does not have"
        return text


def annotate_from_file(data_path: str | Path, dataset: str, source: Path) -> KeywordReport:
    """Write ``keywords.jsonl`` of a data set from a file.

    Args:
        data_path: folder of data set folders.
        dataset: data set name.
        source: ``.csv`` with columns item_id and keywords (separated by ';'), or JSON lines
            with item_id and keywords (a list).

    Raises:
        InputError: absent or malformed file (with the line), an item named twice, or no item of
            the data set named at all.
    """
    folder = DatasetFolder.open(data_path, dataset)
    known = set(folder.item_ids)
    found: dict[str, list[str]] = {}
    unknown = 0
    for line, item_id, keywords in _read(source):
        if item_id not in known:
            unknown += 1
        elif item_id in found:
            raise InputError(f"{source}, line {line}: item '{item_id}' is named a second time.")
        else:
            found[item_id] = list(dict.fromkeys(" ".join(k.split()) for k in keywords if k.strip()))
    if not found:
        raise InputError(
            f"{source} names no item of data set '{dataset}' ({unknown} other items). Is it for "
            f"another data set? Ids look like '{folder.item_ids[0]}' there."
        )
    with atomic_path(folder.path / "keywords.jsonl") as temporary, temporary.open("w") as out:
        for item_id in sorted(found):
            record = {"item_id": item_id, "keywords": found[item_id], "annotator": "file"}
            out.write(json.dumps(record, ensure_ascii=True) + "\n")
    return KeywordReport(
        items=len(known),
        annotated=sum(bool(k) for k in found.values()),
        keywords=len({k for keywords in found.values() for k in keywords}),
        unknown=unknown,
    )


def _read(source: Path) -> Iterator[tuple[int, str, list[str]]]:
    try:
        stream = source.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise InputError(f"Cannot read {source}: {error.strerror}.") from error
    with stream:
        try:
            if source.suffix.lower() == ".csv":
                yield from _read_csv(source, csv.DictReader(stream))
            else:
                yield from _read_jsonl(source, stream)
        except UnicodeDecodeError as error:
            raise InputError(f"{source} is not UTF-8 text ({error}).") from error
        except csv.Error as error:
            raise InputError(f"{source} is not a CSV file ({error}).") from error


def _read_csv(source: Path, rows: csv.DictReader[str]) -> Iterator[tuple[int, str, list[str]]]:
    header = rows.fieldnames or []
    if not {"item_id", "keywords"} <= set(header):
        raise InputError(
            f"{source}, line 1: the columns item_id and keywords are needed, found "
            f"{', '.join(header) or 'nothing'}."
        )
    for row in rows:
        item_id, keywords = row["item_id"], row["keywords"]
        if not item_id or keywords is None:
            raise InputError(f"{source}, line {rows.line_num}: item_id or keywords is missing.")
        yield rows.line_num, item_id, keywords.split(";")


def _read_jsonl(source: Path, lines: Iterable[str]) -> Iterator[tuple[int, str, list[str]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            item_id, keywords = record["item_id"], record["keywords"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{source}, line {number}: not a JSON object with item_id and keywords ({error})."
            ) from error
        texts = isinstance(keywords, list) and all(isinstance(k, str) for k in keywords)
        if not isinstance(item_id, str) or not texts:
            raise InputError(
                f"{source}, line {number}: item_id must be a string, keywords a list of strings."
            )
        yield number, item_id, keywords
