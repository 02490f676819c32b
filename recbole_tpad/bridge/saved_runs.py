"""Saved runs, read back: ours, RecBole's own with our models, and pickled ones if trusted."""

from __future__ import annotations

import importlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, init_seed
from torch import nn

from recbole_tpad.bridge.checkpoints import check_origin, read_checkpoint, restore
from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.dataset import Loaders, read_data
from recbole_tpad.bridge.models import build_model
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.errors import InputError
from recbole_tpad.own_code import is_own


class _SavedRun(NamedTuple):
    config: Any
    model: Any
    dataset: Any
    loaders: Loaders


class _SavedConfig(Config):  # type: ignore[misc]
    """RecBole's Config from stored values: nothing from sys.argv, nothing evaluated."""

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}

    def _load_variable_config_dict(self, config_dict: dict[str, Any] | None) -> dict[str, Any]:
        return dict(config_dict or {})


def load_run(
    checkpoint: str | Path,
    config_dict: Mapping[str, Any] | None = None,
    *,
    trust_checkpoint: bool = False,
) -> tuple[Any, Any, Loaders]:
    """Rebuild a saved run: its configuration, its model with the best parameters, its data.

    Args:
        checkpoint: a ``.safetensors`` file that `run` wrote, or RecBole's run with one of our
            models; a ``.pth`` file of RecBole's only with `trust_checkpoint`.
        config_dict: keys that differ now, for instance ``data_path``.
        trust_checkpoint: unpickle a ``.pth`` file, which can execute any code in it.

    Raises:
        InputError: not a checkpoint, of another model, other items or another version of RecBole;
            or the item embeddings have changed since.
    """
    found = _load(Path(checkpoint), dict(config_dict or {}), trust_checkpoint)
    return found.config, found.model, found.loaders


def load_data_and_model(
    model_file: str | Path, *, trust_checkpoint: bool = False
) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Read a saved run as RecBole's function of this name does; takes its place after `register`.

    Args:
        model_file, trust_checkpoint: see `load_run`.

    Returns:
        configuration, model, data set, and the loaders of training, validation and test.

    Raises:
        InputError: see `load_run`.
    """
    found = _load(Path(model_file), {}, trust_checkpoint)
    return (found.config, found.model, found.dataset, *found.loaders)


def _load(path: Path, overrides: dict[str, Any], trusted: bool) -> _SavedRun:
    from recbole_tpad.bridge.registration import registered

    if not path.is_file():
        raise InputError(f"There is no checkpoint {path}.")
    if path.suffix == ".json":
        raise InputError(
            f"{path} describes a checkpoint; give {path.with_suffix('.safetensors')} itself."
        )
    if path.suffix != ".safetensors":
        return _load_pickled(path, overrides, trusted)
    tensors, state = read_checkpoint(path)
    try:
        content = {**state["config"], **overrides}
        name = str(state["config"]["model"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path.with_suffix('.json')} is damaged ({error!r}).") from error
    if is_own(name):
        # A checkpoint alone never decides which code is run.
        if "model" not in overrides:
            raise InputError(
                f"{path} holds a model from the file {name}. Name that file (on the command line "
                "--model FILE.py), so that its code may be run."
            )
    else:
        check_origin({"model": name}, str(content["model"]), None, str(path))
    recboles_own = bool(state.get("recboles_own"))
    with registered() if recboles_own else numpy_names():
        if recboles_own:
            config: Any = _SavedConfig(content["model"], content["dataset"], None, content)
            init_seed(config["seed"], config["reproducibility"])
            dataset, loaders = _recboles_data(config)
            model = get_model(config["model"])(config, loaders.train._dataset)
            model.to(config["device"])
        else:
            config = SessionConfig(config_dict=content)
            init_seed(config["seed"], config["reproducibility"])
            dataset, loaders = read_data(config)
            model = build_model(config, loaders.train._dataset)
    check_origin(state, str(config["model"]), dataset, str(path))
    _check_store(path, state, model, config)
    restore(model, tensors, str(path))
    model.eval()
    return _SavedRun(config, model, dataset, loaders)


def _check_store(path: Path, state: Mapping[str, Any], model: nn.Module, config: Any) -> None:
    hashes = {getattr(m, "store_sha256", None) for m in model.modules()} - {None}
    expected = state.get("item_embeddings_sha256")
    if expected is not None and hashes != {expected}:
        raise InputError(
            f"{path} was trained on other vectors than item_embeddings "
            f"'{config['item_embeddings']}' now holds. Restore that store, or train again."
        )


def _recboles_data(config: Any) -> tuple[Any, Loaders]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        try:
            dataset = create_dataset(config)
            return dataset, Loaders(*data_preparation(config, dataset))
        except (ValueError, KeyError, OSError) as error:
            raise InputError(
                f"RecBole cannot read the data set in {config['data_path']}: {error}"
            ) from error


def _load_pickled(path: Path, overrides: dict[str, Any], trusted: bool) -> _SavedRun:
    from recbole_tpad.bridge.registration import registered

    if not trusted:
        raise InputError(
            f"{path} is a pickled checkpoint of RecBole's: reading it executes whatever code is in "
            "it. If you made it or trust who did, pass trust_checkpoint=True (on the command line "
            "--trust-checkpoint). Checkpoints of this package are .safetensors files."
        )
    with registered():
        # RecBole's models must be importable before their configuration is unpickled.
        importlib.import_module("recbole.model.sequential_recommender")
        try:
            content = torch.load(path, map_location="cpu", weights_only=False)
            config, tensors = content["config"], content["state_dict"]
            name = str(config["model"])
        except (
            pickle.UnpicklingError,
            EOFError,
            OSError,
            RuntimeError,
            AttributeError,
            ImportError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:
            raise InputError(
                f"{path} is damaged, or no checkpoint of this version of RecBole ({error})."
            ) from error
        asked = str(overrides.pop("model", name))
        check_origin({"model": name}, asked, None, str(path))
        _override(config, overrides)
        init_seed(config["seed"], config["reproducibility"])
        dataset, loaders = _recboles_data(config)
        model = get_model(name)(config, loaders.train._dataset).to(config["device"])
        restore(model, tensors, str(path))
        model.load_other_parameter(content.get("other_parameter"))
    model.eval()
    return _SavedRun(config, model, dataset, loaders)


def _override(config: Any, overrides: Mapping[str, Any]) -> None:
    """Set keys of a finished configuration, in which data_path already includes the data set."""
    old = Path(config["data_path"])
    folder = Path(overrides.get("data_path", old.parent))
    name = str(overrides.get("dataset", config["dataset"]))
    for key, value in overrides.items():
        config[key] = value
    config["data_path"] = str(folder / name)
    if not torch.cuda.is_available():
        config["device"] = torch.device("cpu")
