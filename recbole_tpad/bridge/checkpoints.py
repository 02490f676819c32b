"""Checkpoints without pickle: tensors in safetensors, everything else in JSON beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recbole_tpad.errors import InputError
from recbole_tpad.files import atomic_path, write_json

FORMAT = 1


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
        InputError: absent, damaged or of another format.
    """
    path = Path(path)
    try:
        state = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if state.get("format") != FORMAT:
            raise InputError(
                f"{path.with_suffix('.json')} has format {state.get('format')!r}; this version "
                f"reads format {FORMAT}. Train again."
            )
        return load_file(path), state
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a checkpoint of this package or is damaged ({error}). A checkpoint is "
            "a .safetensors file with a .json of the same name."
        ) from error


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
