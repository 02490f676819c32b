"""Checkpoints on disk or on the hub: found, hashed, read; safetensors only."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open

from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.errors import InputError
from recbole_tpad.files import sha256_file

_SHA256 = re.compile("[0-9a-f]{64}")


def resolve(name: str, revision: str | None) -> Path:
    """Return the local folder of a checkpoint, fetching a hub id's safetensors if need be.

    Raises:
        InputError: neither a folder nor a reachable hub id.
    """
    path = Path(name)
    if path.is_dir():
        return path
    try:
        fetched = snapshot_download(
            name,
            revision=revision,
            allow_patterns=["*.json", "*.safetensors", "*.model", "tokenizer*"],
        )
    except Exception as error:  # the hub client raises many kinds; each means "not to be had"
        raise InputError(
            f"'{name}' is neither a local folder nor a model that can be fetched from the hub "
            f"({type(error).__name__}). Check the spelling, access rights and network, or give a "
            "local folder."
        ) from error
    return Path(fetched)


def checkpoint_files(settings: BackboneSettings) -> dict[str, str]:
    """Name → SHA-256 of every file a backbone is made from: what its vectors depend on.

    In the hub's cache a large file is a link to a blob that is named by its hash; it is not read.

    Raises:
        InputError: a part that is neither a folder nor can be fetched.
    """
    found = {}
    for part, (name, revision) in settings.parts().items():
        folder = resolve(name, revision)
        for file in sorted(folder.iterdir()):
            if file.suffix in (".safetensors", ".json", ".model"):
                blob = file.resolve().name
                hashed = file.is_symlink() and _SHA256.fullmatch(blob)
                found[f"{part}/{file.name}"] = blob if hashed else sha256_file(file)
    return found


def read_tensors(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Read the tensors whose names start with `prefix` from a folder's safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(
            f"{folder} has no .safetensors file. Pickled checkpoints are not read; convert it."
        )
    found = {}
    for file in files:
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 (not a mapping)
                if name.startswith(prefix):
                    found[name.removeprefix(prefix)] = stream.get_tensor(name)
    return found
