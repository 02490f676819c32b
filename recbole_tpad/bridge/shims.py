"""The few names RecBole 1.2.1 expects and libraries no longer have; set, then taken back."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from typing import Any, NoReturn

import numpy as np

from recbole_tpad.errors import InputError

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


class _RandomState(np.random.RandomState):
    """numpy's old generator with the one method of the new ones that hyperopt calls."""

    def integers(self, low: int, high: int | None = None, size: Any = None) -> Any:
        """Return integers from low (inclusive) to high (exclusive)."""
        return self.randint(low, high, size)


def numpy_for_hyper_tuning() -> types.ModuleType:
    """Return numpy as ``recbole.trainer.hyper_tuning`` needs it.

    Its exhaustive search, which run_hyper.py uses, draws from an old generator; hyperopt has
    asked for a new one's method since 0.2.6.
    """
    random = types.ModuleType("numpy.random")
    random.__dict__.update(vars(np.random), RandomState=_RandomState)
    module = types.ModuleType("numpy")
    module.__dict__.update(vars(np), random=random)
    return module


class _NoRay:
    """Whatever a script takes out of ray: it can be imported, using it is an error."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> _NoRay:
        if name.startswith("__"):
            raise AttributeError(name)
        return _NoRay(f"{self._name}.{name}")

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise InputError(
            f"The script uses {self._name}, and ray cannot be imported here (RecBole 1.2.1 needs "
            "ray<=2.6.3, which needs setuptools<82 and Python<=3.11). Tune with hyperopt instead: "
            "RecBole's run_hyper.py does so unless told --tool=Ray."
        )


@contextmanager
def ray_for_scripts() -> Iterator[None]:
    """Let scripts import ray within this scope where it cannot be; using it is an error.

    RecBole's run_hyper.py imports ray whichever tool it then tunes with.
    """
    if ray_is_importable():
        yield
        return
    before = {k: m for k, m in sys.modules.items() if k == "ray" or k.startswith("ray.")}
    for name in before:
        del sys.modules[name]
    modules = {name: types.ModuleType(name) for name in ("ray", "ray.tune", "ray.tune.schedulers")}
    for name, module in modules.items():
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        nothing = _NoRay(name)
        module.__getattr__ = nothing.__getattr__  # type: ignore[method-assign]
    modules["ray"].tune = modules["ray.tune"]  # type: ignore[attr-defined]
    modules["ray.tune"].schedulers = modules["ray.tune.schedulers"]  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(before)
