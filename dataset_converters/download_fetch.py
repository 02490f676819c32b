"""One HTTP request for an image: checked address, limits on time and size, a named outcome."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import socket
import ssl
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urljoin

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.response import HTTPResponse

from dataset_converters.download_address import AddressRefusedError, connect

_HEADERS = {
    "User-Agent": "recbole-tpad",
    "Accept": "image/*,*/*;q=0.5",
    # Compression gains nothing on images and would hide their size.
    "Accept-Encoding": "identity",
}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LATER = frozenset({408, 425, 429})
_CHUNK = 1 << 16
_MOST_IDLE = 64  # connections kept for another request, over all hosts

# Why there is no image: at no address, forbidden to ask, not an image, or worth another run.
Failure = Literal["missing", "refused", "unreadable", "failed"]


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Limits of one request.

    Attributes:
        connect_timeout: seconds for a connection, read_timeout: seconds without a byte,
        time_limit: seconds for the whole answer, max_bytes: of the body.
        allow_private: also fetch from addresses that are not public.
    """

    connect_timeout: float
    read_timeout: float
    time_limit: float
    max_bytes: int
    allow_private: bool


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one request gave: a body, a redirect, or the reason for neither.

    Attributes:
        failure: None with a body or a redirect.
        retry: asking the same address again later may help.
        wait: seconds the server asked to wait before the next request, where it did.
        answered: the server sent an HTTP status.
    """

    body: bytes | None = None
    redirect: str | None = None
    failure: Failure | None = None
    reason: str = ""
    retry: bool = False
    wait: float | None = None
    answered: bool = True


class Deadline:
    """Ends a request from another thread when its time is over, whatever it waits for."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.at = time.monotonic() + seconds
        self.over = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def attach(self, guarded: socket.socket | None) -> None:
        """Name the socket to shut down; None when the request is done."""
        with self._lock:
            self._socket = guarded
            if self.over and guarded is not None:
                _shut(guarded)

    def expire(self) -> None:
        """Shut the attached socket down: every read from it ends at once."""
        with self._lock:
            self.over = True
            if self._socket is not None:
                _shut(self._socket)


def _shut(guarded: socket.socket) -> None:
    # The other side may have closed it first.
    with contextlib.suppress(OSError):
        guarded.shutdown(socket.SHUT_RDWR)


class _Guard:
    """What the two connection classes add: the address check, and a handle for the deadline."""

    def __init__(self, limits: FetchLimits) -> None:
        self.limits = limits
        self.deadline: Deadline | None = None
        self.handle: socket.socket | None = None

    def open(self, host: str, port: int) -> socket.socket:
        limits = self.limits
        made = connect(
            host, port, timeout=limits.connect_timeout, allow_private=limits.allow_private
        )
        # A second handle on the same connection: TLS takes the first one over.
        self.handle = made.dup()
        if self.deadline is not None:
            self.deadline.attach(self.handle)
        return made

    def close(self) -> None:
        if self.handle is not None:
            self.handle.close()
            self.handle = None


class _Plain(HTTPConnection):
    def __init__(self, host: str, port: int, guard: _Guard) -> None:
        super().__init__(host, port, timeout=guard.limits.read_timeout)
        self.guard = guard

    def _new_conn(self) -> socket.socket:
        return self.guard.open(self.host, self.port)


class _Secure(HTTPSConnection):
    def __init__(self, host: str, port: int, guard: _Guard, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=guard.limits.read_timeout, ssl_context=context)
        self.guard = guard

    def _new_conn(self) -> socket.socket:
        return self.guard.open(self.host, self.port)


_Connection = _Plain | _Secure


@dataclass(frozen=True, slots=True)
class Target:
    """An http(s) address in parts; `path` includes the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


def parse_target(url: str) -> Target | str:
    """Take an address apart, or say why it cannot be asked for."""
    try:
        parts = urllib3.util.parse_url(f"https:{url}" if url.startswith("//") else url)
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        return f"not a web address ({error})"
    if parts.scheme not in ("http", "https") or not parts.host:
        return "not an http or https address"
    if parts.auth is not None:
        return "a user name in the address"
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return Target(parts.scheme, parts.host.strip("[]"), port, parts.request_uri)


class Fetcher:
    """Requests with connections kept for the next one; safe to use from many threads.

    No proxy, cookie or credential of the environment is used. Certificates are those the system
    trusts (``SSL_CERT_FILE`` is honoured).
    """

    def __init__(self, limits: FetchLimits) -> None:
        self.limits = limits
        self._context = ssl.create_default_context()
        self._idle: deque[tuple[str, _Connection]] = deque()
        self._lock = threading.Lock()

    def get(self, target: Target, deadline: Deadline) -> Fetched:
        """Ask for one address; redirects are returned, not followed. Never raises for the network's
        sake."""
        connection = self._take(target)
        connection.guard.deadline = deadline
        deadline.attach(connection.guard.handle)
        reusable = False
        try:
            connection.request(
                "GET", target.path, headers=_HEADERS, preload_content=False, decode_content=False
            )
            response = connection.getresponse()
            try:
                fetched = self._judge(target, response)
                reusable = fetched.body is not None
            except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
                fetched = _network_failure(error, answered=True)
            finally:
                response.close()
        except AddressRefusedError as error:
            fetched = Fetched(failure="refused", reason=str(error))
        except (
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
            # From names that are no host names, and header values that are no headers.
            ValueError,
        ) as error:
            fetched = _network_failure(error, answered=False)
        finally:
            deadline.attach(None)
        if deadline.over:
            # A connection that was shut down may look like a short but complete answer.
            reusable = False
            fetched = Fetched(
                failure="failed",
                reason=f"took longer than {deadline.seconds:g} s",
                retry=True,
                answered=fetched.answered,
            )
        self._put_back(target, connection, reusable)
        return fetched

    def close(self) -> None:
        """Close the connections that wait for another request."""
        with self._lock:
            while self._idle:
                _close(self._idle.popleft()[1])

    def _take(self, target: Target) -> _Connection:
        with self._lock:
            for entry in [e for e in self._idle if e[0] == target.origin]:
                self._idle.remove(entry)
                if entry[1].is_connected:
                    return entry[1]
                _close(entry[1])
        guard = _Guard(self.limits)
        if target.scheme == "https":
            return _Secure(target.host, target.port, guard, self._context)
        return _Plain(target.host, target.port, guard)

    def _put_back(self, target: Target, connection: _Connection, reusable: bool) -> None:
        connection.guard.deadline = None
        if not reusable or connection.sock is None:
            _close(connection)
            return
        with self._lock:
            self._idle.append((target.origin, connection))
            if len(self._idle) > _MOST_IDLE:
                _close(self._idle.popleft()[1])

    def _judge(self, target: Target, response: HTTPResponse) -> Fetched:
        status = response.status
        if status in _REDIRECTS:
            location = response.headers.get("Location", "")
            if not location:
                return Fetched(failure="missing", reason=f"HTTP {status} without an address")
            try:
                return Fetched(redirect=urljoin(target.origin + target.path, location))
            except ValueError as error:
                return Fetched(failure="missing", reason=f"HTTP {status} to no address ({error})")
        if status in _LATER or status >= 500:
            wait = retry_after(response.headers.get("Retry-After"), time.time())
            return Fetched(failure="failed", reason=f"HTTP {status}", retry=True, wait=wait)
        if status != 200:
            return Fetched(failure="missing", reason=f"HTTP {status}")
        if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            return Fetched(failure="unreadable", reason="a compressed answer")
        return self._read(response)

    def _read(self, response: HTTPResponse) -> Fetched:
        announced = response.headers.get("Content-Length", "")
        expected = int(announced) if announced.isdecimal() else None
        if response.chunked:
            expected = None
        limit = self.limits.max_bytes
        too_large = Fetched(failure="unreadable", reason=f"more than {limit:,} bytes")
        if expected is not None and expected > limit:
            return too_large
        body = bytearray()
        cut = False
        try:
            while chunk := response.read1(_CHUNK, decode_content=False):
                body += chunk
                if len(body) > limit:
                    return too_large
        except (urllib3.exceptions.ProtocolError, http.client.IncompleteRead):
            cut = True
        if cut or (expected is not None and len(body) < expected):
            of = "" if expected is None else f" of {expected:,}"
            reason = f"cut after {len(body):,}{of} bytes"
            return Fetched(failure="failed", reason=reason, retry=True)
        return Fetched(body=bytes(body))


def _close(connection: _Connection) -> None:
    connection.close()
    connection.guard.close()


def _network_failure(error: Exception, *, answered: bool) -> Fetched:
    if isinstance(error, ssl.SSLCertVerificationError):
        reason, retry = f"certificate refused ({error.verify_message})", False
    elif isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError):
        reason, retry = "no answer in time", True
    elif isinstance(error, socket.gaierror):
        reason, retry = f"host name not found ({error.strerror})", True
    else:
        reason, retry = f"{type(error).__name__}: {error}", True
    # Parts of it may be the server's words, and it may be shown on a terminal.
    plain = "".join(c if c.isprintable() else "?" for c in reason[:200])
    return Fetched(failure="failed", reason=plain, retry=retry, answered=answered)


def retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds a ``Retry-After`` header asks to wait; None for an absent or other one.

    Args:
        value: whole seconds or an HTTP date (RFC 9110, section 10.2.3).
        now: seconds since 1970.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:12])
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return max(0.0, moment.timestamp() - now)
    except (ValueError, OverflowError):
        return None
