"""Makes our models known to RecBole itself, for scripts that call RecBole's own functions."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_tpad.bridge import shims
from recbole_tpad.bridge.models import OUR_MODELS
from recbole_tpad.errors import InputError
from recbole_tpad.presets import properties_dir, read_preset, read_yaml
from recbole_tpad.recommenders.row_smoothing import AUTO
from recbole_tpad.recommenders.score_adjustments import ADJUSTMENT_KEYS

_PACKAGE = "recbole.model.sequential_recommender"
_ABSENT = object()
# What RecBole's Config assigns to numpy, beside the names it expects there.
_NUMPY_NAMES = ("bool", "int", "float", "complex", "object", "str", "long", "unicode")


class _Changes:
    """Changes to objects and mappings, undone in reverse order."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any]] = []

    def keep(self, target: Any, name: str) -> None:
        """Remember an attribute, or a mapping's entry, as it is now."""
        if isinstance(target, MutableMapping):
            self._undo.append((target, name, target.get(name, _ABSENT)))
        else:
            self._undo.append((target, name, vars(target).get(name, _ABSENT)))

    def set(self, target: Any, name: str, value: Any) -> None:
        """Set an attribute, or a mapping's entry."""
        self.keep(target, name)
        if isinstance(target, MutableMapping):
            target[name] = value
        else:
            setattr(target, name, value)

    def undo(self) -> None:
        """Put everything back as it was."""
        while self._undo:
            target, name, value = self._undo.pop()
            if isinstance(target, MutableMapping):
                if value is _ABSENT:
                    target.pop(name, None)
                else:
                    target[name] = value
            elif value is not _ABSENT:
                setattr(target, name, value)
            elif name in vars(target):
                delattr(target, name)


class _State:
    """What `register` changed, for `unregister`; None while not registered."""

    changes: _Changes | None = None


def register() -> None:
    """Register DIMO and our other models with RecBole; calling it again changes nothing.

    Afterwards RecBole's own ``run_recbole(model="DIMO", …)``, ``Config(model="DIMO")``,
    ``load_data_and_model``, ``objective_function`` (for ``HyperTuning``) and ``case_study`` find
    them: as modules, with their YAML and the settings of a data set folder (below the user's
    configuration), and with a trainer whose checkpoints load on today's torch. numpy gets back the
    names RecBole needs, and ``recbole.quick_start`` is importable where ray is not. RecBole's own
    trainers can read the file of the best epoch that they have just written, so that its models
    run too.

    ``item_embeddings`` for a model that would ignore them is an error there: only
    ``recbole_tpad.run_recbole`` can attach them to a built-in model.
    """
    if _State.changes is not None:
        return
    changes = _Changes()
    _State.changes = changes
    try:
        _apply(changes)
    except BaseException:
        unregister()
        raise


def _apply(changes: _Changes) -> None:
    for name in {*shims.NUMPY_NAMES, *_NUMPY_NAMES}:
        changes.keep(np, name)
    shims.set_numpy_names()
    # RecBole's SINE turns autograd's anomaly mode on for the whole process when it is imported.
    anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    try:
        importlib.import_module(_PACKAGE)
    finally:
        torch.autograd.set_detect_anomaly(*anomaly)
    trainers = importlib.import_module("recbole.trainer")
    config_class = importlib.import_module("recbole.config").Config
    from recbole_tpad.bridge.stock_trainer import reading_its_own_file
    from recbole_tpad.bridge.trainer import SessionTrainer

    for name, module in OUR_MODELS.items():
        changes.set(sys.modules, f"{_PACKAGE}.{name.lower()}", importlib.import_module(module))
        changes.set(trainers, f"{name}Trainer", SessionTrainer)
    changes.set(
        config_class,
        "_load_internal_config_dict",
        _with_ours(config_class._load_internal_config_dict),
    )
    for name, changed in reading_its_own_file(trainers.Trainer).items():
        changes.set(trainers.Trainer, name, changed)
    tuning = importlib.import_module("recbole.trainer.hyper_tuning")
    changes.set(tuning, "np", shims.numpy_for_hyper_tuning())
    _register_quick_start(changes)


def _register_quick_start(changes: _Changes) -> None:
    from recbole_tpad.bridge.saved_runs import load_data_and_model

    package, module = "recbole.quick_start", "recbole.quick_start.quick_start"
    if not shims.ray_is_importable():
        # Imported with a stand-in for ray: taken back as a whole, so that nothing keeps it.
        for name in (package, module):
            changes.keep(sys.modules, name)
        changes.keep(importlib.import_module("recbole"), "quick_start")
    quick_start = shims.import_quick_start()
    inner = importlib.import_module(module)
    for target in (quick_start, inner):
        changes.set(target, "load_data_and_model", load_data_and_model)


def _with_ours(original: Any) -> Any:
    """Return RecBole's reader of default settings, with ours for our models."""

    def load(self: Any, model: str, model_class: Any, dataset: str) -> None:
        original(self, model, model_class, dataset)
        if hasattr(self, "for_json"):
            return  # ours; it reads its own layers
        internal, external = self.internal_config_dict, self.external_config_dict
        ignored = [k for k, v in ADJUSTMENT_KEYS.items() if external.get(k, v) not in (v, None)]
        if external.get("row_smoothing") == AUTO:
            ignored.append(f"row_smoothing='{AUTO}'")
        if ignored:
            raise InputError(
                f"RecBole's own run_recbole would ignore {' and '.join(ignored)}. "
                "Call recbole_tpad.run_recbole, which takes the same arguments."
            )
        ours = model in OUR_MODELS
        takes = getattr(model_class, "takes_item_embeddings", False)
        by_adjustment = model == "CoOccurrence"  # it leaves them to its kernel
        if external.get("item_embeddings") is not None and (not takes or by_adjustment):
            raise InputError(
                f"RecBole's own run_recbole would ignore item_embeddings for {model}. "
                + (
                    f"{model} does not use any; leave the key out."
                    if ours and not takes
                    else "Call recbole_tpad.run_recbole, which takes the same arguments."
                )
            )
        if ours:
            from recbole_tpad.bridge.config import folder_settings

            overall = read_yaml(properties_dir() / "overall.yaml")
            for key, value in overall.items():
                internal.setdefault(key, value)
            internal.update(read_preset("model", model))
            folder = Path(str(external.get("data_path", internal["data_path"]))) / dataset
            if (folder / "split.json").is_file():
                internal.update(folder_settings(folder))

    return load


def unregister() -> None:
    """Undo `register`; calling it without one changes nothing."""
    if _State.changes is not None:
        _State.changes.undo()
        _State.changes = None


@contextmanager
def registered() -> Iterator[None]:
    """Have our models registered within this scope."""
    before = _State.changes is not None
    register()
    try:
        yield
    finally:
        if not before:
            unregister()


def run_script(script: str | Path, arguments: Sequence[str] = ()) -> None:
    """Run a Python script, such as RecBole's run_recbole.py, with our models registered.

    The script sees itself as ``__main__``, its arguments in ``sys.argv`` and its own folder first
    on the path, as if it were started by python. What it raises is passed on; afterwards nothing
    stays registered.

    Raises:
        InputError: there is no such file.
    """
    path = Path(script)
    if not path.is_file():
        raise InputError(f"There is no script {path} to execute.")
    argv, search = sys.argv, list(sys.path)
    with registered(), shims.ray_for_scripts():
        try:
            sys.argv = [str(path), *arguments]
            sys.path.insert(0, str(path.resolve().parent))
            runpy.run_path(str(path), run_name="__main__")
        finally:
            sys.argv, sys.path[:] = argv, search
