"""Requests from more processes than one, for endpoints that answer faster than one can ask.

A request costs its process more than 1 ms of CPU time, nearly all in the client. The first process
decides, reads images, keeps answers and sends, too; the others only send. They read questions from
their standard input and write replies to their standard output; they end when the first process
does, however it ends. The key comes to them by the environment alone.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.keywords.dispatch import Busy, Fatal, Passing, Refused, Reply
from recbole_tpad.keywords.endpoint import Connection, EndpointSettings
from recbole_tpad.keywords.prompt import KeywordPrompt
from recbole_tpad.keywords.questions import Question

_SIZES = struct.Struct(">II")  # bytes of the JSON and of the image after it
_NOBODY = Item("", "", "", "", "", None, None, ())


@dataclass(slots=True)
class _Sender:
    process: asyncio.subprocess.Process
    listening: asyncio.Task[None] | None = None
    ready: bool = False
    waiting: dict[int, asyncio.Future[Reply]] = field(default_factory=dict)


class Senders:
    """Asks one endpoint from several processes; a question goes to the one with the fewest.

    This process asks alone until the others are there, and goes on where one of them ends.

    Args:
        settings: the endpoint; `processes` of them, this one included.
        prompt: the question's wording.

    Raises:
        InputError: as `Connection`.
    """

    def __init__(self, settings: EndpointSettings, prompt: KeywordPrompt) -> None:
        self._settings = settings
        self._prompt = prompt
        self._own = Connection(settings, prompt)
        self._own_waiting = 0
        self._senders: list[_Sender] = []
        self._starting: asyncio.Task[None] | None = None
        self._numbers = itertools.count()

    async def ask(self, question: Question, wrong: str) -> Reply:
        """As `Connection.ask`."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start_all())
        alive = [s for s in self._senders if s.ready and s.process.returncode is None]
        sender = min(alive, key=lambda s: len(s.waiting), default=None)
        if sender is None or self._own_waiting < len(sender.waiting):
            self._own_waiting += 1
            try:
                return await self._own.ask(question, wrong)
            finally:
                self._own_waiting -= 1
        return await self._pass_on(sender, question, wrong)

    async def _pass_on(self, sender: _Sender, question: Question, wrong: str) -> Reply:
        number = next(self._numbers)
        told = {
            "number": number,
            "text": question.text,
            "media_type": question.media_type,
            "wrong": wrong,
        }
        found: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        sender.waiting[number] = found
        try:
            assert sender.process.stdin is not None
            try:
                sender.process.stdin.write(_frame(told, question.image))
                await sender.process.stdin.drain()
            except OSError as error:
                raise Passing("a process that sends requests has ended") from error
            return await found
        finally:
            del sender.waiting[number]

    async def _start_all(self) -> None:
        for _ in range(self._settings.processes - 1):
            with suppress(OSError):  # no place for another process: those that are there go on
                self._senders.append(await self._start())

    async def _start(self) -> _Sender:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", __name__),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        settings = asdict(replace(self._settings, prices=None, budget=None))
        process.stdin.write(_frame({"settings": settings, "prompt": asdict(self._prompt)}))
        sender = _Sender(process)
        sender.listening = asyncio.create_task(self._listen(sender))
        return sender

    async def _listen(self, sender: _Sender) -> None:
        assert sender.process.stdout is not None
        while (read := await _read(sender.process.stdout)) is not None:
            told, _ = read
            if told.get("ready"):
                sender.ready = True
                continue
            found = sender.waiting.get(told["number"])
            if found is not None and not found.done():
                _settle(found, told)
        await sender.process.wait()
        for found in sender.waiting.values():
            if not found.done():
                found.set_exception(Passing("a process that sends requests has ended"))

    async def close(self) -> None:
        """End the processes."""
        if self._starting is not None:
            await self._starting
        for sender in self._senders:
            assert sender.process.stdin is not None
            sender.process.stdin.close()
            if not sender.ready and sender.process.returncode is None:
                sender.process.kill()  # nobody waits for it any more
        for sender in self._senders:
            assert sender.process.stdin is not None
            if sender.listening is not None:
                await sender.listening
            with suppress(OSError):  # it was killed
                await sender.process.stdin.wait_closed()
        await self._own.close()


def _settle(found: asyncio.Future[Reply], told: dict[str, Any]) -> None:
    kind = told.get("error")
    if kind is None:
        found.set_result(Reply(told["text"], told["prompt_tokens"], told["completion_tokens"]))
        return
    makers: dict[str, Callable[[], Exception]] = {
        "Fatal": lambda: Fatal(told["reason"]),
        "Refused": lambda: Refused(told["reason"]),
        "Busy": lambda: Busy(told["reason"], told["seconds"]),
        "Passing": lambda: Passing(told["reason"], told["seconds"]),
    }
    found.set_exception(makers[kind]())


def _frame(told: dict[str, Any], image: bytes = b"") -> bytes:
    text = json.dumps(told).encode()
    return _SIZES.pack(len(text), len(image)) + text + image


async def _read(stream: asyncio.StreamReader) -> tuple[dict[str, Any], bytes] | None:
    """The next frame; None at the end."""
    try:
        text, image = _SIZES.unpack(await stream.readexactly(_SIZES.size))
        return json.loads(await stream.readexactly(text)), await stream.readexactly(image)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def _serve() -> None:
    """One sender: answer frames from standard input until it ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the replies
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader(limit=1 << 22)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    first = await _read(stdin)
    if first is None:
        return
    connection = Connection(
        EndpointSettings(**first[0]["settings"]), KeywordPrompt(**first[0]["prompt"])
    )

    def say(told: dict[str, Any]) -> None:
        replies.write(_frame(told))
        replies.flush()

    async def answer(told: dict[str, Any], image: bytes) -> None:
        question = Question(_NOBODY, "", told["text"], image, told["media_type"])
        said: dict[str, Any] = {"number": told["number"]}
        try:
            said |= asdict(await connection.ask(question, told["wrong"]))
        except (Fatal, Refused, Busy, Passing) as error:
            seconds = getattr(error, "seconds", None)
            said |= {"error": type(error).__name__, "reason": str(error), "seconds": seconds}
        say(said)

    say({"ready": True})
    tasks = set()
    while (read := await _read(stdin)) is not None:
        task = asyncio.create_task(answer(*read))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    for task in tasks:  # nobody is there to hear them
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await connection.close()


def _main() -> None:
    factory = import_module("uvloop").new_event_loop if find_spec("uvloop") else None
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            runner.run(_serve())
        except (KeyboardInterrupt, BrokenPipeError):
            os._exit(1)  # the first process tells what happened
        except InputError as error:
            raise SystemExit(str(error)) from None


if __name__ == "__main__":
    _main()
