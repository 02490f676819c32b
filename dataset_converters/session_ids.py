"""Converts sessions of ids that already are RecBole benchmark files to a data set folder."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dataset_converters.errors import InputError
from dataset_converters.files import sha256_file
from dataset_converters.folder import (
    Conversion,
    ConversionSummary,
    Funnel,
    check_id,
    target_path,
    write_folder,
)
from dataset_converters.given_split import split_as_given
from dataset_converters.reading import SourceFile
from dataset_converters.sessions import SessionTable
from dataset_converters.split import PARTS


def convert_session_ids(
    name: str,
    train: Path,
    test: Path,
    data_path: Path,
    *,
    valid: Path | None = None,
    valid_share: float = 0.1,
    augment: bool = False,
    max_len: int = 50,
    overwrite: bool = False,
) -> ConversionSummary:
    """Convert benchmark files to ``<data_path>/<name>/``; the items have no content.

    Each row is a session, its id, the list of its items and the last item, or one prefix of a
    session that stands in adjacent rows. Order within a session is kept.

    Args:
        valid: without it, the last `valid_share` of the training sessions in file order become the
            validation part (assumption, see `split_as_given`).
        augment: one training row for every prefix instead of one a session. The published files of
            this kind have one.
        max_len: most context items in a row; the last ones are kept.

    Raises:
        InputError: unreadable file, header or row, an id RecBole cannot read or in two places, too
            few sessions, or an existing folder.
    """
    if max_len < 1:
        raise InputError("max_len must be at least 1.")
    target_path(data_path, name, overwrite=overwrite)
    files = {"train": train, "valid": valid, "test": test}
    read = _Read()
    for code, part in enumerate(PARTS):
        path = files[part]
        if path is not None:
            read.add(path, code)
    table = read.table()
    funnel = Funnel(len(table.items))
    conversion = Conversion(
        name=name,
        release="session-ids",
        sessions="user",
        split_rule="given",
        split=split_as_given(table, np.array(read.parts, dtype=np.int64), valid_share=valid_share),
        contents={},
        sources=[_source(path) for path in files.values() if path is not None],
        options={
            "valid_share": None if valid is not None else valid_share,
            "augment": augment,
            "max_len": max_len,
        },
        counts={"sessions_read": len(table), "interactions_read": len(table.items)},
        filters=funnel.steps,
        augment=augment,
        max_len=max_len,
    )
    return write_folder(conversion, data_path, overwrite=overwrite)


def _source(path: Path) -> SourceFile:
    return SourceFile(path.name, path.stat().st_size, sha256_file(path))


@dataclass
class _Read:
    """Sessions read so far, in file order."""

    sessions: dict[str, Path] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    flat: array[int] = field(default_factory=lambda: array("q"))
    offsets: list[int] = field(default_factory=lambda: [0])
    parts: list[int] = field(default_factory=list)

    def add(self, path: Path, part: int) -> None:
        """Read one file's sessions."""
        for line, session, items in _sessions(path):
            known = self.sessions.get(session)
            if known is not None:
                where = "twice, not in adjacent rows," if known == path else f"in {known} and"
                raise InputError(
                    f"{path}, line {line}: the session '{session}' is {where} in this file. "
                    "Sessions must be whole and in one part (leave-one-out files share their "
                    "sessions: convert their source with 'convert table')."
                )
            check_id(session, "session id", f"{path}, line {line}")
            self.sessions[session] = path
            for item in items:
                index = self.items.get(item)
                if index is None:
                    check_id(item, "item id", f"{path}, line {line}")
                    index = self.items[item] = len(self.items)
                self.flat.append(index)
            self.offsets.append(len(self.flat))
            self.parts.append(part)

    def table(self) -> SessionTable:
        count = len(self.sessions)
        return SessionTable(
            user_ids=list(self.sessions),
            item_ids=list(self.items),
            owners=np.arange(count),
            days=None,
            offsets=np.array(self.offsets, dtype=np.int64),
            items=np.array(self.flat, dtype=np.int64),
            times=None,
        )


def _sessions(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield (line of the last row, session id, items) of a file, prefixes of a session as one."""
    current: tuple[int, str, list[str]] | None = None
    rows = 0
    for line, session, context, target in _rows(path):
        rows += 1
        if current is not None and current[1] == session:
            # The next prefix repeats all but its target; a cut list repeats the last of them.
            if current[2][-len(context) :] != context:
                raise InputError(
                    f"{path}, line {line}: the session '{session}' goes on with a list that does "
                    "not end with the row before. Rows of a session must be its growing prefixes."
                )
            current = (line, session, [*current[2], target])
            continue
        if current is not None:
            yield current
        current = (line, session, [*context, target])
    if current is None:
        raise InputError(f"{path} has no session in it.")
    yield current


def _rows(path: Path) -> Iterator[tuple[int, str, list[str], str]]:
    """Yield (line, session id, context, target)."""
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            header = next(lines, "").rstrip("\r\n").split("\t")
            session_at, list_at, item_at = _columns(path, header)
            for number, line in enumerate(lines, start=2):
                cells = line.rstrip("\r\n").split("\t")
                if len(cells) != len(header):
                    raise InputError(
                        f"{path}, line {number}: {len(cells)} cells, but the header has "
                        f"{len(header)}."
                    )
                context = cells[list_at].split(" ")
                yield number, cells[session_at], context, cells[item_at]
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}.") from error


def _columns(path: Path, header: list[str]) -> tuple[int, int, int]:
    """Find the session, list and item columns: one list, the item named like it, one other id.

    Raises:
        InputError: another header.
    """
    lists = [k for k, name in enumerate(header) if name.endswith(":token_seq")]
    tokens = {
        name.removesuffix(":token"): k for k, name in enumerate(header) if name[-6:] == ":token"
    }
    if len(lists) == 1:
        item = header[lists[0]].removesuffix(":token_seq").removesuffix("_list")
        others = [k for name, k in tokens.items() if name != item]
        if item in tokens and len(others) == 1:
            return others[0], lists[0], tokens[item]
    raise InputError(
        f"{path}: the header must have one id, one list and one item column, as in "
        "'session_id:token, item_id_list:token_seq, item_id:token' (tab separated), not "
        f"'{', '.join(header)}'."
    )
