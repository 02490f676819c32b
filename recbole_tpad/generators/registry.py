"""From a generator preset (YAML) to a generator."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.generators.base import Encoded, Generator, RunRecord
from recbole_tpad.own_code import is_own, own_class, own_sha256
from recbole_tpad.presets import merge, preset_names, read_preset, read_yaml
from recbole_tpad.settings import from_mapping

__all__ = ["known_kinds", "make_generator", "merge", "parse_overrides"]


def known_kinds() -> list[str]:
    """Return what ``generator:`` may be: every kind that a preset names."""
    return sorted(
        {str(read_preset("generator", n)["generator"]) for n in preset_names("generator")}
    )


def _is_generator(found: type) -> bool:
    return all(callable(getattr(found, name, None)) for name in ("fingerprint", "generate"))


def _build(found: Any, values: Mapping[str, Any], where: str) -> Any:
    """Build a generator; the type of its first argument says which settings there are."""
    parameters = list(inspect.signature(found).parameters)
    settings = get_type_hints(found.__init__).get(parameters[0]) if parameters else None
    if not isinstance(settings, type) or not is_dataclass(settings):
        raise InputError(
            f"{where}: the first argument of {found.__name__} must have a dataclass of settings as "
            "its type."
        )
    return found(from_mapping(settings, values, where))


class _OwnGenerator:
    """A generator from a user's file; vectors also depend on that file."""

    def __init__(self, generator: Any, name: str) -> None:
        self._generator = generator
        self._code = {f"code:{key}": value for key, value in own_sha256(name).items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def fingerprint(self, dataset: DatasetFolder) -> dict[str, str]:
        return {**self._generator.fingerprint(dataset), **self._code}

    def generate(self, dataset: DatasetFolder, work: Path, record: RunRecord) -> Encoded:
        encoded: Encoded = self._generator.generate(dataset, work, record)
        return replace(encoded, inputs={**encoded.inputs, **self._code})


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

    The YAML's key ``generator`` is the module of `recbole_tpad.generators` that holds the class or,
    in a YAML file given by its path, a Python file beside it (``mine.py`` or ``mine.py:Class``).

    Args:
        name: preset in ``properties/generator``, or a ``.yaml`` path.
        overrides: nested values on top of the preset.

    Raises:
        InputError: unknown preset, generator kind or key; a Python file without one generator.
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
    # Code is only run where the user's own file names it.
    own = str(values.get("generator", "")) if name.endswith((".yaml", ".yml")) else ""
    values = merge(values, overrides or {})
    kind = str(values.pop("generator", ""))
    if own == kind and is_own(kind):
        file = str(Path(name).parent / kind)
        made = _build(own_class(file, _is_generator, "generator"), values, where)
        return _OwnGenerator(made, file)
    known = known_kinds()
    if kind not in known:
        raise InputError(
            f"{where}: the key 'generator' is '{kind}'.{nearest(kind, known)} "
            f"Known: {', '.join(known)}; or, in a YAML file of your own, a Python file beside it."
        )
    # Imported when asked for: tfidf must not pay for loading transformers.
    module = importlib.import_module(f"recbole_tpad.generators.{kind}")
    (found,) = (
        c
        for c in vars(module).values()
        if isinstance(c, type) and c.__module__ == module.__name__ and _is_generator(c)
    )
    generator: Generator = _build(found, values, where)
    return generator
