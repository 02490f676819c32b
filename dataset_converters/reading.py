"""Source fingerprints, rejected lines, and the JSON-lines files of a data set folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_converters.errors import InputError

_QUOTED = 200  # characters of a bad line kept in rejected.jsonl
# Below this many lines the share of rejected ones is judged only at the end of the file.
_LINES_BEFORE_EARLY_STOP = 10_000


@dataclass
class Rejection:
    """One line that was left out, and why. `line` counts from 1."""

    file: str
    line: int
    reason: str
    text: str


@dataclass
class RejectionLog:
    """Lines left out so far; stops the conversion when their share passes `limit` (0..1)."""

    limit: float = 0.01
    entries: list[Rejection] = field(default_factory=list)
    _of_file: dict[Path, list[Rejection]] = field(default_factory=dict)

    def add(self, path: Path, line: int, reason: str, raw: bytes) -> None:
        text = raw[:_QUOTED].decode("utf-8", "replace")
        entry = Rejection(path.name, line, reason, text)
        self.entries.append(entry)
        self._of_file.setdefault(path, []).append(entry)
        if line >= _LINES_BEFORE_EARLY_STOP:
            self.check(path, line)

    def add_record(self, path: Path, line: int, reason: str, record: dict[str, Any]) -> None:
        """Add a line that is a record but not a usable one."""
        # default=str: a literal of the 2014 release may hold what JSON has no word for.
        self.add(path, line, reason, json.dumps(record, default=str).encode())

    def check(self, path: Path, lines: int) -> None:
        """Raise InputError when more than `limit` of the first `lines` lines were rejected."""
        mine = self._of_file.get(path, [])
        if len(mine) > self.limit * lines:
            raise InputError(
                f"{path}: {len(mine)} of the {lines} lines read were rejected, more than the "
                f"allowed share of {self.limit:.2%}. The first: line {mine[0].line}: "
                f"{mine[0].reason}. Repair the file, or raise max_rejected."
            )


@dataclass(frozen=True, slots=True)
class SourceFile:
    """What identifies an input file: its name, size in bytes and content hash.

    `truncated_after` is the number of complete lines of a cut gzip stream, None for a whole file.
    """

    name: str
    bytes: int
    sha256: str
    truncated_after: int | None = None


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of one of the data set folder's own JSON-lines files.

    Raises:
        InputError: unreadable, or a line that is not a JSON object.
    """
    try:
        lines = path.open(encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    with lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not JSON ({error}).") from error
            if not isinstance(record, dict):
                raise InputError(f"{path}, line {number}: not a JSON object.")
            yield number, record
