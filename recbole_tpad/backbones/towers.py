"""Weights of a tower on disk: which base they belong to is part of the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from recbole_tpad.errors import InputError


def load_tower(file: Path, base: str) -> dict[str, torch.Tensor]:
    """Read the weights of a stage.

    Args:
        file: safetensors whose metadata names the base.
        base: fingerprint of the backbone they are for.

    Raises:
        InputError: a damaged file, or weights that were trained on another base.
    """
    try:
        with safe_open(file, framework="pt") as stream:
            own = (stream.metadata() or {}).get("base")
        weights: dict[str, torch.Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file} cannot be read: {error}. Delete its folder to train it again."
        ) from error
    if own != base:
        raise InputError(
            f"{file} belongs to another base model or prompt (its base is {str(own)[:12]}, this "
            f"one {base[:12]}). An adapter is only good for the base it was trained on; delete its "
            "folder to train it again."
        )
    return weights


@torch.no_grad()
def put(
    parameters: Mapping[str, nn.Parameter | torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> None:
    """Copy weights into parameters of the same names.

    Raises:
        InputError: names or shapes differ, as they do for an adapter of another base.
    """
    for name, tensor in parameters.items():
        given = weights.get(name)
        if given is None or given.shape != tensor.shape:
            has = "no such tensor" if given is None else f"shape {tuple(given.shape)}"
            raise InputError(
                f"The weights do not fit the base model: {name} has shape {tuple(tensor.shape)} "
                f"there and {has} here. An adapter is only good for the base it was trained on."
            )
    for name, tensor in parameters.items():
        tensor.copy_(weights[name])
