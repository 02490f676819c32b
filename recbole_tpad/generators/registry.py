"""From a generator preset (YAML) to a generator."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.generators.base import Generator
from recbole_tpad.presets import merge, preset_names, read_preset, read_yaml
from recbole_tpad.settings import from_mapping

__all__ = ["GENERATORS", "make_generator", "merge", "parse_overrides"]


def _tpad(values: Mapping[str, Any], where: str) -> Generator:
    from recbole_tpad.generators.tpad import TpadGenerator, TpadSettings

    return TpadGenerator(from_mapping(TpadSettings, values, where))


def _tfidf(values: Mapping[str, Any], where: str) -> Generator:
    from recbole_tpad.generators.tfidf import TfidfGenerator, TfidfSettings

    return TfidfGenerator(from_mapping(TfidfSettings, values, where))


def _random(values: Mapping[str, Any], where: str) -> Generator:
    from recbole_tpad.generators.random import RandomGenerator, RandomSettings

    return RandomGenerator(from_mapping(RandomSettings, values, where))


def _shuffled(values: Mapping[str, Any], where: str) -> Generator:
    from recbole_tpad.generators.shuffled import ShuffledGenerator, ShuffledSettings

    return ShuffledGenerator(from_mapping(ShuffledSettings, values, where))


def _colour_histogram(values: Mapping[str, Any], where: str) -> Generator:
    from recbole_tpad.generators.colour_histogram import (
        ColourHistogramGenerator,
        ColourHistogramSettings,
    )

    return ColourHistogramGenerator(from_mapping(ColourHistogramSettings, values, where))


def _untrained(values: Mapping[str, Any], where: str) -> Generator:
    from recbole_tpad.generators.untrained import UntrainedGenerator, UntrainedSettings

    return UntrainedGenerator(from_mapping(UntrainedSettings, values, where))


def _sentence_transformer(values: Mapping[str, Any], where: str) -> Generator:
    from recbole_tpad.generators.sentence_transformer import (
        SentenceTransformerGenerator,
        SentenceTransformerSettings,
    )

    return SentenceTransformerGenerator(from_mapping(SentenceTransformerSettings, values, where))


def _clip(values: Mapping[str, Any], where: str) -> Generator:
    from recbole_tpad.generators.clip import ClipGenerator, ClipSettings

    return ClipGenerator(from_mapping(ClipSettings, values, where))


def _blip2(values: Mapping[str, Any], where: str) -> Generator:
    from recbole_tpad.generators.blip2 import Blip2Generator, Blip2Settings

    return Blip2Generator(from_mapping(Blip2Settings, values, where))


def _qwen2vl(values: Mapping[str, Any], where: str) -> Generator:
    from recbole_tpad.generators.qwen2vl import Qwen2VlGenerator, Qwen2VlSettings

    return Qwen2VlGenerator(from_mapping(Qwen2VlSettings, values, where))


def _notellm2(values: Mapping[str, Any], where: str) -> Generator:
    from recbole_tpad.generators.notellm2 import NoteLlm2Generator, NoteLlm2Settings

    return NoteLlm2Generator(from_mapping(NoteLlm2Settings, values, where))


# Imported when asked for: tfidf must not pay for loading transformers.
GENERATORS: dict[str, Callable[[Mapping[str, Any], str], Generator]] = {
    "tpad": _tpad,
    "tfidf": _tfidf,
    "random": _random,
    "shuffled": _shuffled,
    "colour_histogram": _colour_histogram,
    "untrained": _untrained,
    "sentence_transformer": _sentence_transformer,
    "clip": _clip,
    "blip2": _blip2,
    "qwen2vl": _qwen2vl,
    "notellm2": _notellm2,
}


_TEMPLATE = re.compile(r"""(?!["']).*\{\w+\}""", re.DOTALL)


def parse_overrides(arguments: Mapping[str, str]) -> dict[str, Any]:
    """Turn ``{"knowledge.loop.steps": "50"}`` into a nested mapping; values are YAML scalars.

    A text with ``{placeholders}`` is a template and taken as it is: as YAML it would be a mapping.

    Raises:
        InputError: a value that is not valid YAML.
    """
    nested: dict[str, Any] = {}
    for key, text in arguments.items():
        try:
            value = text if _TEMPLATE.match(text) else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"--{key}={text} is not a valid YAML value.") from error
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise InputError(f"--{key}: '{parent}' is set to a value and used as a section.")
        if isinstance(place.get(last), dict):
            raise InputError(f"--{key}: '{last}' is set to a value and used as a section.")
        place[last] = value
    return nested


def make_generator(name: str, overrides: Mapping[str, Any] | None = None) -> Generator:
    """Build a generator from a preset name or the path of a YAML file of the same shape.

    Args:
        name: preset in ``properties/generator``, or a ``.yaml`` path.
        overrides: nested values on top of the preset.

    Raises:
        InputError: unknown preset, generator kind or key.
    """
    if name.endswith((".yaml", ".yml")):
        values, where = read_yaml(Path(name)), name
    else:
        if name not in preset_names("generator"):
            known = preset_names("generator")
            raise InputError(
                f"Unknown generator '{name}'.{nearest(name, known)} Known: {', '.join(known)}; "
                "or give the path of a YAML file."
            )
        values, where = read_preset("generator", name), f"generator '{name}'"
    values = merge(values, overrides or {})
    kind = str(values.pop("generator", ""))
    if kind not in GENERATORS:
        raise InputError(
            f"{where}: the key 'generator' is '{kind}'.{nearest(kind, GENERATORS)} "
            f"Known: {', '.join(GENERATORS)}."
        )
    return GENERATORS[kind](values, where)
