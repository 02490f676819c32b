"""Streaming JSON lines, gzipped or plain: progress, source fingerprints, rejected lines."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from dataset_converters.errors import InputError

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 18
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
    """What identifies an input file: its name, size in bytes and content hash."""

    name: str
    bytes: int
    sha256: str


class _HashingReader:
    """A binary file whose read bytes are hashed and shown on a progress bar on the way."""

    def __init__(self, handle: BinaryIO, bar: Any) -> None:
        self._handle = handle
        self._bar = bar
        self.digest = hashlib.sha256()
        self.bytes = 0

    def read(self, size: int = -1) -> bytes:
        data = self._handle.read(size)
        self.digest.update(data)
        self.bytes += len(data)
        self._bar.update(len(data))
        return data


class JsonLines:
    """The objects of a JSON-lines file in file order, one in memory at a time.

    Gzip is recognised by content, never by the file's name. After the iteration `lines` holds the
    number of complete lines and `source` the file's fingerprint.

    Raises (while iterating):
        InputError: the file is absent; the gzip stream is cut or damaged and `allow_truncated` is
            false; too many lines are not JSON objects; the whole file is a JSON array or has
            Python dict literals.
    """

    def __init__(
        self, path: Path, rejections: RejectionLog, *, allow_truncated: bool = False
    ) -> None:
        self.path = path
        self.rejections = rejections
        self.allow_truncated = allow_truncated
        self.lines = 0
        self.truncated = False
        self.source = SourceFile(path.name, 0, "")

    def reject(self, line: int, reason: str, record: dict[str, Any]) -> None:
        """Leave out a line that is JSON but not usable."""
        raw = json.dumps(record, ensure_ascii=True).encode()
        self.rejections.add(self.path, line, reason, raw)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (line number from 1, object)."""
        for number, raw in self._raw_lines():
            if not raw.strip():
                continue
            try:
                record = json.loads(raw)
            except ValueError as error:
                self._explain_first_line(number, raw)
                self.rejections.add(self.path, number, f"not JSON ({error})", raw)
                continue
            if isinstance(record, dict):
                yield number, record
                continue
            self._explain_first_line(number, raw)
            self.rejections.add(self.path, number, "not a JSON object", raw)
        self.rejections.check(self.path, max(self.lines, 1))

    def _explain_first_line(self, number: int, raw: bytes) -> None:
        """A file in a known other shape fails at its first line, with the shape's name."""
        if number != 1:
            return
        start = raw.lstrip()[:2]
        if start == b"{'":
            raise InputError(
                f"{self.path}, line 1: a Python dict literal, as in the metadata of the 2014 "
                "release; the 2018 release has one JSON object a line."
            )
        if start[:1] == b"[":
            raise InputError(f"{self.path}, line 1: a JSON array; expected one JSON object a line.")

    def _raw_lines(self) -> Iterator[tuple[int, bytes]]:
        try:
            handle = self.path.open("rb")
        except OSError as error:
            raise InputError(f"Cannot read {self.path}: {error.strerror}.") from error
        with (
            handle,
            tqdm(
                total=self.path.stat().st_size,
                unit="B",
                unit_scale=True,
                desc=self.path.name,
                delay=3,
                mininterval=1,
                leave=False,
            ) as bar,
        ):
            compressed = handle.read(2) == _GZIP_MAGIC
            handle.seek(0)
            reader = _HashingReader(handle, bar)
            rest = b""
            for chunk in self._chunks(reader, compressed):
                pieces = (rest + chunk).split(b"\n")
                rest = pieces.pop()
                for piece in pieces:
                    self.lines += 1
                    yield self.lines, piece
            # The unfinished last line of a truncated stream is no record of the file.
            if rest and not self.truncated:
                self.lines += 1
                yield self.lines, rest
            while reader.read(_CHUNK):
                pass
            self.source = SourceFile(self.path.name, reader.bytes, reader.digest.hexdigest())

    def _chunks(self, reader: _HashingReader, compressed: bool) -> Iterator[bytes]:
        if not compressed:
            while data := reader.read(_CHUNK):
                yield data
            return
        stream = gzip.GzipFile(fileobj=reader, mode="rb")  # type: ignore[call-overload]  # uses read() only
        while True:
            try:
                # read1: one underlying read, so nothing decoded is lost when the stream breaks.
                data = stream.read1(_CHUNK)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                self.truncated = True
                if not self.allow_truncated:
                    raise InputError(
                        f"{self.path} is truncated or damaged: {self.lines} complete lines could "
                        f"be read, line {self.lines + 1} is cut after {reader.bytes} compressed "
                        f"bytes ({error}). Fetch the file again, or accept the readable part with "
                        "allow_truncated."
                    ) from error
                return
            if not data:
                return
            yield data


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
