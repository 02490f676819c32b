"""The few names RecBole 1.2.1 expects and libraries no longer have; set, then taken back."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

# Removed in numpy 1.24 and 2.0; RecBole assigns or reads them.
NUMPY_NAMES: dict[str, object] = {
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
    added = [name for name in NUMPY_NAMES if name not in vars(np)]
    for name in added:
        setattr(np, name, NUMPY_NAMES[name])
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


def ray_is_importable() -> bool:
    """Whether ``ray.tune`` can be imported here; ray 2.6 needs an old setuptools."""
    try:
        importlib.import_module("ray.tune")
    except ImportError:
        return False
    return True


def _report_to_nobody(*_: object, **__: object) -> None:
    """Stand for ``ray.tune.report``, outside of any ray session."""


def import_quick_start() -> types.ModuleType:
    """Import ``recbole.quick_start``, which needs ray only to report tuning results.

    Where ray cannot be imported (absent, or an old one without pkg_resources), a stand-in whose
    ``report`` does nothing takes its place during the import and is removed afterwards: RecBole's
    ``HyperTuning`` reads what the objective returns, not what it reports.
    """
    name = "recbole.quick_start"
    if name in sys.modules or ray_is_importable():
        return importlib.import_module(name)
    stand_in = types.ModuleType("ray")
    tune = types.ModuleType("ray.tune")
    tune.report = _report_to_nobody  # type: ignore[attr-defined]
    stand_in.tune = tune  # type: ignore[attr-defined]
    before = {k: m for k, m in sys.modules.items() if k == "ray" or k.startswith("ray.")}
    sys.modules.update({"ray": stand_in, "ray.tune": tune})
    try:
        return importlib.import_module(name)
    finally:
        for key in ("ray", "ray.tune"):
            sys.modules.pop(key, None)
        sys.modules.update(before)
