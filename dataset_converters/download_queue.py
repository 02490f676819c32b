"""Which request comes next: limits per host, waiting, retries, redirects, fallbacks.

One thread decides and many fetch, so waiting for one host never keeps another one's requests back.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Literal

from dataset_converters.download_fetch import Deadline, Fetched, Target, parse_target

Status = Literal["ok", "missing", "unreadable", "placeholder", "refused", "failed"]
# The status of an item without an image is the most hopeful of its addresses' failures.
_HOPE: tuple[Status, ...] = ("failed", "unreadable", "placeholder", "refused", "missing")
_MAX_REDIRECTS = 5
_TICK = 0.25  # seconds between two looks at the deadlines


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Politeness and patience.

    Attributes:
        workers: requests at a time, per_host: to one host and port.
        retries: further attempts at an address after a passing failure.
        backoff: seconds before the first retry; doubles, times a random factor in [.5, 1.5].
        max_wait: longest wait in seconds; a server that asks for more is given up.
        give_up_after: connections that failed in a row before a host counts as down.
        time_limit: seconds for one request.
    """

    workers: int
    per_host: int
    retries: int
    backoff: float
    max_wait: float
    give_up_after: int
    time_limit: float


@dataclass(slots=True)
class Job:
    """One item on its way: its addresses, best first, and how far it is.

    Attributes:
        attempts: requests so far.
        failures: address → (status, reason) of those given up.
        used: the address that gave the image.
    """

    item_id: str
    urls: list[str]
    attempts: int = 0
    failures: dict[str, tuple[Status, str]] = field(default_factory=dict)
    used: str | None = None
    target: Target | None = None
    tries: int = 0
    hops: int = 0

    @property
    def url(self) -> str:
        """The address of the list that is being tried."""
        return self.urls[len(self.failures)]

    def verdict(self) -> tuple[Status, str]:
        """Status and reason of an item none of whose addresses gave an image."""
        if not self.failures:
            return "missing", "no image address"
        return min(self.failures.values(), key=lambda failure: _HOPE.index(failure[0]))


@dataclass(frozen=True, slots=True)
class Delivered:
    """What a worker brings: a finished image (`content`), or a request to judge."""

    fetched: Fetched
    content: Any = None
    status: Status = "ok"
    reason: str = ""


@dataclass(slots=True)
class _Host:
    queue: deque[Job] = field(default_factory=deque)
    in_flight: int = 0
    paused_until: float = 0.0
    failures_in_a_row: int = 0
    down: str = ""


class DownloadQueue:
    """Runs jobs to their end.

    Args:
        fetch: (job, target, deadline) → what came; called in worker threads.
        done: called for each finished job, with its image or None, in the calling thread.
    """

    def __init__(
        self,
        limits: QueueLimits,
        fetch: Callable[[Job, Target, Deadline], Delivered],
        done: Callable[[Job, Any], None],
    ) -> None:
        self._limits = limits
        self._fetch = fetch
        self._done = done
        self._hosts: dict[str, _Host] = {}
        self._open: dict[str, None] = {}  # hosts that may get a request now, in turn
        self._waiting: list[tuple[float, int, Job | str]] = []
        self._numbers = itertools.count()
        self._flights: dict[Future[Delivered], tuple[Job, Target, Deadline]] = {}
        self._random = random.Random()

    def hosts_down(self) -> dict[str, str]:
        """Hosts that were given up, and why."""
        return {name: host.down for name, host in self._hosts.items() if host.down}

    def run(self, jobs: Iterable[Job]) -> None:
        """Run all jobs. On an exception, running requests are cut short."""
        for job in jobs:
            self._start(job)
        pool = ThreadPoolExecutor(self._limits.workers, thread_name_prefix="download")
        try:
            while self._flights or self._open or self._waiting:
                self._wake()
                self._submit(pool)
                self._collect()
        finally:
            for _, _, deadline in self._flights.values():
                deadline.expire()
            pool.shutdown(cancel_futures=True)

    def _start(self, job: Job) -> None:
        """Queue a job's next address, or finish it when there is none left."""
        while len(job.failures) < len(job.urls):
            job.tries = job.hops = 0
            if self._aim(job, job.url):
                return
        self._done(job, None)

    def _aim(self, job: Job, url: str) -> bool:
        """Queue a request; False when the address cannot be asked for, which fails it."""
        target = parse_target(url)
        if isinstance(target, str):
            job.failures[job.url] = ("refused", target)
            return False
        job.target = target
        self._hosts.setdefault(target.origin, _Host())
        return self._enqueue(job, target)

    def _update(self, origin: str) -> None:
        host = self._hosts[origin]
        free = host.in_flight < self._limits.per_host and time.monotonic() >= host.paused_until
        if host.queue and free:
            self._open.setdefault(origin)
        else:
            self._open.pop(origin, None)

    def _wake(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            waiter = heapq.heappop(self._waiting)[2]
            if isinstance(waiter, str):
                self._update(waiter)
            elif waiter.target is not None and not self._enqueue(waiter, waiter.target):
                self._start(waiter)

    def _enqueue(self, job: Job, target: Target) -> bool:
        host = self._hosts[target.origin]
        if host.down:
            job.failures[job.url] = ("failed", host.down)
            return False
        host.queue.append(job)
        self._update(target.origin)
        return True

    def _submit(self, pool: ThreadPoolExecutor) -> None:
        while self._open and len(self._flights) < self._limits.workers:
            origin = next(iter(self._open))
            del self._open[origin]
            host = self._hosts[origin]
            job = host.queue.popleft()
            host.in_flight += 1
            self._update(origin)
            job.attempts += 1
            target = job.target
            if target is None:
                raise RuntimeError("a queued job without an address")
            deadline = Deadline(self._limits.time_limit)
            flight = pool.submit(self._fetch, job, target, deadline)
            self._flights[flight] = (job, target, deadline)

    def _collect(self) -> None:
        """Wait for finished requests, deadlines, or the end of a wait."""
        now = time.monotonic()
        until = self._waiting[0][0] - now if self._waiting else _TICK
        timeout = min(_TICK, max(0.0, until))
        if not self._flights:
            time.sleep(0 if self._open else timeout)
            return
        finished, _ = wait(self._flights, timeout=timeout, return_when=FIRST_COMPLETED)
        now = time.monotonic()
        for _, _, deadline in self._flights.values():
            if now >= deadline.at and not deadline.over:
                deadline.expire()
        for flight in finished:
            job, target, _ = self._flights.pop(flight)
            self._hosts[target.origin].in_flight -= 1
            self._judge(job, target, flight.result())
            self._update(target.origin)

    def _judge(self, job: Job, target: Target, delivered: Delivered) -> None:
        fetched = delivered.fetched
        self._note_health(target, fetched)
        if delivered.content is not None:
            job.used = job.url
            self._done(job, delivered.content)
        elif fetched.redirect is not None:
            self._follow(job, fetched.redirect)
        elif fetched.failure is None:
            self._fail(job, delivered.status, delivered.reason)
        elif fetched.retry and job.tries < self._limits.retries:
            self._retry(job, target, fetched)
        else:
            self._fail(job, fetched.failure, fetched.reason)

    def _fail(self, job: Job, status: Status, reason: str) -> None:
        job.failures[job.url] = (status, reason)
        self._start(job)

    def _follow(self, job: Job, url: str) -> None:
        job.hops += 1
        if job.hops > _MAX_REDIRECTS:
            self._fail(job, "missing", f"more than {_MAX_REDIRECTS} redirects")
        elif not self._aim(job, url):
            self._start(job)

    def _retry(self, job: Job, target: Target, fetched: Fetched) -> None:
        limits = self._limits
        pause = limits.backoff * 2**job.tries * self._random.uniform(0.5, 1.5)
        pause = min(pause, limits.max_wait)
        job.tries += 1
        if fetched.wait is not None:
            if fetched.wait > limits.max_wait:
                self._give_up(target, f"the server asks to wait {fetched.wait:,.0f} s")
                self._fail(job, "failed", f"{fetched.reason}, to be tried again later")
                return
            self._pause(target, fetched.wait)
            pause = max(pause, fetched.wait)
        elif fetched.reason == "HTTP 429":
            self._pause(target, pause)
        entry = (time.monotonic() + pause, next(self._numbers), job)
        heapq.heappush(self._waiting, entry)

    def _pause(self, target: Target, seconds: float) -> None:
        """Send nothing to a host for some time: what it said to one request holds for all."""
        host = self._hosts[target.origin]
        host.paused_until = max(host.paused_until, time.monotonic() + seconds)
        entry = (host.paused_until, next(self._numbers), target.origin)
        heapq.heappush(self._waiting, entry)

    def _note_health(self, target: Target, fetched: Fetched) -> None:
        host = self._hosts[target.origin]
        if fetched.answered or fetched.failure != "failed":
            host.failures_in_a_row = 0
            return
        host.failures_in_a_row += 1
        if host.failures_in_a_row >= self._limits.give_up_after and not host.down:
            told = f"{host.failures_in_a_row} requests in a row got no answer"
            self._give_up(target, f"{told}, the last: {fetched.reason}")

    def _give_up(self, target: Target, reason: str) -> None:
        """Fail what is queued for a host; the next run tries it again."""
        host = self._hosts[target.origin]
        host.down = f"{target.host}: {reason}"
        queued, host.queue = list(host.queue), deque()
        self._update(target.origin)
        kept = []
        for entry in self._waiting:
            waiter = entry[2]
            if isinstance(waiter, Job) and waiter.target and waiter.target.origin == target.origin:
                queued.append(waiter)
            else:
                kept.append(entry)
        heapq.heapify(kept)
        self._waiting = kept
        for job in queued:
            self._fail(job, "failed", host.down)
