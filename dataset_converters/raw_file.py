"""Raw files as blocks of whole lines: gzip or plain, hashed on the way, cut streams explained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from dataset_converters.errors import InputError
from dataset_converters.gzip_stream import MAGIC, GzipStream
from dataset_converters.json_array import ArrayReader
from dataset_converters.progress import progress
from dataset_converters.reading import SourceFile

_READ = 1 << 16
_LINE_END = ord("\n")
_LONGEST_LINE = 256 << 20
LITERAL = b"{'"  # how a Python dict with text keys starts
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive records of a file.

    Attributes:
        first_line: number of the first line, from 1; of the first element in a JSON array.
        lines: how many there are.
        store: the whole lines, each with its line end: the file they are in, or their bytes; empty
            for a JSON array.
        literals: whether the first line starts as a Python literal does.
        elements: the parsed elements of a JSON array, else None.
    """

    first_line: int
    lines: int
    store: Path | bytes
    literals: bool = False
    elements: list[Any] | None = None

    def read_lines(self) -> Iterator[bytes]:
        """Yield the lines, without their ends."""
        with (
            BytesIO(self.store) if isinstance(self.store, bytes) else self.store.open("rb") as data
        ):
            for line in data:
                yield line.removesuffix(b"\n")

    @property
    def quick(self) -> bool:
        """Whether the block may be lines of JSON in a file: no array and no Python literals."""
        return self.elements is None and not self.literals


class RawFile:
    """The blocks of a file of JSON lines, or of one JSON array; gzip is told by content.

    After the iteration `lines` holds the number of complete lines (or elements), `truncated`
    whether the gzip stream was cut or damaged, and `source` the file's fingerprint.

    Args:
        block: least bytes of lines in a block, but for the first and last one.
        folder: where the lines of a block are written, for DuckDB to read; three files take turns:
            one is being read, one waits, one is written. None: they are kept in memory.

    Raises (while iterating):
        InputError: the file is absent or empty; the stream is cut or damaged and `allow_truncated`
            is false; a line of more than 256 MB; an element of an array is not JSON.
    """

    def __init__(
        self,
        path: Path,
        *,
        block: int,
        folder: Path | None = None,
        allow_truncated: bool = False,
        quiet: bool = False,
    ) -> None:
        self.path = path
        self.allow_truncated = allow_truncated
        self.lines = 0
        self.truncated = False
        self.source = SourceFile(path.name, 0, "")
        self._block = block
        self._folder = folder
        self._turn = 0
        self._quiet = quiet
        self._broken = ""
        self._readable = 0  # compressed bytes up to where the stream is broken
        self._digest = hashlib.sha256()
        self._bytes = 0

    def __iter__(self) -> Iterator[Block]:
        try:
            handle = self.path.open("rb")
        except OSError as error:
            raise InputError(f"Cannot read {self.path}: {error.strerror}.") from error
        with handle, self._progress() as bar:
            chunks = self._chunks(handle, bar)
            start = b""
            for chunk in chunks:
                start += chunk
                if start.lstrip():
                    break
            if start.lstrip()[:1] == b"[":
                yield from self._array_blocks(start, chunks)
            else:
                yield from self._line_blocks(start, chunks)
            while self._read(handle, bar):
                pass
        if not self.lines and not self.truncated:
            raise InputError(f"{self.path} is empty.")
        cut = self.lines if self.truncated else None
        self.source = SourceFile(self.path.name, self._bytes, self._digest.hexdigest(), cut)

    def _progress(self) -> Any:
        return progress(
            total=self.path.stat().st_size,
            unit="B",
            unit_scale=True,
            desc=self.path.name,
            mininterval=1,
            wanted=not self._quiet,
        )

    def _read(self, handle: BinaryIO, bar: Any) -> bytes:
        data = handle.read(_READ)
        self._digest.update(data)
        self._bytes += len(data)
        bar.update(len(data))
        return data

    def _chunks(self, handle: BinaryIO, bar: Any) -> Iterator[bytes]:
        data = self._read(handle, bar)
        if data[:2] != MAGIC:
            while data:
                yield data
                data = self._read(handle, bar)
            return
        stream = GzipStream(self.path, lambda: self._read(handle, bar), data)
        yield from stream
        self._broken, self._readable = stream.broken, stream.position

    def _line_blocks(self, start: bytes, chunks: Iterator[bytes]) -> Iterator[Block]:
        lines = _Lines(self._store())
        for chunk in chain([start], chunks):
            lines.write(chunk)
            if lines.unfinished > _LONGEST_LINE:
                raise InputError(
                    f"{self.path}, line {self.lines + lines.count + 1}: longer than "
                    f"{_LONGEST_LINE >> 20} MB. Expected one JSON object a line."
                )
            # The first is small: whoever handles it has nothing to do meanwhile.
            if lines.whole >= (self._block if self.lines else max(1, self._block // 8)):
                rest = chunk[len(chunk) - lines.unfinished :]
                yield self._lines_block(lines)
                lines = _Lines(self._store())
                lines.write(rest)
        if self._broken:
            # The unfinished last line of a truncated stream is no record of the file.
            self._refuse_broken(self.lines + lines.count, "complete lines", "line")
        elif lines.unfinished:
            lines.write(b"\n")
        if lines.count:
            yield self._lines_block(lines)
        else:
            lines.close()

    def _store(self) -> BinaryIO:
        if self._folder is None:
            return BytesIO()
        self._turn = (self._turn + 1) % 3
        path = self._folder / f"block{self._turn}.jsonl"
        # In place: pages of the old block are used again, which is faster than new ones.
        return path.open("r+b" if path.exists() else "wb")

    def _lines_block(self, lines: _Lines) -> Block:
        block = Block(self.lines + 1, lines.count, lines.close(), lines.literals)
        self.lines += block.lines
        return block

    def _array_blocks(self, start: bytes, chunks: Iterator[bytes]) -> Iterator[Block]:
        reader = ArrayReader(self.path)
        pending: list[Any] = []
        size = 0
        chunk: bytes | None = start
        while chunk is not None:
            pending += reader.feed(chunk)
            size += len(chunk)
            if pending and size >= self._block:
                yield self._elements_block(pending)
                pending, size = [], 0
            chunk = next(chunks, None)
        if self._broken:
            self._refuse_broken(reader.elements, "elements of its array", "element")
        else:
            reader.close()
        if pending:
            yield self._elements_block(pending)

    def _elements_block(self, elements: list[Any]) -> Block:
        block = Block(self.lines + 1, len(elements), b"", elements=elements)
        self.lines += block.lines
        return block

    def _refuse_broken(self, complete: int, things: str, thing: str) -> None:
        self.truncated = True
        if not self.allow_truncated:
            raise InputError(
                f"{self.path} is truncated or damaged: {complete} {things} could be read, "
                f"{thing} {complete + 1} is cut after {self._readable} compressed bytes "
                f"({self._broken}). Fetch the file again, or accept the readable part with "
                "allow_truncated."
            )


class _Lines:
    """The lines of one block while they are written.

    Attributes:
        count, whole: number and bytes of the whole lines.
        unfinished: bytes after them.
        literals: whether the first line starts as a Python literal does.
    """

    def __init__(self, out: BinaryIO) -> None:
        self.count = 0
        self.whole = 0
        self.unfinished = 0
        self._start = b""
        self._out = out

    @property
    def literals(self) -> bool:
        return self._start == LITERAL

    def write(self, data: bytes) -> None:
        """Add bytes, which may end within a line."""
        missing = len(LITERAL) - len(self._start)
        self._start += data[:missing]
        self._out.write(data)
        # Counted here, not on the whole block, while the bytes are in the processor's cache.
        count = int(np.count_nonzero(np.frombuffer(data, dtype=np.uint8) == _LINE_END))
        if count:
            after = len(data) - 1 - data.rfind(b"\n")
            self.whole += self.unfinished + len(data) - after
            self.unfinished = after
            self.count += count
        else:
            self.unfinished += len(data)

    def close(self) -> Path | bytes:
        """Return where the whole lines are."""
        with self._out as out:
            out.truncate(self.whole)
            return out.getvalue() if isinstance(out, BytesIO) else Path(out.name)


def read_ahead(items: Iterator[_T]) -> Iterator[_T]:
    """Yield the items of an iterator that works on the next one in a thread meanwhile."""
    end = object()
    with ThreadPoolExecutor(max_workers=1) as worker:
        coming = worker.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = worker.submit(next, items, end)
            yield item  # type: ignore[misc]  # not the end mark
