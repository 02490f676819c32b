"""Annotator `metadata`: words of an item's own title, features and categories. Not visual.

It costs nothing and needs no image, so it shows what keywords are worth that only repeat the text:
a control, and a stop-gap where there are no images.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from recbole_tpad.data import Item
from recbole_tpad.data.normalisation import canonical, check_language, lemma
from recbole_tpad.errors import InputError
from recbole_tpad.keywords.annotator import Answer, Outcome

# A word: letters, perhaps with a hyphen inside; no sizes, numbers or part numbers.
_TOKEN = re.compile(r"\b[^\W\d_]+(?:-[^\W\d_]+)*\b")
_FEATURE_LETTERS = 400  # of all features together; what follows is small print
_TITLE_WEIGHT, _CATEGORY_WEIGHT, _FEATURE_WEIGHT = 3, 2, 1
_MOST_COMMON = 0.5  # words of more than this share of the items tell nothing apart


@dataclass(frozen=True, slots=True)
class MetadataSettings:
    """How words are chosen.

    Attributes:
        count: most keywords an item.
        language: of the lemmas and the stop words.
        min_items: words of fewer items are left out: nothing can be learned from them.
    """

    count: int = 8
    language: str = "en"
    min_items: int = 2

    def __post_init__(self) -> None:
        check_language(self.language)
        for name in ("count", "min_items"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")


class MetadataAnnotator:
    """Takes the words of an item's text with the highest weight times inverse item frequency.

    A word weighs 3 in the title, 2 in the categories and 1 in the features, each counted once
    (assumption). The brand, stop words, numbers and words of more than half of the items are left
    out; equal scores go by the alphabet.
    """

    name = "metadata"
    visual = False

    def __init__(self, settings: MetadataSettings | None = None) -> None:
        self._settings = settings or MetadataSettings()

    def describe(self) -> dict[str, object]:
        """The settings."""
        settings = self._settings
        return {
            "annotator": self.name,
            "count": settings.count,
            "language": settings.language,
            "min_items": settings.min_items,
        }

    def annotate(self, items: Sequence[Item]) -> Outcome:
        """Choose words for every item; needs no network, no image and no model."""
        known: dict[str, str] = {}
        weighed = [self._weights(item, known) for item in items]
        spread = Counter(chain.from_iterable(weighed))
        most = max(1.0, _MOST_COMMON * len(items))
        least = min(self._settings.min_items, len(items))
        worth = {
            word: math.log(1 + len(items) / count)
            for word, count in spread.items()
            if least <= count <= most
        }
        outcome = Outcome()
        for item, weights in zip(items, weighed, strict=True):
            scored = sorted(
                [(-w * worth[word], word) for word, w in weights.items() if word in worth]
            )
            chosen = tuple(word for _, word in scored[: self._settings.count])
            if chosen:
                outcome.answers.append(Answer(item.item_id, "ok", chosen))
            else:
                reason = "no word of its text is shared with other items"
                outcome.answers.append(Answer(item.item_id, "empty", reason=reason))
        return outcome

    def _weights(self, item: Item, known: dict[str, str]) -> dict[str, int]:
        """Word → weight in an item's text; `known` grows by the lemma of every new token."""
        language = self._settings.language
        found: dict[str, int] = {}
        category = " ".join(item.category_path) or item.category
        features = " ".join(item.features)[:_FEATURE_LETTERS]
        for text, weight in (
            (item.title, _TITLE_WEIGHT),
            (category, _CATEGORY_WEIGHT),
            (features, _FEATURE_WEIGHT),
        ):
            if not text:
                continue
            for token in set(_TOKEN.findall(_lower(text))):
                word = known.get(token)
                if word is None:
                    word = known[token] = _word(token, language)
                if word:
                    found[word] = found.get(word, 0) + weight
        if item.brand:
            for token in _TOKEN.findall(_lower(item.brand)):
                found.pop(_word(token, language), None)
        return found


def _lower(text: str) -> str:
    return text.lower() if text.isascii() else canonical(text)


def _word(token: str, language: str) -> str:
    """The token's lemma; empty for what is no keyword."""
    if len(token) < 3 and token.isascii():
        return ""
    if language == "en" and token in _stop_words():
        return ""
    found = lemma(token, language)
    return "" if language == "en" and found in _stop_words() else found


@lru_cache(maxsize=1)
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    shop = {"new", "pack", "set", "size", "inch", "include", "use", "high", "quality", "product"}
    shop |= {"item", "com", "www", "please", "note", "color", "colour", "make", "easy", "best"}
    return frozenset(ENGLISH_STOP_WORDS) | shop
