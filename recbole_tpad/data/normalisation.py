"""Keyword phrases in one spelling: Unicode form, case, lemma, stop list.

The annotators write keywords in this form and the Generation Rate compares words in it, so both
see one vocabulary. Lemmas come from simplemma, whose dictionaries are part of the package.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import simplemma
from simplemma.strategies.dictionaries.dictionary_factory import SUPPORTED_LANGUAGES

from recbole_tpad.errors import InputError, nearest

NO_LANGUAGE = "none"
_WORD = re.compile(r"\w+")
# Words of a phrase, with what may stand inside one (t-shirt, men's, 3/4, 2.5).
_PHRASE_WORD = re.compile(r"\w+(?:[-'\u2019./&+]\w+)*")
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")

# English words that carry nothing inside a keyword phrase (assumption: our own list).
_FILLERS = frozenset(
    _WORD.findall(
        """a an the this that these those its his her their of with and or in on at to for from by
        as is are was were be been has have had very some any it which"""
    )
)
# What annotators say of any picture instead of the item (assumption: our own list).
_STOP_PHRASES = frozenset(
    {"background", "white background", "plain background", "black background", "image", "photo"}
    | {"picture", "photograph", "product", "product image", "product photo", "item", "object"}
    | {"thing", "stuff", "view", "front view", "close up", "close-up", "studio shot", "stock photo"}
    | {"unknown", "none", "n/a", "not applicable", "no image", "other", "various", "visual"}
    | {"keyword", "text", "logo visible", "high quality", "high resolution"}
)


def check_language(language: str) -> None:
    """Refuse a language without lemmas.

    Raises:
        InputError: neither one of simplemma's language codes nor ``none``.
    """
    known = (*SUPPORTED_LANGUAGES, NO_LANGUAGE)
    if language not in known:
        raise InputError(
            f"Unknown language '{language}'.{nearest(language, known)} Known: "
            f"{', '.join(sorted(SUPPORTED_LANGUAGES))}; '{NO_LANGUAGE}' compares words as they are."
        )


def canonical(text: str) -> str:
    """Unicode NFKC, lower case, without invisible characters, white space as single spaces."""
    folded = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).lower()
    return " ".join(folded.split())


@lru_cache(maxsize=1 << 17)
def lemma(word: str, language: str = "en") -> str:
    """The lower-cased lemma of a lower-cased word; the word itself where none is known.

    Args:
        language: checked by `check_language`; ``none`` changes nothing.
    """
    if language == NO_LANGUAGE or not word:
        return word
    return simplemma.lemmatize(word, lang=language).lower()


def words(phrases: Sequence[str], language: str = "en") -> list[str]:
    """Lemmas of the words of keyword phrases, in order, without repeats."""
    found = (lemma(word, language) for word in _WORD.findall(canonical(" ".join(phrases))))
    return list(dict.fromkeys(found))


def in_language(phrases: Sequence[str], language: str) -> bool:
    """Whether phrases may be of a language; in doubt they may.

    At least 30% of the words must be known to the language's dictionary (assumption). Fewer than
    three words only tell by their script, and where they hold an ASCII letter they tell nothing.
    """
    distinct = {w for w in _WORD.findall(canonical(" ".join(phrases))) if len(w) > 2 or _foreign(w)}
    if language == NO_LANGUAGE or not distinct:
        return True
    if len(distinct) < 3 and not all(map(_foreign, distinct)):
        return True
    known = sum(_is_known(word, language) for word in distinct)
    return known >= 0.3 * len(distinct)


@lru_cache(maxsize=1 << 16)
def _is_known(word: str, language: str) -> bool:
    return bool(simplemma.is_known(word, lang=language))


def _foreign(word: str) -> bool:
    return not re.search("[a-z0-9]", word)


@dataclass(frozen=True)
class Normaliser:
    """Rules for keyword phrases.

    Attributes:
        language: of the lemmas; ``none`` keeps the words.
        stop: phrases to drop beside the built-in ones, compared in normalised form.
        enabled: False only tidies white space and drops repeats.
    """

    language: str = "en"
    stop: frozenset[str] = frozenset()
    enabled: bool = True

    def __post_init__(self) -> None:
        check_language(self.language)
        dropped = {self._phrase(phrase) for phrase in (*_STOP_PHRASES, *self.stop)}
        object.__setattr__(self, "_dropped", dropped | {""})

    _dropped = frozenset[str]()

    def __call__(self, phrases: Iterable[str]) -> list[str]:
        """Normalised phrases in order, without repeats, stop phrases and empty ones."""
        if not self.enabled:
            tidy = (" ".join(phrase.split()) for phrase in phrases)
            return list(dict.fromkeys(phrase for phrase in tidy if phrase))
        found = dict.fromkeys(self._phrase(phrase) for phrase in phrases)
        return [phrase for phrase in found if phrase not in self._dropped]

    def _phrase(self, phrase: str) -> str:
        parts = _PHRASE_WORD.findall(canonical(phrase))
        if self.language == "en":
            parts = [part for part in parts if part not in _FILLERS]
        return " ".join(lemma(part, self.language) for part in parts)

    def describe(self) -> dict[str, object]:
        """The rules, for a record of where keywords come from."""
        if not self.enabled:
            return {"enabled": False}
        return {
            "enabled": True,
            "language": self.language,
            "stop": sorted(self.stop),
            "simplemma": simplemma.__version__,
        }


def read_stop_phrases(path: Path) -> frozenset[str]:
    """Read a stop list: one phrase a line, ``#`` starts a comment.

    Raises:
        InputError: an unreadable file.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}).") from error
    phrases = (line.partition("#")[0].strip() for line in lines)
    return frozenset(phrase for phrase in phrases if phrase)
