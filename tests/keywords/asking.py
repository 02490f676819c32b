"""One run of the annotator `openai` on the shop of `chat_server`, and what came of it."""

from __future__ import annotations

from typing import Any

from chat_server import ChatServer, keywords_of, reread

from recbole_tpad.data import DatasetFolder
from recbole_tpad.keywords.annotate import AnnotationReport, annotate
from recbole_tpad.keywords.annotator import Outcome
from recbole_tpad.keywords.cache import AnswerCache
from recbole_tpad.keywords.dispatch import Patience
from recbole_tpad.keywords.endpoint import EndpointSettings
from recbole_tpad.keywords.openai import OpenAIAnnotator
from recbole_tpad.keywords.prompt import KeywordPrompt
from recbole_tpad.keywords.questions import ImageLimits

KEY = "sk-do-not-show-5e1f"
QUICK = Patience(concurrency=4, retries=2, repairs=2, backoff=0.01, max_wait=5)


def ask(
    shop: DatasetFolder,
    server: ChatServer,
    *,
    patience: Patience = QUICK,
    limits: ImageLimits | None = None,
    prompt: KeywordPrompt | None = None,
    **settings: Any,
) -> AnnotationReport:
    """One run, as the command does it."""
    chosen = EndpointSettings(**{"model": "seer-large", "base_url": server.url, **settings})
    with AnswerCache(shop.path / "keywords") as cache:
        asking = OpenAIAnnotator(
            shop.path, cache, chosen, patience=patience, limits=limits, prompt=prompt
        )
        return annotate(reread(shop), asking)


def raw(shop: DatasetFolder, server: ChatServer, **settings: Any) -> Outcome:
    """The annotator's own outcome."""
    chosen = EndpointSettings(**{"model": "seer-large", "base_url": server.url, **settings})
    with AnswerCache(shop.path / "keywords") as cache:
        asking = OpenAIAnnotator(shop.path, cache, chosen, patience=QUICK)
        return asking.annotate(reread(shop).items)


def expected(count: int = 12) -> dict[str, tuple[str, ...]]:
    return {f"i{k:02d}": tuple(keywords_of(k)) for k in range(count)}


def got(shop: DatasetFolder) -> dict[str, tuple[str, ...]]:
    return {item.item_id: item.keywords for item in reread(shop).items if item.keywords}
