"""From preset names, YAML files and overrides to generators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_tpad.errors import InputError
from recbole_tpad.generators.registry import make_generator, merge, parse_overrides
from recbole_tpad.presets import preset_names


@pytest.mark.parametrize("name", preset_names("generator"))
def test_every_preset_is_a_generator(name: str) -> None:
    generator = make_generator(name)
    assert callable(generator.generate)
    assert callable(generator.fingerprint)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("tpd", {}, r"Unknown generator 'tpd'\. Did you mean 'tpad'\? Known: .*tfidf"),
        ("absent.yaml", {}, r"Cannot read absent\.yaml"),
        ("tfidf", {"dimensoin": 3}, "unknown key 'dimensoin'. Did you mean 'dimension'"),
        ("tfidf", {"dimension": "many"}, "dimension must be of type int, not 'many'"),
        ("tfidf", {"use_description": 1}, "use_description must be of type bool"),
        ("random", {"generator": "tfidff"}, "'tfidff'. Did you mean 'tfidf'"),
        ("tpad-tiny", {"knowlege": {}}, "Did you mean 'knowledge'"),
        ("tpad-tiny", {"knowledge": {"loop": {"step": 3}}}, "Did you mean 'steps'"),
        ("tpad-tiny", {"knowledge": 5}, "knowledge must be 'key: value' lines"),
        ("tpad-tiny", {"transition": {"orders": 3}}, "orders must be a list"),
        ("tpad-tiny", {"transition": {"orders": [1.5]}}, "orders must be of type int"),
        ("tpad-tiny", {"alignment": {"mi_lower": "softt"}}, "Did you mean 'soft'"),
        ("tpad-tiny", {"knowledge": {"loop": {"steps": 0}}}, "Impossible training settings"),
    ],
)
def test_bad_settings(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_generator(name, overrides)


def test_a_yaml_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("generator: random\ndimension: 7\n")
    make_generator(str(file))
    file.write_text("dimension: 7\n")
    with pytest.raises(InputError, match="'generator'"):
        make_generator(str(file))
    file.write_text("generator: [random\n")
    with pytest.raises(InputError, match=r"mine\.yaml is not valid YAML"):
        make_generator(str(file))


def test_merging_leaves_its_arguments_alone() -> None:
    base: dict[str, Any] = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert merge(base, {"a": {"c": {"d": 5}}, "f": 1}) == {
        "a": {"b": 1, "c": {"d": 5}},
        "e": 3,
        "f": 1,
    }
    assert base == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


def test_overrides_are_yaml_scalars() -> None:
    given = {"a.b": "3", "a.c": "[1, 2]", "d": "true", "e": "text", "f.g.h": "1.5", "i": "null"}
    assert parse_overrides(given) == {
        "a": {"b": 3, "c": [1, 2]},
        "d": True,
        "e": "text",
        "f": {"g": {"h": 1.5}},
        "i": None,
    }


@pytest.mark.parametrize("text", ["{title}", "{title}, {brand}", "Title: {title}. {brand}"])
def test_a_template_needs_no_quotes(text: str) -> None:
    assert parse_overrides({"item_text": text, "b": f'"{text}"'}) == {"item_text": text, "b": text}


@pytest.mark.parametrize(
    "given",
    [
        {"a": "3", "a.b": "4"},
        {"a.b": "4", "a": "3"},
        {"a": "[1"},
        {"a": "!!python/object/apply:os.getcwd []"},
    ],
    ids=str,
)
def test_bad_overrides(given: dict[str, str]) -> None:
    with pytest.raises(InputError, match="--a"):
        parse_overrides(given)
