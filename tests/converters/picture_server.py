"""A web server on this machine that serves images well and badly, and counts what is asked."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


def picture(colour: str = "red", kind: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, format=kind)
    return out.getvalue()


def png_bomb(side: int = 8_000) -> bytes:
    """A hundred kilobytes or so that decode to side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side + 1) * side, 1)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class PictureServer:
    """Answers by path; see `_Handler`.

    Attributes:
        asked: requests by path. most_at_a_time: of those that waited for an answer.
    """

    def __init__(self, host: str) -> None:
        self.asked: Counter[str] = Counter()
        self.moments: dict[str, list[float]] = {}
        self.most_at_a_time = 0
        self.most_open_files = 0
        self.slow = 0.0  # seconds before each answer
        self.bodies: dict[str, bytes] = {}
        self.agents: set[str] = set()
        self.headers: list[dict[str, str]] = []
        self._running = 0
        self._lock = threading.Lock()
        self.ended = threading.Event()
        outer = self

        class Handler(_Handler):
            server_state = outer

        self.server = ThreadingHTTPServer((host, 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def enter(self, path: str) -> int:
        """Note a request; return how many there were for this path, this one included."""
        with self._lock:
            self.asked[path] += 1
            self.moments.setdefault(path, []).append(time.monotonic())
            self._running += 1
            self.most_at_a_time = max(self.most_at_a_time, self._running)
            if sys.platform == "linux":
                self.most_open_files = max(self.most_open_files, len(os.listdir("/proc/self/fd")))
            return self.asked[path]

    def leave(self) -> None:
        with self._lock:
            self._running -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: PictureServer

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        state = self.server_state
        path = self.path.partition("?")[0]
        count = state.enter(path)
        state.headers.append({k.lower(): v for k, v in self.headers.items()})
        time.sleep(state.slow)
        state.leave()  # before the answer: after it, the next request may be there at once
        try:
            name, _, rest = path.lstrip("/").partition("/")
            getattr(self, f"do_{name.replace('-', '_')}", self.do_body)(rest, count)
        except OSError:
            self.close_connection = True  # the client left

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if not {"Content_Length", "Transfer_Encoding"} & set(headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_body(self, _: str, __: int) -> None:
        body = self.server_state.bodies.get(self.path.partition("?")[0])
        self.answer(404, b"gone") if body is None else self.answer(200, body)

    def do_status(self, rest: str, _: int) -> None:
        self.answer(int(rest.partition("/")[0]), b"no")

    def do_html(self, _: str, __: int) -> None:
        self.answer(200, b"<!DOCTYPE html><html>Sorry</html>", Content_Type="image/jpeg")

    def do_cut(self, rest: str, count: int) -> None:
        """Announces everything, sends half; whole from the second request on with /cut/once."""
        body = picture("blue")
        if rest.startswith("once") and count > 1:
            return self.answer(200, body)
        self.answer(200, body[:200], Content_Length=str(len(body)))
        self.close_connection = True
        return None

    def do_short_length(self, _: str, __: int) -> None:
        body = picture("blue")
        self.answer(200, body, Content_Length="200")

    def do_chunked(self, rest: str, _: int) -> None:
        body = picture("green")
        pieces = [body[:100], body[100:]]
        data = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        data = data[:-40] if rest == "cut" else data + b"0\r\n\r\n"
        self.answer(200, data, Transfer_Encoding="chunked")
        self.close_connection = rest == "cut"

    def do_unannounced(self, _: str, __: int) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(picture("green"))

    def do_stall(self, _: str, __: int) -> None:
        self.server_state.ended.wait(30)

    def do_drip(self, rest: str, _: int) -> None:
        """A byte now and then, in the header or in the body: never silent, never done."""
        if rest == "header":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        else:
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
        while not self.server_state.ended.wait(0.05):
            self.wfile.write(b"x")

    def do_endless(self, _: str, __: int) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        while not self.server_state.ended.is_set():
            self.wfile.write(bytes(1 << 16))

    def do_circle(self, rest: str, _: int) -> None:
        self.answer(302, Location=f"/circle/{'b' if rest == 'a' else 'a'}")

    def do_moved(self, rest: str, _: int) -> None:
        self.answer(301, Location=f"../{rest}")

    def do_to(self, _: str, __: int) -> None:
        self.answer(302, Location=self.path.partition("?")[2])

    def do_busy(self, rest: str, count: int) -> None:
        """/busy/<times>/<seconds>/...: that often 429 with Retry-After, then the image."""
        times, seconds, *_ = rest.split("/")
        if count <= int(times):
            return self.answer(429, b"later", Retry_After=seconds)
        return self.answer(200, picture("yellow"))

    def do_flaky(self, rest: str, count: int) -> None:
        """/flaky/<times>: that often 500, then the image."""
        self.answer(500) if count <= int(rest.split("/")[0]) else self.answer(200, picture("pink"))

    def do_garbage(self, _: str, __: int) -> None:
        self.wfile.write(b"\x1b[2J\x07 no HTTP at all\r\n\r\n")
        self.close_connection = True

    def do_zipped(self, _: str, __: int) -> None:
        self.answer(200, zlib.compress(bytes(1 << 20)), Content_Encoding="deflate")


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[PictureServer]:
    """Run a server for the time of the block."""
    state = PictureServer(host)
    thread = threading.Thread(target=state.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.ended.set()
        state.server.shutdown()
        state.server.server_close()
        thread.join()
