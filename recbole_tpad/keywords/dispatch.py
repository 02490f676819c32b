"""Asks many questions at a time: as many as allowed, again after failures, never beyond a budget.

One event loop decides and sends; threads read and scale images ahead of it. A question that waits
for its next attempt holds no place, so the requests in flight stay at the limit.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tqdm import tqdm

from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.keywords.annotator import Answer, Status
from recbole_tpad.keywords.pricing import Purse, prompt_tokens
from recbole_tpad.keywords.prompt import KeywordPrompt, Unusable
from recbole_tpad.keywords.questions import Question, QuestionMaker, Round
from recbole_tpad.progress import progress

BUDGET_REACHED = "The budget is reached."
_CHUNK = 16  # items prepared at a time
_READERS = 2  # threads
_REFUSALS = 10  # in a row, before any answer: the endpoint does not do what is asked
_LOOK_AGAIN = 0.3  # seconds between looks at questions that another process holds


class Fatal(Exception):
    """No further request can succeed."""


class Busy(Exception):
    """Too many requests; `seconds` is what the endpoint asks to wait, if it says so."""

    def __init__(self, reason: str, seconds: float | None) -> None:
        super().__init__(reason)
        self.seconds = seconds


class Passing(Exception):
    """A failure that may be gone at the next attempt; `seconds` as for `Busy`."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.seconds = seconds


class Refused(Exception):
    """The endpoint does not want this request."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came; token counts are None where the endpoint gives none."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


Ask = Callable[[Question, str], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How many at a time, and how long to try.

    Attributes:
        concurrency: requests in flight.
        retries: further attempts after a passing failure, and pauses in a row when busy.
        repairs: further questions after an unusable answer.
        backoff: seconds before the first retry; doubles, times a random factor in [.5, 1.5].
        max_wait: longest wait in seconds; who asks for more is given up.
    """

    concurrency: int = 16
    retries: int = 5
    repairs: int = 2
    backoff: float = 1.0
    max_wait: float = 300.0

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("retries", 0), ("repairs", 0), ("max_wait", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}.")

    def wait(self, attempt: int) -> float:
        """Seconds before the retry that follows attempt number `attempt` (from 1)."""
        delay = self.backoff * 2.0 ** min(attempt - 1, 20) * random.uniform(0.5, 1.5)
        return min(delay, self.max_wait)


@dataclass(slots=True)
class _Job:
    question: Question
    taken: bool = False  # by a worker, once
    failures: int = 0
    repairs: int = 0
    reason: str = ""  # why the last answer was unusable


class Dispatcher:
    """One run over some items.

    Args:
        ask: sends one request; the second argument says what was wrong with the last answer, or
            is empty. Raises `Fatal`, `Busy`, `Passing` or `Refused`.
        maker: makes questions.
        prompt: reads answers.
        round_: keeps the books.
        purse: of the budget.
        patience: limits.
    """

    def __init__(
        self,
        ask: Ask,
        maker: QuestionMaker,
        prompt: KeywordPrompt,
        round_: Round,
        purse: Purse,
        patience: Patience,
    ) -> None:
        self._ask = ask
        self._maker = maker
        self._prompt = prompt
        self._round = round_
        self._purse = purse
        self._patience = patience
        self._workers = patience.concurrency
        self._ready: asyncio.Queue[_Job | None] = asyncio.Queue()
        self._ahead = asyncio.Semaphore(2 * self._workers)
        self._open = 0
        self._all_done = asyncio.Event()
        self._changed = asyncio.Event()
        self._later: dict[asyncio.TimerHandle, _Job] = {}
        self._in_flight = 0
        self._stopped = ""
        self._not_before = 0.0
        self._pauses = 0
        self._failed_in_a_row = 0
        self._refused_in_a_row = 0
        self._answered = 0

    async def run(self, items: Sequence[Item]) -> None:
        """Ask about every item; the results are in the round.

        Raises:
            InputError: the endpoint is of no use and nothing was answered.
        """
        with progress(total=len(items), desc="keywords", unit="item") as bar:
            tasks = [asyncio.create_task(self._feed_all(items, bar))]
            tasks += [asyncio.create_task(self._work(bar)) for _ in range(self._workers)]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        self._round.outcome.stopped = self._stopped
        if self._stopped and not self._answered and not self._round.usage.reused:
            raise InputError(self._stopped)

    async def _feed_all(self, items: Sequence[Item], bar: tqdm[None]) -> None:
        await self._feed(items, bar)
        while self._round.deferred:
            await asyncio.sleep(_LOOK_AGAIN)
            again = self._round.deferred
            self._round.deferred = []
            self._round.cache.refresh()
            await self._feed(again, bar)
        self._all_done.clear()
        if self._open:
            await self._all_done.wait()
        for _ in range(self._workers):
            self._ready.put_nowait(None)

    async def _feed(self, items: Sequence[Item], bar: tqdm[None]) -> None:
        """Prepare items a little ahead of the requests."""
        loop = asyncio.get_running_loop()

        def prepare(chunk: Sequence[Item]) -> list[Question | Answer]:
            return [self._maker.make(item, known=self._round.cache) for item in chunk]

        chunks = [items[at : at + _CHUNK] for at in range(0, len(items), _CHUNK)]
        # Taken out as they are used: a chunk holds its images.
        coming: deque[asyncio.Future[list[Question | Answer]]] = deque()
        with ThreadPoolExecutor(_READERS) as pool:
            for chunk in chunks:
                coming.append(loop.run_in_executor(pool, prepare, chunk))
                if len(coming) >= _READERS:
                    await self._admit_all(await coming.popleft(), bar)
            while coming:
                await self._admit_all(await coming.popleft(), bar)

    async def _admit_all(self, made: list[Question | Answer], bar: tqdm[None]) -> None:
        for each in made:
            await self._admit(each)
        bar.update(len(self._round.outcome.answers) - bar.n)

    async def _admit(self, made: Question | Answer) -> None:
        if self._stopped:  # what was answered before still counts
            self._round.look_up(made, self._stopped)
            return
        question = self._round.admit(made)
        if question is None:
            return
        await self._ahead.acquire()
        self._open += 1
        self._ready.put_nowait(_Job(question))

    async def _work(self, bar: tqdm[None]) -> None:
        while (job := await self._ready.get()) is not None:
            if not job.taken:
                job.taken = True
                self._ahead.release()
            await self._wait_for_pause()
            reserved = await self._reserve(job.question)
            if reserved is None:
                self._give_up(job, "not asked", self._stopped)
            else:
                await self._attempt(job, reserved)
            bar.update(len(self._round.outcome.answers) - bar.n)

    async def _wait_for_pause(self) -> None:
        while not self._stopped and (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(min(wait, _LOOK_AGAIN))
            if wait <= _LOOK_AGAIN:  # not all at once when the pause is over
                await asyncio.sleep(random.uniform(0, _LOOK_AGAIN))

    async def _reserve(self, question: Question) -> float | None:
        """Set aside a request's cost; wait while those in flight may still leave enough."""
        cache = self._round.cache
        while not self._stopped:
            reserved = self._purse.reserve(question, cache.spent["cost"], cache.largest_prompt)
            if reserved is not None:
                return reserved
            if self._in_flight == 0:
                self._stop(BUDGET_REACHED)
                break
            self._changed.clear()
            await self._changed.wait()
        return None

    async def _attempt(self, job: _Job, reserved: float) -> None:
        self._in_flight += 1
        self._round.usage.asked += 1
        try:
            reply = await self._ask(job.question, job.reason)
        except Exception as error:
            self._purse.settle(reserved, 0, 0)
            self._failed(job, error)
        else:
            self._replied(job, reply, reserved)
        finally:
            self._in_flight -= 1
            self._changed.set()

    def _replied(self, job: _Job, reply: Reply, reserved: float) -> None:
        self._pauses = self._failed_in_a_row = self._refused_in_a_row = 0
        question, usage = job.question, self._round.usage
        prompt, completion = reply.prompt_tokens, reply.completion_tokens
        counted = prompt is not None and completion is not None
        if prompt is None or completion is None:
            prompt, completion = prompt_tokens(question), len(reply.text) // 4
        cost = self._purse.settle(reserved, prompt, completion)
        usage.prompt_tokens += prompt
        usage.completion_tokens += completion
        spent: dict[str, float | int | bool] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
        }
        if cost is not None:
            usage.cost = (usage.cost or 0.0) + cost
            spent["cost"] = cost
        if not counted:
            spent["tokens_estimated"] = True
        try:
            parsed = self._prompt.parse(reply.text)
        except Unusable as problem:
            self._round.rejected(question, str(problem), **spent)
            self._repair(job, str(problem))
            return
        self._answered += 1
        self._round.settle(question, parsed, **spent)
        self._closed()

    def _repair(self, job: _Job, reason: str) -> None:
        job.repairs += 1
        job.reason = reason
        if job.repairs > self._patience.repairs:
            self._give_up(job, "malformed", reason)
        else:
            self._ready.put_nowait(job)

    def _failed(self, job: _Job, error: Exception) -> None:
        """Decide what a failed request means for its item and for the run."""
        reason = str(error)
        if isinstance(error, Fatal):
            self._stop(reason)
            self._give_up(job, "not asked", reason)
        elif isinstance(error, Refused):
            self._refused_in_a_row += 1
            if self._refused_in_a_row >= _REFUSALS and not self._answered:
                self._stop(f"The endpoint refuses what it is asked: {reason}")
            self._give_up(job, "refused", reason)
        elif isinstance(error, Busy):
            self._busy(job, reason, error.seconds)
        elif isinstance(error, Passing):
            self._passing(job, reason, error.seconds)
        else:
            raise error

    def _busy(self, job: _Job, reason: str, seconds: float | None) -> None:
        """Pause everybody: the limit is the account's, not the item's."""
        now = time.monotonic()
        if now >= self._not_before:
            self._pauses += 1
        wait = self._patience.wait(self._pauses) if seconds is None else seconds
        if self._pauses > self._patience.retries or wait > self._patience.max_wait:
            asked = "" if seconds is None else f", asking for {seconds:.0f} s"
            self._stop(f"The endpoint stays busy{asked}: {reason}. Run the command again later.")
            self._give_up(job, "failed", reason)
            return
        self._not_before = max(self._not_before, now + wait)
        self._ready.put_nowait(job)

    def _passing(self, job: _Job, reason: str, seconds: float | None) -> None:
        job.failures += 1
        self._failed_in_a_row += 1
        patience = self._patience
        if self._failed_in_a_row > max(3 * patience.concurrency, 20):
            self._stop(
                f"{self._failed_in_a_row} requests in a row failed, the last one: {reason}. Is "
                "the endpoint up? Run the command again."
            )
        wait = patience.wait(job.failures) if seconds is None else seconds
        if self._stopped or job.failures > patience.retries or wait > patience.max_wait:
            self._give_up(job, "failed", reason)
        else:
            self._put_later(job, wait)

    def _put_later(self, job: _Job, wait: float) -> None:
        def put() -> None:
            self._later.pop(timer, None)
            self._ready.put_nowait(job)

        timer = asyncio.get_running_loop().call_later(wait, put)
        self._later[timer] = job

    def _stop(self, reason: str) -> None:
        """End the run: what is in flight may end, nothing else is sent."""
        self._stopped = self._stopped or reason
        for timer, job in self._later.items():
            timer.cancel()
            self._ready.put_nowait(job)
        self._later.clear()
        self._changed.set()

    def _give_up(self, job: _Job, status: Status, reason: str) -> None:
        item_id = job.question.item.item_id
        self._round.give_up(job.question, Answer(item_id, status, reason=reason))
        self._closed()

    def _closed(self) -> None:
        self._open -= 1
        if self._open == 0:
            self._all_done.set()
