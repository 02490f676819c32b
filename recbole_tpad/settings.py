"""YAML mappings → typed dataclasses; unknown keys and wrong types are errors with a suggestion."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from recbole_tpad.errors import InputError, nearest

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from a mapping, recursively.

    Args:
        cls: a dataclass; nested dataclasses, tuples, optionals, dicts and scalars are understood.
        values: parsed YAML.
        where: what to call the mapping in messages, for example a file name.

    Raises:
        InputError: an unknown or missing key, or a value of another type.
    """
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]  # T is a dataclass
    arguments = {}
    for key, value in values.items():
        if key not in known:
            raise InputError(
                f"{where}: unknown key '{key}'.{nearest(str(key), known)} "
                f"Known: {', '.join(known)}."
            )
        arguments[key] = _convert(hints[key], value, f"{where}: {key}")
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = (
            item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        )
        if required and item.name not in arguments:
            raise InputError(f"{where}: the key '{item.name}' is missing.")
    return cls(**arguments)


def at_least(section: str, least: float, **values: float) -> None:
    """Refuse settings below a limit, and NaN.

    Raises:
        InputError: naming the section and the key.
    """
    for key, value in values.items():
        if not value >= least:
            raise InputError(f"{section}: {key} must be at least {least}, not {value}.")


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [h for h in typing.get_args(hint) if h is not type(None)]
        return None if value is None else _convert(options[0], value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise InputError(f"{where} must be 'key: value' lines, not {value!r}.")
        return from_mapping(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where} must be a list, not {value!r}.")
        return tuple(_convert(typing.get_args(hint)[0], v, where) for v in value)
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{where} must be 'key: value' lines, not {value!r}.")
        return dict(value)
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value
    if not isinstance(value, bool):
        if hint is int and isinstance(value, int):
            return value
        if hint is float and isinstance(value, int | float | str):
            try:
                return float(value)  # YAML 1.1 reads 1e-4 as a string
            except (ValueError, OverflowError):
                pass
    raise InputError(f"{where} must be of type {hint.__name__}, not {value!r}.")
