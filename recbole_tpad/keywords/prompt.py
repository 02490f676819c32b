"""What a visual annotator is asked, and what its answer says (wording: assumption)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from recbole_tpad.data import Item
from recbole_tpad.data.normalisation import check_language, in_language
from recbole_tpad.errors import InputError

LANGUAGES = {"de": "German", "en": "English", "es": "Spanish", "fr": "French", "it": "Italian"}
DEFAULT_PROMPT = (
    "You label products for a shop's catalogue. Look at the image and name up to {count} visual "
    "keywords of the product: colours, shape, material, pattern, style, what is depicted. Short "
    "noun phrases or adjectives in {language}, most striking first; nothing that only the title "
    "says, nothing about the background or the photograph.\n"
    "Product title: {title}\n"
    'Answer with JSON only: {{"keywords": ["...", "..."]}}'
)
AGAIN = "That was not usable: {reason}. Answer with the JSON object only, in {language}."
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"keywords": {"type": "array", "items": {"type": "string"}}},
    "required": ["keywords"],
    "additionalProperties": False,
}
_FIELDS = ("count", "language", "title", "brand", "category", "description")
_TEXT_LIMIT = 300  # characters of an item's field in the prompt
_MOST_WORDS = 6  # of one keyword; longer ones are sentences
_MOST_LETTERS = 60
# A list that was cut off is taken when it still says something.
_SALVAGED = 3
_KEYS = ("keywords", "visual_keywords", "tags", "labels")
# Hostile answers must not take long to read.
_READ = 20_000  # characters
_STARTS = 50  # brackets where JSON may begin
# Words of a refusal or an introduction, not of a keyword list.
_PROSE = re.compile(
    r"\b(?:i|i'm|sorry|cannot|can't|unable|please|here|is|are|you)\b", re.IGNORECASE
)
_DECODER = json.JSONDecoder()
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


class Unusable(Exception):
    """An answer that holds no keywords; the message says why."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer's keywords; `repaired` says what was wrong with it, if anything."""

    keywords: tuple[str, ...]
    repaired: str = ""


@dataclass(frozen=True, slots=True)
class KeywordPrompt:
    """The question.

    Attributes:
        count: most keywords an item.
        language: code of the wanted answers; ``none`` accepts any and asks for English.
        template: may use {count}, {language}, {title}, {brand}, {category}, {description};
            doubled braces are braces.

    Raises:
        InputError: another field in the template, an unknown language, or a count below 1.
    """

    count: int = 8
    language: str = "en"
    template: str = DEFAULT_PROMPT

    def __post_init__(self) -> None:
        check_language(self.language)
        if self.count < 1:
            raise InputError(f"The number of keywords must be at least 1, not {self.count}.")
        try:
            self.template.format(**dict.fromkeys(_FIELDS, "x"))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise InputError(
                f"The prompt cannot be filled in ({type(error).__name__}: {error}). It may use "
                f"{', '.join('{' + name + '}' for name in _FIELDS)}; write {{{{ for a brace."
            ) from error

    @property
    def language_name(self) -> str:
        """The language as the prompt calls it."""
        if self.language == "none":
            return "English"
        return LANGUAGES.get(self.language, f"the language with the code '{self.language}'")

    def text(self, item: Item) -> str:
        """The question about an item."""
        fields = {
            name: " ".join(str(getattr(item, name)).split())[:_TEXT_LIMIT] for name in _FIELDS[2:]
        }
        return self.template.format(count=self.count, language=self.language_name, **fields)

    def again(self, reason: str) -> str:
        """What is said after an unusable answer."""
        return AGAIN.format(reason=reason, language=self.language_name)

    def parse(self, text: str) -> Parsed:
        """Read an answer.

        Accepted beside the JSON that was asked for: prose or a code fence around it, a bare list,
        an object of another common key, a cut list with at least three whole keywords, and a
        plain comma-separated list.

        Returns:
            At most `count` keywords; none where the answer is an empty list.

        Raises:
            Unusable: nothing of that, sentences instead of keywords, or another language.
        """
        found, repaired = _strings(text)
        tidy = list(dict.fromkeys(" ".join(k.split()).strip(" .,;:\"'") for k in found))
        phrases = [k for k in tidy if k]
        kept = [k for k in phrases if len(k.split()) <= _MOST_WORDS and len(k) <= _MOST_LETTERS]
        if phrases and not kept:
            raise Unusable("sentences instead of keywords")
        if not in_language(kept, self.language):
            raise Unusable(f"not in {self.language_name}")
        return Parsed(tuple(kept[: self.count]), repaired)


def read_prompt(path: Path) -> str:
    """Read a prompt template from a file.

    Raises:
        InputError: unreadable or empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the prompt {path}: {error}.") from error
    if not text:
        raise InputError(f"The prompt {path} is empty.")
    return text


def _strings(text: str) -> tuple[list[str], str]:
    """Return the keywords in an answer and what had to be repaired."""
    bare = text.strip()[:_READ]
    if not bare:
        raise Unusable("an empty answer")
    whole = _decode(bare, 0)
    if whole is not None and whole[1] == len(bare):
        return _listed(whole[0]), "" if isinstance(whole[0], dict) else "a bare list"
    for match in islice(re.finditer(r"[{\[]", bare), _STARTS):
        inner = _decode(bare, match.start())
        if inner is not None:
            try:
                return _listed(inner[0]), "prose around the JSON"
            except Unusable:
                continue  # another bracket of the prose
    if re.search(r"[{\[]", bare):
        return _salvaged(bare), "the JSON was cut"
    return _plain(bare), "a plain list"


def _decode(text: str, start: int) -> tuple[Any, int] | None:
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return (value, end) if isinstance(value, dict | list) else None


def _listed(value: Any) -> list[str]:
    if isinstance(value, dict):
        lower = {str(key).lower(): found for key, found in value.items()}
        value = next((lower[key] for key in _KEYS if key in lower), None)
        if isinstance(value, str):
            value = value.split(",")
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise Unusable("no list of keywords in the JSON")
    return value


def _salvaged(text: str) -> list[str]:
    """Whole strings of a list that was cut off."""
    found = []
    for raw in _STRING.findall(text[text.rfind("[") + 1 :]):
        try:
            found.append(str(json.loads(f'"{raw}"', strict=False)))
        except ValueError as error:
            raise Unusable("broken JSON") from error
    if "[" not in text or len(found) < _SALVAGED:
        raise Unusable("broken JSON")
    return found


def _plain(text: str) -> list[str]:
    text = re.sub(r"^[^,\n:]{0,40}:\s*", "", text)  # "Keywords: ..."
    parts = [re.sub(r"^\s*(?:[-*•]|\d+[.)])\s*", "", part) for part in re.split(r"[,;\n]", text)]
    found = [part.strip() for part in parts if part.strip()]
    if (
        len(found) < _SALVAGED
        or _PROSE.search(text)
        or any(len(part.split()) > _MOST_WORDS for part in found)
    ):
        raise Unusable("no JSON in it")
    return found
