"""Raw files as blocks of whole lines: gzip or plain, hashed on the way, cut streams explained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from tqdm import tqdm

from dataset_converters.errors import InputError
from dataset_converters.gzip_stream import MAGIC, GzipStream
from dataset_converters.json_array import ArrayReader
from dataset_converters.reading import SourceFile

_READ = 1 << 16
_LONGEST_LINE = 256 << 20
LITERAL = b"{'"  # how a Python dict with text keys starts
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive records of a file.

    Attributes:
        first_line: number of the first line, from 1; of the first element in a JSON array.
        lines: how many there are.
        pieces: the bytes of whole lines, each with its line end, in pieces of any length; empty for
            a JSON array. Not joined, because the quick way only writes them to a file.
        elements: the parsed elements of a JSON array, else None.
    """

    first_line: int
    lines: int
    pieces: list[bytes]
    elements: list[Any] | None = None

    @property
    def data(self) -> bytes:
        """The bytes of the lines."""
        return b"".join(self.pieces)

    @property
    def quick(self) -> bool:
        """Whether the block may be lines of JSON: no array and no Python literals."""
        return self.elements is None and not self.pieces[0].startswith(LITERAL)


class RawFile:
    """The blocks of a file of JSON lines, or of one JSON array; gzip is told by content.

    After the iteration `lines` holds the number of complete lines (or elements), `truncated`
    whether the gzip stream was cut or damaged, and `source` the file's fingerprint.

    Raises (while iterating):
        InputError: the file is absent or empty; the stream is cut or damaged and `allow_truncated`
            is false; a line of more than 256 MB; an element of an array is not JSON.
    """

    def __init__(
        self, path: Path, *, block: int, allow_truncated: bool = False, quiet: bool = False
    ) -> None:
        self.path = path
        self.allow_truncated = allow_truncated
        self.lines = 0
        self.truncated = False
        self.source = SourceFile(path.name, 0, "")
        self._block = block
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
        return tqdm(
            total=self.path.stat().st_size,
            unit="B",
            unit_scale=True,
            desc=self.path.name,
            delay=3,
            mininterval=1,
            leave=False,
            disable=self._quiet,
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
        pending, size, limit = [start], len(start), self._block
        lines = start.count(b"\n")
        for chunk in chunks:
            pending.append(chunk)
            size += len(chunk)
            # Counted here, not on the whole block, while the bytes are in the processor's cache.
            lines += chunk.count(b"\n")
            if size < limit:
                continue
            if lines:
                whole, pending = _cut_after_last_line(pending)
                yield self._lines_block(whole, lines)
                lines = 0
            elif size > _LONGEST_LINE:
                raise InputError(
                    f"{self.path}, line {self.lines + 1}: longer than {_LONGEST_LINE >> 20} MB. "
                    "Expected one JSON object a line."
                )
            size = sum(map(len, pending))
            limit = max(self._block, 2 * size)
        if self._broken:
            # The unfinished last line of a truncated stream is no record of the file.
            if lines:
                pending, _ = _cut_after_last_line(pending)
            self._refuse_broken(self.lines + lines, "complete lines", "line")
        elif size and not next(filter(None, reversed(pending))).endswith(b"\n"):
            pending.append(b"\n")
            lines += 1
        if lines:
            yield self._lines_block(pending, lines)

    def _lines_block(self, pieces: list[bytes], lines: int) -> Block:
        block = Block(self.lines + 1, lines, pieces)
        self.lines += lines
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
        block = Block(self.lines + 1, len(elements), [], elements)
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


def _cut_after_last_line(pieces: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Split pieces that have a line end after the last one."""
    last = next(k for k in reversed(range(len(pieces))) if b"\n" in pieces[k])
    cut = pieces[last].rfind(b"\n") + 1
    return [*pieces[:last], pieces[last][:cut]], [pieces[last][cut:], *pieces[last + 1 :]]


def read_ahead(items: Iterator[_T]) -> Iterator[_T]:
    """Yield the items of an iterator that works on the next one in a thread meanwhile."""
    end = object()
    with ThreadPoolExecutor(max_workers=1) as worker:
        coming = worker.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = worker.submit(next, items, end)
            yield item  # type: ignore[misc]  # not the end mark
