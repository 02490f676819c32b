"""Reading answers: what is accepted, what is not, and that nothing hostile takes long."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.keywords.prompt import KeywordPrompt, Unusable, read_prompt

PROMPT = KeywordPrompt()
ITEM = Item("i", "Big  {mug}", "Acme", "Mugs", "x" * 1000, None, None, ())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"keywords": ["red", "round mug"]}', ["red", "round mug"]),
        ('{"keywords": []}', []),
        ('```json\n{"keywords": ["red"]}\n```', ["red"]),
        ('Sure [1]! {"keywords": ["red"]} Anything {else}?', ["red"]),
        ('{"Visual_Keywords": ["red"]}', ["red"]),
        ('{"tags": "red, blue"}', ["red", "blue"]),
        ('["red", "red", " blue. "]', ["red", "blue"]),
        ('{"keywords": ["red", "round", "big", "cera', ["red", "round", "big"]),
        ('{"keywords": ["a \\"b\\"", "round", "big", "\\u00e9l', ['a "b', "round", "big"]),
        ("red, round, shiny", ["red", "round", "shiny"]),
        ("Keywords:\n1. red\n2. round\n- shiny", ["red", "round", "shiny"]),
        ('{"keywords": ["red", "It is a very large mug with a handle on it"]}', ["red"]),
        (json.dumps({"keywords": [f"red{k}" for k in range(30)]}), None),
    ],
)
def test_usable(text: str, wanted: list[str] | None) -> None:
    found = KeywordPrompt(language="none").parse(text).keywords
    assert list(found) == (wanted if wanted is not None else [f"red{k}" for k in range(8)])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "an empty answer"),
        (" \n", "an empty answer"),
        ("I'm sorry, but I cannot, really, see it", "no JSON"),
        ("A mug.", "no JSON"),
        ("null", "no JSON"),
        ('{"keywords": ["re', "broken JSON"),
        ('{"keywords": ["red", "bl', "broken JSON"),
        ('{"keywords": [1, 2]}', "no list of keywords"),
        ('{"keywords": null}', "no list of keywords"),
        ('{"colour": "red"}', "no list of keywords"),
        ('{"keywords": ["This is one long sentence that describes it"]}', "sentences"),
        ('{"keywords": ["blau", "gestreift", "Baumwolle"]}', "not in English"),
        ('{"keywords": ["红色", "圆形"]}', "not in English"),
    ],
)
def test_unusable(text: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        PROMPT.parse(text)


@pytest.mark.parametrize("text", ["[" * 500_000, '{"a":' * 100_000, '["' * 300_000, "a," * 10**6])
def test_hostile_answers_are_read_quickly(text: str) -> None:
    started = time.process_time()
    with contextlib.suppress(Unusable):
        PROMPT.parse(text)
    assert time.process_time() - started < 1


@given(st.text(max_size=80))
def test_anything_is_keywords_or_unusable(text: str) -> None:
    try:
        found = PROMPT.parse(text).keywords
    except Unusable:
        return
    assert all(k and k == " ".join(k.split()) and len(k) <= 60 for k in found)
    assert len(found) <= 8


@given(st.lists(st.sampled_from(["red", "blue", "round", "T-shirt", "a b c"]), unique=True))
def test_json_is_read_as_it_is(keywords: list[str]) -> None:
    assert PROMPT.parse(json.dumps({"keywords": keywords})).keywords == tuple(keywords)


def test_the_question() -> None:
    text = PROMPT.text(ITEM)
    assert "Product title: Big {mug}\n" in text
    assert '{"keywords": ["...", "..."]}' in text
    assert "up to 8" in text
    assert "in English" in text
    own = KeywordPrompt(3, "de", "{count} {language} {brand} {category} {description}")
    assert own.text(ITEM) == f"3 German Acme Mugs {'x' * 300}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{price}", r"KeyError: 'price'.*\{count\}, \{language\}, \{title\}"),
        ("{title.__class__.x}", "cannot be filled in"),
        ("{", "cannot be filled in"),
        ("{0}", "cannot be filled in"),
    ],
)
def test_bad_templates(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        KeywordPrompt(template=template)


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 1, not 0"):
        KeywordPrompt(count=0)
    with pytest.raises(InputError, match="Unknown language"):
        KeywordPrompt(language="english")
    (tmp_path / "p.txt").write_text(" \n")
    with pytest.raises(InputError, match="is empty"):
        read_prompt(tmp_path / "p.txt")
    with pytest.raises(InputError, match="Cannot read the prompt"):
        read_prompt(tmp_path / "absent")
