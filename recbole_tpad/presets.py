"""Finds the YAML presets of `properties/`, in a wheel and in a checkout alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from recbole_tpad.errors import InputError, nearest


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key set twice is an error, not the last one's win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in lines:
                problem = f"'{key.value}' is set twice, first in line {lines[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def properties_dir() -> Path:
    """Return the folder with model/, generator/, dataset/ and evaluation/ presets.

    A wheel carries it inside the package; an editable install uses the checkout's top level.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / "properties", package.parent / "properties"):
        if (candidate / "model").is_dir():
            return candidate
    raise InputError(
        f"The presets folder 'properties' is neither in {package} nor beside it: the installation "
        "is incomplete. Reinstall recbole-tpad."
    )


def preset_names(kind: str) -> list[str]:
    """Return the names of all presets of a kind ('model', 'generator', 'dataset', 'evaluation')."""
    return sorted(p.stem for p in (properties_dir() / kind).glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        InputError: unreadable file, invalid YAML (with the line), or not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}).") from error
    except yaml.YAMLError as error:
        hint = " YAML is indented with spaces, not tabs." if "'\\t'" in str(error) else ""
        raise InputError(f"{path} is not valid YAML: {error}.{hint}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold 'key: value' lines, not a {type(content).__name__}.")
    return content


def read_preset(kind: str, name: str) -> dict[str, Any]:
    """Read a preset by name.

    Raises:
        InputError: no such preset (the nearest known one is suggested).
    """
    known = preset_names(kind)
    if name not in known:
        raise InputError(
            f"Unknown {kind} '{name}'.{nearest(name, known)} Known: {', '.join(known)}."
        )
    return read_yaml(properties_dir() / kind / f"{name}.yaml")


def merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with nested `changes` on top."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = (
            merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged


def preset_values(kind: str, value: str | Mapping[str, Any]) -> dict[str, Any]:
    """Settings from a preset's name, the path of a YAML file, or a mapping of settings.

    Args:
        kind: of preset.
        value: a mapping may name what it changes under the key ``preset``.

    Raises:
        InputError: an unknown preset, or a file that cannot be read.
    """
    given = {"preset": value} if isinstance(value, str) else dict(value)
    name = given.pop("preset", None)
    if name is None:
        return given
    is_file = str(name).endswith((".yaml", ".yml"))
    return merge(read_yaml(Path(str(name))) if is_file else read_preset(kind, str(name)), given)
