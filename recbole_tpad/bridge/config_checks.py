"""What a configuration is refused for, by key; every message says what would be right."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_tpad.bridge.models import recbole_folder
from recbole_tpad.errors import InputError, nearest

_READ_KEY = re.compile(r"""config\[\s*f?["'](\w+)["']\s*\]""")


def keys_read(found: Any) -> set[str]:
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


def check_keys(external: Mapping[str, Any], known: set[str], files: Mapping[str, Path]) -> None:
    """Refuse keys that nothing reads; ``files`` says in which file a key was last set."""
    for key in external:
        if key not in known:
            where = f" in {files[key]}" if key in files else ""
            raise InputError(
                f"Unknown configuration key '{key}'{where}.{nearest(str(key), sorted(known))} "
                "Keys are RecBole's, the model's, and those of properties/overall.yaml."
            )


# Keys with a number as default for which RecBole also reads a text.
_NUMBER_OR_TEXT = {"reranker_CAN_NUM"}


def check_numbers(external: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
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
    "hidden_size": 1,
    "embedding_size": 1,
    "inner_size": 1,
    "n_heads": 1,
    "num_layers": 1,
}
_DEVICES = re.compile(r"\s*(\d+\s*(,\s*\d+\s*)*)?")
_LOSSES = ("CE", "BPR")  # those RecBole's sequential models can be given batches for
_LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")


def check_ranges(external: Mapping[str, Any], found: Any) -> None:
    """Refuse what torch would refuse later without naming the key, or RecBole would replace."""
    # RecBole's transformers read the last of their layers' outputs.
    layers = (
        {} if _is_own(found) or found.__module__.startswith("recbole_tpad.") else {"n_layers": 1}
    )
    for key, least in {**_AT_LEAST, **layers}.items():
        value = external.get(key)
        if isinstance(value, (int, float)) and not value >= least:
            raise InputError(f"{key}={value!r} must be at least {least}.")
    seed = external.get("seed", 0)
    if isinstance(seed, float):
        raise InputError(f"seed={seed!r} must be a whole number.")
    devices = external.get("gpu_id", "")
    if not _DEVICES.fullmatch(str(devices)):
        raise InputError(f"gpu_id={devices!r} must be numbers with commas between them.")
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


def check_embeddings(external: Mapping[str, Any]) -> None:
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


def check_evaluation(external: Mapping[str, Any], ours: bool) -> None:
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


def check_types(external: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse a value of another type than the default of one of our keys."""
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
