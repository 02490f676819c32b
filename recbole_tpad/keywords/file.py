"""Annotator `file`: keywords that exist already, as CSV or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.files import sha256_file
from recbole_tpad.keywords.annotator import Answer, Outcome


class FileAnnotator:
    """Takes keywords from a file.

    Args:
        source: ``.csv`` with columns item_id and keywords (separated by ';'), or JSON lines with
            item_id and keywords (a list).
    """

    name = "file"
    visual = True  # whoever wrote them is taken at their word

    def __init__(self, source: Path) -> None:
        self._source = source

    def describe(self) -> dict[str, object]:
        """The file's name and content hash."""
        return {
            "annotator": self.name,
            "file": self._source.name,
            "sha256": sha256_file(self._source),
        }

    def annotate(self, items: Sequence[Item]) -> Outcome:
        """Look every item up.

        Raises:
            InputError: absent or malformed file (with the line), an item named twice, or no item
                of the data set named at all.
        """
        found, unknown = read_keywords(self._source, {item.item_id for item in items})
        if not found:
            example = f" Ids look like '{items[0].item_id}' there." if items else ""
            raise InputError(
                f"{self._source} names no item of the data set ({unknown} other items). Is it for "
                f"another data set?{example}"
            )
        outcome = Outcome(unknown=unknown)
        for item in items:
            keywords = found.get(item.item_id)
            if keywords:
                outcome.answers.append(Answer(item.item_id, "ok", tuple(keywords)))
            elif keywords is None:
                reason = "the file does not name it"
                outcome.answers.append(Answer(item.item_id, "not asked", reason=reason))
            else:
                outcome.answers.append(Answer(item.item_id, "empty", reason="an empty list"))
        return outcome


def read_keywords(source: Path, known: set[str] | None = None) -> tuple[dict[str, list[str]], int]:
    """Read a file of keywords.

    Args:
        source: as for `FileAnnotator`.
        known: item ids to take; None takes all.

    Returns:
        Item id → keywords with single spaces, without repeats; and the number of other lines.

    Raises:
        InputError: absent or malformed file (with the line), or an item named twice.
    """
    found: dict[str, list[str]] = {}
    unknown = 0
    for line, item_id, keywords in _read(source):
        if known is not None and item_id not in known:
            unknown += 1
        elif item_id in found:
            raise InputError(f"{source}, line {line}: item '{item_id}' is named a second time.")
        else:
            found[item_id] = list(dict.fromkeys(" ".join(k.split()) for k in keywords if k.strip()))
    return found, unknown


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
