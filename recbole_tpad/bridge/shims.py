"""The few names RecBole 1.2.1 expects and libraries no longer have; set, then taken back."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

# Removed in numpy 1.24 and 2.0; RecBole assigns or reads them.
_NUMPY_NAMES: dict[str, object] = {
    "float": float,
    "int": int,
    "bool8": np.bool_,
    "object": object,
    "complex": complex,
    "float_": np.float64,
    "complex_": np.complex128,
    "str": np.str_,
    "unicode": np.str_,
    "unicode_": np.str_,
}


def set_numpy_names() -> list[str]:
    """Give numpy the names it lacks; return those, for `remove_numpy_names`."""
    added = [name for name in _NUMPY_NAMES if name not in vars(np)]
    for name in added:
        setattr(np, name, _NUMPY_NAMES[name])
    return added


def remove_numpy_names(names: list[str]) -> None:
    """Take names set by `set_numpy_names` back."""
    for name in names:
        if name in vars(np):
            delattr(np, name)


@contextmanager
def numpy_names() -> Iterator[None]:
    """Give numpy the old names within this scope."""
    added = set_numpy_names()
    try:
        yield
    finally:
        remove_numpy_names(added)


def import_quick_start() -> types.ModuleType:
    """Import ``recbole.quick_start``, which needs ray only to report tuning results.

    Where ray cannot be imported (absent, or an old one without pkg_resources), an empty stand-in
    takes its place during the import and is removed afterwards.
    """
    name = "recbole.quick_start"
    try:
        importlib.import_module("ray.tune")
    except ImportError:
        stand_in = types.ModuleType("ray")
        tune = types.ModuleType("ray.tune")
        stand_in.tune = tune  # type: ignore[attr-defined]
        before = {k: m for k, m in sys.modules.items() if k == "ray" or k.startswith("ray.")}
        sys.modules.update({"ray": stand_in, "ray.tune": tune})
        try:
            return importlib.import_module(name)
        finally:
            for key in ("ray", "ray.tune"):
                sys.modules.pop(key, None)
            sys.modules.update(before)
    return importlib.import_module(name)
