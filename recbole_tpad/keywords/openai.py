"""Annotator `openai`: any endpoint that speaks OpenAI's chat completions, through their client."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from recbole_tpad.data import Item
from recbole_tpad.keywords.annotator import Answer, Outcome
from recbole_tpad.keywords.cache import AnswerCache
from recbole_tpad.keywords.dispatch import Dispatcher, Patience
from recbole_tpad.keywords.endpoint import EndpointSettings
from recbole_tpad.keywords.pricing import Estimate, Purse, estimate
from recbole_tpad.keywords.prompt import KeywordPrompt
from recbole_tpad.keywords.questions import ImageLimits, Question, QuestionMaker, Round
from recbole_tpad.keywords.senders import Senders


class OpenAIAnnotator:
    """Asks an endpoint about every item's image.

    Args:
        folder: the data set folder.
        cache: answers so far; new ones are added.
        settings: endpoint.
        prompt: question.
        limits: of the images.
        patience: concurrency and retries.

    Raises:
        InputError: a budget without prices.
    """

    name = "openai"
    visual = True

    def __init__(
        self,
        folder: Path,
        cache: AnswerCache,
        settings: EndpointSettings,
        *,
        prompt: KeywordPrompt | None = None,
        limits: ImageLimits | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._cache = cache
        self._settings = settings
        self._prompt = prompt or KeywordPrompt()
        self._limits = limits or ImageLimits()
        self._patience = patience or Patience()
        self._model = {"annotator": self.name, "model": settings.model}
        self._maker = QuestionMaker(
            folder,
            self._prompt,
            {**self._model, "temperature": settings.temperature},
            self._limits,
        )
        self._purse = Purse(settings.prices, settings.budget, settings.max_tokens)

    def describe(self) -> dict[str, object]:
        """Model, endpoint, prompt and what was sent; never the key."""
        settings, prices = self._settings, self._settings.prices
        return {
            **self._model,
            "base_url": settings.base_url,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "image_size": self._limits.size,
            "prompt": self._prompt.template,
            "count": self._prompt.count,
            "language": self._prompt.language,
            "prices_per_million": [prices.prompt, prices.completion] if prices else None,
        }

    def price(self, items: Sequence[Item]) -> Estimate:
        """What asking about the items would take; sends nothing and needs no key."""
        found = Estimate(problems={}, spent=self._cache.spent["cost"])
        to_ask: dict[str, Question] = {}
        for item in items:
            made = self._maker.make(item, known=self._cache, measure_only=True)
            if isinstance(made, Answer):
                assert found.problems is not None
                found.problems[made.status] = found.problems.get(made.status, 0) + 1
            elif self._cache.get(made.key) is not None:
                found.answered += 1
            else:
                to_ask[made.key] = made
        measured = [
            (record["prompt_tokens"], record["completion_tokens"])
            for record in self._cache.records()
            if record.get("model") == self._settings.model and "prompt_tokens" in record
        ]
        found.ask, found.measured = len(to_ask), len(measured)
        found.prompt_tokens, found.completion_tokens, found.cost = estimate(
            list(to_ask.values()), measured, self._settings.prices
        )
        return found

    def annotate(self, items: Sequence[Item]) -> Outcome:
        """Ask about every item that has no answer yet.

        Raises:
            InputError: no key, the package openai is absent, a wrong key or model, or an endpoint
                that answers nothing; with the remedy.
        """
        round_ = Round(self._cache, self._model)
        asyncio.run(self._run(items, round_))
        self._cache.refresh()
        round_.usage.in_all = self._cache.spent
        return round_.outcome

    async def _run(self, items: Sequence[Item], round_: Round) -> None:
        senders = Senders(self._settings, self._prompt)
        try:
            dispatcher = Dispatcher(
                senders.ask, self._maker, self._prompt, round_, self._purse, self._patience
            )
            await dispatcher.run(items)
        finally:
            await senders.close()
