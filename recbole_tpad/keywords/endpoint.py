"""One endpoint that speaks OpenAI's chat completions: settings, requests, and what errors mean."""

from __future__ import annotations

import asyncio
import base64
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.keywords.dispatch import Busy, Fatal, Passing, Refused, Reply
from recbole_tpad.keywords.pricing import Prices
from recbole_tpad.keywords.prompt import SCHEMA, KeywordPrompt
from recbole_tpad.keywords.questions import Question

_PASSING_STATUS = frozenset({408, 409, 425})
_QUOTA = ("insufficient_quota", "billing", "arrearage", "insufficient balance")
_LONGEST_REASON = 300
# Answer formats from strict to none; some endpoints do not know the first ones.
_FORMATS: tuple[dict[str, Any], ...] = (
    {
        "type": "json_schema",
        "json_schema": {"name": "keywords", "strict": True, "schema": SCHEMA},
    },
    {"type": "json_object"},
)


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Which endpoint and how to ask it.

    Attributes:
        model: the endpoint's name of the model.
        base_url: None: the client's own default.
        key_env: environment variable that holds the key.
        timeout: seconds for one whole request.
        temperature: of the sampling.
        max_tokens: of one answer.
        prices: per million tokens; None: costs are not counted.
        budget: most to spend on this data set's answers, those of earlier runs included.
        processes: that send requests, the first one included; more than one only where answers
            come faster than one process can ask (some hundred a second).
    """

    model: str
    base_url: str | None = None
    key_env: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    temperature: float = 0.0
    max_tokens: int = 200
    prices: Prices | None = None
    budget: float | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("The annotator 'openai' needs a model: --model NAME.")
        if not self.timeout > 0:
            raise InputError(f"timeout must be above 0, not {self.timeout}.")
        for name in ("max_tokens", "processes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.base_url is not None:
            _check_url(self.base_url)


def _check_url(base_url: str) -> None:
    try:
        parts = urlsplit(base_url)
        _ = parts.port  # looks at it
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("The base URL must look like https://host/v1: http or https, and a host.")
    if parts.username or parts.password or parts.query:
        # Not quoted: what is in there may be a secret, and the URL is recorded.
        raise InputError(
            "The base URL must not hold a user name, a password or a query. Give the key in the "
            "environment (--key_env names the variable)."
        )


class Connection:
    """The client, its key and what the endpoint turned out to understand.

    Raises:
        InputError: no key in the environment, or the package openai is absent.
    """

    def __init__(self, settings: EndpointSettings, prompt: KeywordPrompt) -> None:
        self._api = _import_openai()
        self._settings = settings
        self._prompt = prompt
        self._key = os.environ.get(settings.key_env, "").strip()
        if not self._key:
            raise InputError(
                f"No key: set the environment variable {settings.key_env} (any text where the "
                "endpoint wants none), or name another one with --key_env."
            )
        if not (self._key.isascii() and self._key.isprintable() and " " not in self._key):
            # Not quoted: no part of a key is ever shown.
            raise InputError(
                f"The key in {settings.key_env} has characters that no key has. Was something "
                "else copied?"
            )
        # With aiohttp a request takes a third less CPU time.
        self._lost: tuple[type[Exception], ...] = ()
        if find_spec("aiohttp"):
            self._lost = (import_module("aiohttp").ClientConnectionError,)
        # The dispatcher retries: it also paces, counts and obeys the budget.
        self._client = self._api.AsyncOpenAI(
            api_key=self._key,
            base_url=settings.base_url,
            timeout=settings.timeout,
            max_retries=0,
            http_client=self._api.DefaultAioHttpClient() if self._lost else None,
        )
        self._format = 0
        self._options: dict[str, Any] = {
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
        }

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(self, question: Question, wrong: str) -> Reply:
        """Send one question.

        Args:
            question: with its image.
            wrong: what was wrong with the last answer; empty at first.
        """
        while True:
            tried = self._format, dict(self._options)
            try:
                async with asyncio.timeout(self._settings.timeout):
                    # `post` and not `chat.completions.create`: building its typed objects takes as
                    # long as everything else and is not needed to read one string.
                    answer = await self._client.post(
                        "/chat/completions", cast_to=object, body=self._body(question, wrong)
                    )
                return _reply(answer)
            except self._api.BadRequestError as error:
                told = self._told(error)
                if tried != (self._format, self._options) or self._adapt(told):
                    continue  # another request adapted meanwhile, or this one did
                raise Refused(told) from None
            except self._api.APIStatusError as error:
                raise await self._verdict(error) from None
            except (self._api.APIConnectionError, TimeoutError) as error:
                raise Passing(self._unreached(error)) from None
            except (self._api.APIError, ValueError) as error:
                raise Passing(f"not a chat completion: {self._told(error)}") from None

    def _body(self, question: Question, wrong: str) -> dict[str, Any]:
        image = base64.b64encode(question.image).decode()
        text = f"{question.text}\n\n{self._prompt.again(wrong)}" if wrong else question.text
        content = [
            {
                "type": "image_url",
                "image_url": {"url": f"data:{question.media_type};base64,{image}"},
            },
            {"type": "text", "text": text},
        ]
        body = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": content}],
            **self._options,
        }
        if self._format < len(_FORMATS):
            body["response_format"] = _FORMATS[self._format]
        return body

    def _adapt(self, told: str) -> bool:
        """Do without a parameter that the endpoint complains about."""
        lower = told.lower()
        if "max_completion_tokens" in lower and "max_tokens" in self._options:
            self._options["max_completion_tokens"] = self._options.pop("max_tokens")
            return True
        if "temperature" in lower and "temperature" in self._options:
            del self._options["temperature"]
            return True
        about_format = any(word in lower for word in ("response_format", "json_schema", "schema"))
        about_format |= "json_object" in lower
        if about_format and self._format < len(_FORMATS):
            self._format += 1
            return True
        return False

    async def _verdict(self, error: Any) -> Exception:
        """What a status other than 200 and 400 means for the run."""
        status, told = int(error.status_code), self._told(error)
        wait = _retry_after(error.response.headers)
        if status == 429:
            said = f"{error.code} {told}".lower()
            if any(word in said for word in _QUOTA):
                return Fatal(f"The account has nothing left: {told}")
            return Busy(told, wait)
        if status >= 500 or status in _PASSING_STATUS:
            return Passing(told, wait)
        if status in (401, 403):
            return Fatal(
                f"The endpoint does not accept the key in {self._settings.key_env}: {told}"
            )
        if status == 402:
            return Fatal(f"The endpoint wants to be paid: {told}")
        if status == 404:
            return Fatal(
                f"The endpoint knows no model '{self._settings.model}', or the base URL is wrong "
                f"(most end in /v1).{await self._suggestion()} It says: {told}"
            )
        return Refused(told)

    async def _suggestion(self) -> str:
        """The nearest of the endpoint's models, where it lists them."""
        try:
            async with asyncio.timeout(min(10.0, self._settings.timeout)):
                listed = await self._client.get("/models", cast_to=object)
        except (self._api.OpenAIError, TimeoutError, ValueError):
            return ""  # only a help for the message that is under way
        entries = listed.get("data", []) if isinstance(listed, dict) else []
        names = [str(e["id"]) for e in entries if isinstance(e, dict) and "id" in e]
        known = f" Known: {', '.join(sorted(names)[:10])}." if names else ""
        return self._without_key(nearest(self._settings.model, names) + known)

    def _told(self, error: Any) -> str:
        """What an error says, short, without the key (some endpoints quote it)."""
        status = getattr(error, "status_code", None)
        body = getattr(error, "body", None)
        told = body.get("message") if isinstance(body, dict) else None
        text = " ".join(str(told or getattr(error, "message", None) or error).split())
        text = self._without_key(text)[:_LONGEST_REASON]
        return f"status {status}: {text}" if status else text

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***")

    def _unreached(self, error: BaseException) -> str:
        # The client calls every lost connection of aiohttp a time-out.
        lost = next((e for e in _chain(error) if isinstance(e, self._lost)), None)
        is_late = isinstance(error, TimeoutError | self._api.APITimeoutError)
        if is_late and (lost is None or isinstance(lost, TimeoutError)):
            return f"no answer within {self._settings.timeout:g} s"
        cause = lost or error.__cause__ or error
        return f"no connection ({type(cause).__name__}: {self._told(cause)})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reply(answer: Any) -> Reply:
    """Read a chat completion.

    Raises:
        ValueError: it is none.
    """
    try:
        choice = answer["choices"][0]
        content = choice["message"].get("content")
        refusal = choice["message"].get("refusal")
        usage = answer.get("usage") or {}
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"no choice with a message ({type(error).__name__})") from error
    if isinstance(content, list):  # some endpoints answer in parts
        content = "".join(str(p.get("text", "")) for p in content if isinstance(p, dict))
    if refusal and not content:
        raise Refused(str(refusal)[:_LONGEST_REASON])
    return Reply(
        str(content or ""), _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    )


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value >= 0 else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait: a number or a date; None where it says nothing."""
    raw = headers.get("retry-after")
    if raw is None:
        return None
    try:
        seconds = float(raw)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(raw).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _import_openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise InputError(
            "The annotator 'openai' needs the package openai: pip install 'recbole-tpad[openai]'"
        ) from error
    return openai
