"""Keyword normalisation: one spelling for what is one keyword."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_tpad.data.normalisation import (
    Normaliser,
    in_language,
    lemma,
    read_stop_phrases,
    words,
)
from recbole_tpad.errors import InputError


def test_words() -> None:
    assert words(["Red  rim", "red", "T-shirt"]) == ["red", "rim", "t", "shirt"]
    assert words(["赤い 急須"]) == ["赤い", "急須"]
    assert words([]) == words([" , "]) == []
    assert words(["Knives, leather SHOES", "a shoe"]) == ["knife", "leather", "shoe", "a"]
    assert words(["shoes"], "none") == ["shoes"]
    assert words(["Häuser"], "de") == ["haus"]


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        (["Red mugs", "red  MUG", "a red mug"], ["red mug"]),
        (["\uff26\uff55ll width", "full\u200bwidth"], ["full width", "fullwidth"]),
        (["Cafe\u0301", "café"], ["café"]),
        (["T-shirts", "men's shoe"], ["t-shirt", "man shoe"]),
        (["white background", "Product", "N/A", "image", "red"], ["red"]),
        (["with a handle", "the", "", " ,"], ["handle"]),
        (["赤い", "☕", "круглый"], ["赤い", "круглый"]),
        (["3/4 sleeves", "2.5 mm"], ["3/4 sleeve", "2.5 mm"]),
    ],
)
def test_phrases(given_: list[str], wanted: list[str]) -> None:
    assert Normaliser()(given_) == wanted


def test_own_stop_phrases_and_no_normalisation(tmp_path: Path) -> None:
    file = tmp_path / "stop.txt"
    file.write_text("Gift Cards # this shop has nothing else\n\n# shoes\n")
    stop = read_stop_phrases(file)
    assert stop == {"Gift Cards"}
    assert Normaliser(stop=stop)(["gift card", "gift", "shoes"]) == ["gift", "shoe"]
    assert Normaliser(enabled=False)([" Gift  Cards", "Gift Cards", "", "the"]) == [
        "Gift Cards",
        "the",
    ]
    assert Normaliser("none")(["Shoes"]) == ["shoes"]
    with pytest.raises(InputError, match="Cannot read"):
        read_stop_phrases(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_stop_phrases(tmp_path / "binary")


def test_unknown_languages() -> None:
    with pytest.raises(InputError, match=r"Unknown language 'zz'.*'none' compares"):
        Normaliser("zz")


@given(st.lists(st.text(max_size=12), max_size=5))
def test_properties(phrases: list[str]) -> None:
    normalise = Normaliser()
    once = normalise(phrases)
    assert len(set(once)) == len(once)
    assert all(p == " ".join(p.split()) and p == p.lower() != "" for p in once)
    assert normalise([unicodedata.normalize("NFD", p) for p in once]) == normalise(once)
    assert normalise(phrases + phrases) == once
    found = words(phrases)
    assert len(set(found)) == len(found)
    assert set(words([*reversed(phrases)])) == set(found)


def test_lemmas_are_lower_case() -> None:
    assert lemma("i") == "i"
    assert lemma("häuser", "de") == "haus"


@pytest.mark.parametrize(
    ("phrases", "language", "may_be"),
    [
        (["red", "round", "mug"], "en", True),
        (["turquoise paisley", "batik ikat"], "en", True),
        (["minimalist logo", "kawaii"], "en", True),
        (["blau", "gestreift", "Baumwolle"], "en", False),
        (["rojo", "redonda", "taza"], "en", False),
        (["红色", "圆形", "陶瓷"], "en", False),
        (["красный"], "en", False),
        (["blau", "gestreift", "Baumwolle"], "de", True),
        (["Becher", "rot"], "en", True),  # two words tell too little
        (["red", "round", "mug"], "none", True),
        (["红色"], "none", True),
        ([], "en", True),
        (["☕"], "en", True),
    ],
)
def test_language(phrases: list[str], language: str, may_be: bool) -> None:
    assert in_language(phrases, language) is may_be
