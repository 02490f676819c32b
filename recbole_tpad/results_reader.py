"""Typed access to a results file's JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_tpad.errors import InputError


class Reader:
    """Typed access to parsed JSON; every complaint names the file and the key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, key: str, problem: str) -> InputError:
        return InputError(
            f"{self.path}: key '{key}' {problem}. The file is damaged or was not written by "
            "`recbole-tpad evaluate`; write it anew."
        )

    def get(self, mapping: Mapping[str, Any], key: str, prefix: str) -> Any:
        if key not in mapping:
            raise self.fail(prefix + key, "is missing")
        return mapping[key]

    def mapping(self, value: Any, key: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(key, f"must be an object, not {_kind(value)}")
        return value

    def sequence(self, value: Any, key: str) -> list[Any]:
        if not isinstance(value, list):
            raise self.fail(key, f"must be a list, not {_kind(value)}")
        return value

    def text(self, value: Any, key: str) -> str:
        if not isinstance(value, str):
            raise self.fail(key, f"must be a string, not {_kind(value)}")
        return value

    def number(self, value: Any, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fail(key, f"must be a number, not {_kind(value)}")
        if not math.isfinite(value):
            raise self.fail(key, "is not a finite number")
        return float(value)

    def numbers(self, value: Any, key: str) -> dict[str, float]:
        return {k: self.number(v, f"{key}.{k}") for k, v in self.mapping(value, key).items()}

    def known_numbers(self, value: Any, key: str) -> dict[str, float]:
        """Numbers of a mapping, leaving out those that are null (no value, such as no rows)."""
        found = self.mapping(value, key)
        return self.numbers({k: v for k, v in found.items() if v is not None}, key)

    def optional_number(self, value: Any, key: str) -> float | None:
        return None if value is None else self.number(value, key)

    def optional_flag(self, value: Any, key: str) -> bool | None:
        if value is not None and not isinstance(value, bool):
            raise self.fail(key, f"must be true, false or null, not {_kind(value)}")
        return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
