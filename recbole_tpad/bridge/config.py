"""RecBole's configuration, checked: no eval, no surprise from sys.argv, unknown keys refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from recbole.config import Config

from recbole_tpad.bridge.config_checks import (
    check_embeddings,
    check_evaluation,
    check_keys,
    check_numbers,
    check_ranges,
    check_types,
    keys_read,
)
from recbole_tpad.bridge.models import OUR_MODELS, model_class, recbole_folder
from recbole_tpad.bridge.pretraining import check_stage
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.own_code import is_own, own_file
from recbole_tpad.presets import properties_dir, read_preset, read_yaml

_FLOAT = re.compile(r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)([eE][-+]?[0-9]+)?$")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML in which ``1e-3`` is a number, as RecBole's users write it."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse_value(text: str) -> Any:
    """Return the value a command-line text means, by YAML's rules; nothing is evaluated.

    Raises:
        InputError: not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise InputError(f"Cannot read the value {text!r}: {error}") from error


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """Return the keys and values of ``--key=value`` arguments.

    Raises:
        InputError: an argument of another form, or a key given twice with different values.
    """
    found: dict[str, Any] = {}
    for argument in arguments:
        key, separator, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not separator or not key:
            raise InputError(f"'{argument}' is not of the form --key=value.")
        value = parse_value(text)
        if key in found and found[key] != value:
            raise InputError(f"--{key} is given twice: {found[key]!r} and {value!r}.")
        found[key] = value
    return found


class SessionConfig(Config):  # type: ignore[misc]
    """RecBole's Config for sequential models on a data set folder.

    Layers, low to high: RecBole's overall, ours (``properties/overall.yaml``), RecBole's model
    YAML, ours (``properties/model``, or the one beside a user's file), RecBole's quick start for
    sequential models, the data set folder's own settings, configuration files, `config_dict`.

    Args:
        model: a name of `known_models`, a Python file of the user's, or a model class.
        dataset: name of a folder in ``data_path``: one of ours, or RecBole's atomic files.
        config_file_list: YAML files.
        config_dict: keys and typed values.

    Raises:
        InputError: unknown model, data set or key (with the nearest known name), a value of the
            wrong type, or a combination RecBole refuses.
    """

    _own_file: Path | None = None

    def __init__(
        self,
        model: Any = None,
        dataset: str | None = None,
        config_file_list: Sequence[str | Path] | None = None,
        config_dict: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            super().__init__(model, dataset, config_file_list, dict(config_dict or {}))
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"The configuration is refused by RecBole: {error}") from error

    # -- reading -----------------------------------------------------------------------------------

    def compatibility_settings(self) -> None:
        """Leave numpy alone: the runner sets what is missing and takes it back."""

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return _Loader

    def _load_config_files(self, file_list: Sequence[str | Path] | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._files: dict[str, Path] = {}  # where a key was last set
        for file in file_list or []:
            path = Path(file)
            read_yaml(path)  # its errors name the file and the line
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}
            found.update(content)
            self._files.update(dict.fromkeys(content, path))
        return found

    def _load_variable_config_dict(self, config_dict: dict[str, Any] | None) -> dict[str, Any]:
        return dict(config_dict or {})

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}

    def _get_model_and_dataset(self, model: Any, dataset: str | None) -> tuple[str, Any, str]:
        model = self.external_config_dict.get("model") if model is None else model
        dataset = self.external_config_dict.get("dataset") if dataset is None else dataset
        for key, value in (("model", model), ("dataset", dataset)):
            if value is None:
                raise InputError(f"No {key} given. Set '{key}' in the configuration.")
        found = model_class(model) if isinstance(model, str) else model
        if isinstance(model, str) and is_own(model):
            self._own_file = own_file(model).resolve()
        return found.__name__, found, str(dataset)

    # -- layers ------------------------------------------------------------------------------------

    def _load_internal_config_dict(self, model: str, model_class: Any, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        internal: dict[str, Any] = self.internal_config_dict
        theirs_path = recbole_folder() / "properties" / "model" / f"{model}.yaml"
        theirs = read_yaml(theirs_path) if theirs_path.is_file() else {}
        overall = read_yaml(properties_dir() / "overall.yaml")
        ours = self._preset(model)
        internal.update({k: v for k, v in overall.items() if k not in theirs})
        internal.update(ours)
        external: dict[str, Any] = self.external_config_dict
        folder = Path(str(external.get("data_path", internal["data_path"]))) / dataset
        internal.update(folder_settings(folder))
        # RecBole's quick start for some models (DIN, GRU4RecKG) samples candidates or splits at
        # random.
        sequential = recbole_folder() / "properties" / "quick_start_config" / "sequential.yaml"
        internal["eval_args"] = {**internal["eval_args"], **read_yaml(sequential)["eval_args"]}
        if "train_stage" in theirs:
            check_stage(external)
        if (folder / "split.json").is_file():
            for key in ("selected_features", "item_attribute"):
                if key in theirs:
                    internal.update(_feature_settings(folder, external, key))
        loss = external.get("loss_type", internal.get("loss_type"))
        if loss == "CE" and "train_neg_sample_args" not in external:
            internal["train_neg_sample_args"] = None
        self.data_set_is_ours = (folder / "split.json").is_file()
        check_keys(external, {*internal, *keys_read(model_class)}, self._files)
        recboles = read_yaml(recbole_folder() / "properties" / "overall.yaml")
        check_types(external, {**overall, **ours})
        check_numbers(external, {**recboles, **theirs})
        check_ranges(external, model_class)
        check_embeddings(external)
        check_evaluation(external, self.data_set_is_ours)

    def _preset(self, model: str) -> dict[str, Any]:
        """The model's own YAML: ours, or the one beside a user's file."""
        if self._own_file is not None:
            preset = self._own_file.with_suffix(".yaml")
            return read_yaml(preset) if preset.is_file() else {}
        return read_preset("model", model) if model in OUR_MODELS else {}

    def _init_device(self) -> None:
        # RecBole's own ignores use_gpu and sets CUDA_VISIBLE_DEVICES for the whole process.
        final: dict[str, Any] = self.final_config_dict
        first = str(final["gpu_id"]).split(",")[0].strip()
        use = bool(final["use_gpu"]) and first != "" and torch.cuda.is_available()
        final["device"] = torch.device(f"cuda:{first}" if use else "cpu")
        final["single_spec"], final["local_rank"] = True, 0

    def for_json(self) -> dict[str, Any]:
        """Return what the user configured, ready for JSON, enough to build this object again."""
        kept = {k: v for k, v in self.external_config_dict.items() if k not in ("model", "dataset")}
        model = self.model if self._own_file is None else f"{self._own_file}:{self.model}"
        content = {"model": model, "dataset": self.dataset, **kept}
        found: dict[str, Any] = json.loads(json.dumps(content, default=str))
        return found


def folder_settings(folder: Path) -> dict[str, Any]:
    """Return RecBole's keys for a data set folder, read from its ``split.json``."""
    name = folder.name
    split_file = folder / "split.json"
    if not split_file.is_file():
        if (folder / f"{name}.inter").is_file():
            return {}
        known = sorted(p.parent.name for p in folder.parent.glob("*/*.inter"))
        listed = f" There: {', '.join(dict.fromkeys(known))}." if known else " It holds none."
        raise InputError(
            f"No data set '{name}' in '{folder.parent}'.{nearest(name, known)}{listed} "
            "Make one with 'recbole-tpad convert', or set data_path."
        )
    try:
        split = json.loads(split_file.read_text(encoding="utf-8"))
        max_len = int(split["max_len"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{split_file} is damaged ({error!r}). Convert the data again.") from error
    return {
        "USER_ID_FIELD": "session_id",
        "ITEM_ID_FIELD": "item_id",
        "load_col": {"inter": ["session_id", "item_id_list", "item_id"]},
        "alias_of_item_id": ["item_id_list"],
        "benchmark_filename": ["train", "valid", "test"],
        "MAX_ITEM_LIST_LENGTH": max_len,
    }


def _feature_settings(folder: Path, external: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the keys that load item features, for models that read them.

    Args:
        folder: of the data set.
        external: what the user configured.
        key: ``selected_features`` (a list), or ``item_attribute`` (one name).

    Raises:
        InputError: the data set folder has no ``.item`` file, or not the columns asked for.
    """
    path = folder / f"{folder.name}.item"
    try:
        with path.open(encoding="utf-8") as stream:
            header = stream.readline().rstrip("\n").split("\t")
    except OSError as error:
        raise InputError(
            f"This model needs item features, and {path} cannot be read: {error.strerror}."
        ) from error
    columns = [column.partition(":")[0] for column in header]
    given = external.get(key, "category")
    asked = [given] if isinstance(given, str) else list(given)
    for name in asked:
        if name not in columns[1:]:
            raise InputError(
                f"{key}: {path} has no column '{name}'."
                f"{nearest(str(name), columns[1:])} It has: {', '.join(columns[1:])}."
            )
    sessions = ["session_id", "item_id_list", "item_id"]
    return {
        key: asked[0] if key == "item_attribute" else asked,
        "load_col": {"inter": sessions, "item": ["item_id", *asked]},
    }
