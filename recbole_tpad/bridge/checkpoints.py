"""Checkpoints without pickle: tensors in safetensors, everything else in JSON beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recbole_tpad.errors import InputError
from recbole_tpad.files import atomic_path, sha256_json, write_json

FORMAT = 1


def items_sha256(dataset: Any) -> str:
    """Return the hash of a data set's item ids in RecBole's order: what a row of a table means."""
    return sha256_json([str(token) for token in dataset.field2id_token[dataset.iid_field]])


def part_sha256(dataset: Any) -> str:
    """Return the hash of the rows of a built data set (its ``inter_feat`` holds tensors)."""
    found = hashlib.sha256()
    for name in sorted(dataset.inter_feat.interaction):
        found.update(name.encode())
        found.update(dataset.inter_feat[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def describe_run(config: Any, dataset: Any) -> dict[str, Any]:
    """Return what a checkpoint says about the run it comes from, ready for JSON.

    ``config`` is what the user configured. ``recboles_own`` marks a run of RecBole's own functions
    (after `register`), whose item numbering is RecBole's.
    """
    ours = hasattr(config, "for_json")
    if ours:
        given = config.for_json()
    else:
        external = dict(config.external_config_dict)
        external.update(model=config.model, dataset=config.dataset)
        given = json.loads(json.dumps(external, default=str))
    return {
        "model": str(config["model"]),
        "items_sha256": items_sha256(dataset),
        "recbole": metadata.version("recbole"),
        "recboles_own": not ours,
        "config": given,
    }


def save_checkpoint(path: Path, model: nn.Module, state: Mapping[str, Any]) -> None:
    """Write ``<path>`` (.safetensors) and ``<path>`` with suffix .json, each atomically.

    Frozen item features are not in a model's state; the JSON names their store and its hash.
    """
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
    write_json(path.with_suffix(".json"), {"format": FORMAT, **state})


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint's tensors and its JSON state.

    Raises:
        InputError: absent, damaged, of another format or another version of RecBole.
    """
    path = Path(path)
    try:
        state = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError(f"{path.with_suffix('.json').name} holds no object")
        if state.get("format") != FORMAT:
            raise InputError(
                f"{path.with_suffix('.json')} has format {state.get('format')!r}; this version "
                f"reads format {FORMAT}. Train again."
            )
        made_by, installed = state.get("recbole"), metadata.version("recbole")
        if made_by is not None and made_by != installed:
            raise InputError(
                f"{path} was written with RecBole {made_by}, here is {installed}: the data and the "
                f"model may be built otherwise. Install recbole=={made_by}, or train again."
            )
        return load_file(path), state
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is not a checkpoint of this package or is damaged ({error}). A checkpoint is "
            "a .safetensors file with a .json of the same name."
        ) from error


def check_origin(state: Mapping[str, Any], model: str, dataset: Any, source: str) -> None:
    """Refuse a checkpoint of another model or of other items.

    Args:
        state: the checkpoint's JSON.
        model: name of the model it is to be put into.
        dataset: RecBole's data set that the model was built on, or None to check the model only.
        source: the checkpoint's name in messages.

    Raises:
        InputError: so it is.
    """
    if state.get("model", model) != model:
        raise InputError(f"{source} holds the model {state['model']}, not {model}.")
    if dataset is None:
        return
    expected = state.get("items_sha256")
    if expected is not None and expected != items_sha256(dataset):
        raise InputError(
            f"{source} was trained on other items than the data set '{dataset.dataset_name}' now "
            "holds, so its rows would belong to other items. Restore that data set (data_path, "
            "dataset), or train again."
        )


def restore(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put a checkpoint's tensors into a model.

    Raises:
        InputError: the checkpoint belongs to a model of another shape.
    """
    try:
        with torch.no_grad():
            model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise InputError(f"{source} does not fit this model: {error}") from error
