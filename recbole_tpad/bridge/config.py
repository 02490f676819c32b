"""RecBole's configuration, checked: no eval, no surprise from sys.argv, unknown keys refused."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from recbole.config import Config

from recbole_tpad.bridge.models import OUR_MODELS, model_class, recbole_folder
from recbole_tpad.bridge.pretraining import check_stage
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.presets import properties_dir, read_preset, read_yaml

_FLOAT = re.compile(r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)([eE][-+]?[0-9]+)?$")
_READ_KEY = re.compile(r"""config\[\s*f?["'](\w+)["']\s*\]""")


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
    YAML, ours (``properties/model``), RecBole's quick start for sequential models, the data set
    folder's own settings, configuration files, `config_dict`.

    Args:
        model: a name of `known_models`, or a model class.
        dataset: name of a folder in ``data_path``: one of ours, or RecBole's atomic files.
        config_file_list: YAML files.
        config_dict: keys and typed values.

    Raises:
        InputError: unknown model, data set or key (with the nearest known name), a value of the
            wrong type, or a combination RecBole refuses.
    """

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
        return found.__name__, found, str(dataset)

    # -- layers ------------------------------------------------------------------------------------

    def _load_internal_config_dict(self, model: str, model_class: Any, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        internal: dict[str, Any] = self.internal_config_dict
        theirs_path = recbole_folder() / "properties" / "model" / f"{model}.yaml"
        theirs = read_yaml(theirs_path) if theirs_path.is_file() else {}
        overall = read_yaml(properties_dir() / "overall.yaml")
        ours = read_preset("model", model) if model in OUR_MODELS else {}
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
        _check_keys(external, {*internal, *_keys_read(model_class)}, self._files)
        recboles = read_yaml(recbole_folder() / "properties" / "overall.yaml")
        _check_types(external, {**overall, **ours})
        _check_numbers(external, {**recboles, **theirs})
        _check_ranges(external, model_class)
        _check_embeddings(external)
        _check_evaluation(external, self.data_set_is_ours)

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
        content = {"model": self.model, "dataset": self.dataset, **kept}
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


def _keys_read(found: Any) -> set[str]:
    """Return the configuration keys that RecBole's data code and a model's module read."""
    keys = {"model", "dataset", "config_files", "config_file_list", "encoding"}
    folder = recbole_folder()
    texts = [p.read_text(encoding="utf-8") for p in sorted(folder.glob("data/**/*.py"))]
    texts += [p.read_text(encoding="utf-8") for p in sorted(folder.glob("trainer/*.py"))]
    modules = {inspect.getmodule(base) for base in inspect.getmro(found)}
    files = {getattr(module, "__file__", None) for module in modules}
    texts += [Path(file).read_text(encoding="utf-8") for file in files if file is not None]
    for text in texts:
        keys.update(_READ_KEY.findall(text))
    from recbole.utils import argument_list

    for group in ("general", "training", "evaluation", "dataset"):
        keys.update(getattr(argument_list, f"{group}_arguments"))
    return keys


def _check_keys(external: Mapping[str, Any], known: set[str], files: Mapping[str, Path]) -> None:
    for key in external:
        if key not in known:
            where = f" in {files[key]}" if key in files else ""
            raise InputError(
                f"Unknown configuration key '{key}'{where}.{nearest(str(key), sorted(known))} "
                "Keys are RecBole's, the model's, and those of properties/overall.yaml."
            )


# Keys with a number as default for which RecBole also reads a text.
_NUMBER_OR_TEXT = {"reranker_CAN_NUM"}


def _check_numbers(external: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse a value that is no number (or no truth value) where RecBole's default is one.

    RecBole's own command line would evaluate it as code, and fail deep inside a model otherwise.
    """
    for key, value in external.items():
        default = defaults.get(key)
        if key in _NUMBER_OR_TEXT:
            continue
        if isinstance(default, bool):
            kind, fits = "bool", isinstance(value, bool)
        elif isinstance(default, (int, float)):
            kind = "number"
            fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        else:
            continue
        if not fits:
            raise InputError(f"{key}={value!r} must be a {kind} (default: {default!r}).")


_AT_LEAST = {
    "train_batch_size": 1,
    "eval_batch_size": 1,
    "epochs": 1,
    "eval_step": 0,
    "stopping_step": 0,
    "rank_memory_mb": 1,
    "MAX_ITEM_LIST_LENGTH": 1,
    "learning_rate": 0,
    "weight_decay": 0,
}
_LOSSES = ("CE", "BPR")  # those RecBole's sequential models can be given batches for
_LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")


def _check_ranges(external: Mapping[str, Any], found: Any) -> None:
    """Refuse what torch would refuse later without naming the key, or RecBole would replace."""
    for key, least in _AT_LEAST.items():
        value = external.get(key)
        if isinstance(value, (int, float)) and not value >= least:
            raise InputError(f"{key}={value!r} must be at least {least}.")
    seed = external.get("seed", 0)
    if isinstance(seed, float):
        raise InputError(f"seed={seed!r} must be a whole number.")
    loss = external.get("loss_type", "CE")
    if loss not in _LOSSES and not _is_own(found):
        raise InputError(f"loss_type={loss!r} is unknown. Known: {', '.join(_LOSSES)}.")
    learner = str(external.get("learner", "adam"))
    if learner.lower() not in _LEARNERS:
        raise InputError(
            f"learner='{learner}' is unknown, and RecBole would train with adam."
            f"{nearest(learner, _LEARNERS)} Known: {', '.join(_LEARNERS)}."
        )


# Keys that say how item embeddings are used.
_OF_EMBEDDINGS = (
    "item_embeddings_modalities",
    "item_embeddings_fusion",
    "item_embeddings_scale",
    "adapter",
    "adapter_hidden_size",
    "adapter_experts",
    "id_dropout",
)


def _check_embeddings(external: Mapping[str, Any]) -> None:
    """Refuse keys of item embeddings where nothing says whether there are any.

    A suite gives such keys to rows without embeddings too, and says so: ``item_embeddings: ~``.
    """
    given = [key for key in _OF_EMBEDDINGS if external.get(key) is not None]
    if given and "item_embeddings" not in external:
        raise InputError(
            f"{', '.join(given)} would be ignored without item_embeddings. Name a store with "
            "item_embeddings, or set item_embeddings: ~ to say that there is none."
        )


def _is_own(found: Any) -> bool:
    """Whether a model is the user's own class."""
    return not found.__module__.startswith(("recbole.model.", "recbole_tpad."))


_SUB_KEYS = {
    "eval_args": ("split", "order", "group_by", "mode"),
    "train_neg_sample_args": ("distribution", "sample_num", "alpha", "dynamic", "candidate_num"),
}


def _check_evaluation(external: Mapping[str, Any], ours: bool) -> None:
    """Refuse what RecBole would silently ignore in ``eval_args`` and ``train_neg_sample_args``."""
    for key, known in _SUB_KEYS.items():
        given = external.get(key)
        if isinstance(given, Mapping):
            for name in given:
                if name not in known:
                    raise InputError(
                        f"Unknown key '{name}' in {key}.{nearest(str(name), known)} "
                        f"Known: {', '.join(known)}."
                    )
    given = external.get("eval_args")
    if not isinstance(given, Mapping):
        return
    mode = given.get("mode", "full")
    if set(mode.values() if isinstance(mode, Mapping) else [mode]) - {"full"}:
        raise InputError(
            f"eval_args: mode {mode!r} samples candidates; results here are full rankings. "
            "Leave mode out."
        )
    other = [name for name in ("split", "order", "group_by") if name in given]
    if ours and other:
        raise InputError(
            f"eval_args: {', '.join(other)} would be ignored: the data set folder carries its own "
            "split, on which item embeddings were made. Leave them out, or split the data "
            "otherwise with 'recbole-tpad convert … --split RULE --overwrite' and embed again."
        )


def _check_types(external: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    for key, value in external.items():
        default = defaults.get(key)
        if default is None or key == "train_neg_sample_args":
            continue
        fits = {
            bool: isinstance(value, bool),
            int: isinstance(value, int) and not isinstance(value, bool),
            float: isinstance(value, (int, float)) and not isinstance(value, bool),
            str: isinstance(value, (str, Path)),
            list: isinstance(value, (list, tuple, int, str)),
        }
        if not fits.get(type(default), True):
            raise InputError(
                f"{key}={value!r} must be of type {type(default).__name__} (default: {default!r})."
            )
