"""Decompresses gzip files fast, and cut or damaged ones up to the byte where they break."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from isal import igzip_lib

_ERROR = cast(type[Exception], igzip_lib.error)  # the stub takes the class for an instance
MAGIC = b"\x1f\x8b"
_CHECKED = 31  # window bits for a gzip stream whose CRC and length are checked
# A piece and what it came from stay in the processor's cache.
_PIECE = 1 << 17
_SLOW_READ = 1 << 14


class GzipStream:
    """The decompressed bytes of a gzip file of one or more members, in pieces.

    ISA-L decompresses three times as fast as zlib, but cannot say where a stream breaks. At
    anything but a clean end zlib reads the member again: of a cut stream exactly what zlib reads is
    yielded. ISA-L lets pass a few damages that zlib does not (a flag of the header, a code that the
    data never uses); a member counts as whole when it comes to its end with the right CRC.

    After the iteration `broken` is empty, or says why the stream broke off, and `position` is the
    number of compressed bytes up to there.

    Args:
        path: the file.
        read: returns its next bytes; empty at the end.
        start: its first bytes, read already.
    """

    def __init__(self, path: Path, read: Callable[[], bytes], start: bytes = b"") -> None:
        self.broken = ""
        self.position = len(start)
        self._start = start
        self._path = path
        self._read = read

    def __iter__(self) -> Iterator[bytes]:
        decoder: Any = None
        start = made = 0  # the member's first byte in the file; its bytes that were yielded
        data = self._start
        while True:
            at_end = False
            if not data and (decoder is None or decoder.needs_input):
                data = self._read()
                at_end = not data
                self.position += len(data)
                if not data and decoder is None:
                    return
            if decoder is None:
                data = data.lstrip(b"\0")  # padding between the members
                if not data:
                    continue
                decoder = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
                start, made = self.position - len(data), 0
            try:
                piece = decoder.decompress(data, _PIECE)
            except _ERROR:
                yield from self._with_zlib(start, made)
                return
            if piece:
                made += len(piece)
                yield piece
            elif at_end and not decoder.eof:
                yield from self._with_zlib(start, made)
                return
            data = b""
            if decoder.eof:
                data, decoder = decoder.unused_data, None

    def _with_zlib(self, start: int, skip: int) -> Iterator[bytes]:
        """Yield the bytes of the members from position `start` on, without the first `skip`."""
        with self._path.open("rb") as handle:
            handle.seek(start)
            for piece in self._slow_pieces(handle.read, start):
                yield piece[skip:]
                skip = max(0, skip - len(piece))

    def _slow_pieces(self, read: Callable[[int], bytes], position: int) -> Iterator[bytes]:
        decoder = zlib.decompressobj(_CHECKED)
        inside = False
        data = b""
        while data or (data := read(_SLOW_READ)):
            if not inside:
                position += len(data) - len(data := data.lstrip(b"\0"))
                if not data:
                    continue
            inside = True
            before = decoder.copy()
            try:
                piece = decoder.decompress(data)
            except zlib.error as error:
                self.broken = str(error)
                for byte in data:
                    try:
                        piece = before.decompress(bytes([byte]))
                    except zlib.error:
                        break
                    position += 1
                    yield piece
                self.position = position
                return
            yield piece
            position += len(data) - len(decoder.unused_data)
            data = decoder.unused_data
            if decoder.eof:
                decoder, inside = zlib.decompressobj(_CHECKED), False
        self.position = position
        if inside:
            self.broken = "the stream ends before its end mark"
