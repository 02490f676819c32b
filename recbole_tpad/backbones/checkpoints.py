"""Checkpoints on disk or on the hub: found, hashed, read; safetensors only."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open

from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.errors import InputError
from recbole_tpad.files import sha256_file

# No code and no pickled weights.
_WEIGHTS = "*.safetensors"
_WANTED = (_WEIGHTS, "*.json", "*.model", "*.txt", "*.jinja", "tokenizer*")
_SHA256 = re.compile("[0-9a-f]{64}")


def resolve(name: str, revision: str | None, *, weights: bool = True) -> Path:
    """Return the local folder of a checkpoint, fetching a hub id's safetensors if need be.

    Args:
        name: folder or hub id.
        revision: commit, branch or tag of a hub id.
        weights: fetch the weights too.

    Raises:
        InputError: neither a folder nor a reachable hub id.
    """
    path = Path(name)
    if path.is_dir():
        return path
    wanted = [p for p in _WANTED if weights or p != _WEIGHTS]
    try:
        fetched = snapshot_download(name, revision=revision, allow_patterns=wanted)
    except Exception as error:  # the hub client raises many kinds; each means "not to be had"
        raise InputError(
            f"'{name}' is neither a local folder nor a model that can be fetched from the hub: "
            f"{_reason(error, revision)}"
        ) from error
    return Path(fetched)


def _reason(error: Exception, revision: str | None) -> str:
    if isinstance(error, GatedRepoError):
        return (
            "it is gated. Accept its conditions on the hub, log in with 'hf auth login', or give "
            "a local folder."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision '{revision}'."
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return "there is no such model, or it is private. Check the spelling and access rights."
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return (
            "the hub cannot be reached and the model is not in the local cache. Fetch it once "
            "with a network ('hf download'), or give a local folder."
        )
    return f"{type(error).__name__}. Check spelling, access rights and network."


def revisions(settings: BackboneSettings) -> dict[str, str]:
    """``revision of <hub id>`` → commit of every part that came from the hub."""
    found: dict[str, str] = {}
    for name, revision in settings.parts().values():
        found |= revision_of(name, revision)
    return found


def revision_of(name: str, revision: str | None) -> dict[str, str]:
    """``revision of <hub id>`` → commit, for a checkpoint that came from the hub; else nothing."""
    folder = resolve(name, revision)
    if Path(name).is_dir() or folder.parent.name != "snapshots":
        return {}
    return {f"revision of {name}": folder.name}


def checkpoint_files(
    settings: BackboneSettings, parts: Collection[str] | None = None
) -> dict[str, str]:
    """Name → SHA-256 of every file a backbone is made from: what its vectors depend on.

    Args:
        settings: which backbone.
        parts: of these parts only.

    In the hub's cache a large file is a link to a blob that is named by its hash; it is not read.

    Raises:
        InputError: a part that is neither a folder nor can be fetched.
    """
    found: dict[str, str] = {}
    for part, (name, revision) in settings.parts().items():
        if parts is not None and part not in parts:
            continue
        folder = resolve(name, revision)
        found |= {f"{part}/{file}": digest for file, digest in folder_files(folder).items()}
    return found


def folder_files(folder: Path, *, below: bool = False) -> dict[str, str]:
    """Name → SHA-256 of every file of a checkpoint that its vectors depend on.

    Args:
        folder: of the checkpoint.
        below: also in folders inside it (sentence-transformers keeps a module a folder).
    """
    found = {}
    for file in sorted(folder.rglob("*") if below else folder.iterdir()):
        if file.suffix in (".safetensors", ".json", ".model", ".txt", ".jinja"):
            blob = file.resolve().name
            hashed = file.is_symlink() and _SHA256.fullmatch(blob)
            name = file.relative_to(folder).as_posix()
            found[name] = blob if hashed else sha256_file(file)
    return found


def require_safetensors(folder: Path) -> None:
    """Refuse a checkpoint without safetensors, before anything is built.

    Raises:
        InputError: it holds pickled weights only, or none.
    """
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for s in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(s))
    found = f"only {', '.join(pickled[:3])}" if pickled else "no weights"
    raise InputError(
        f"{folder} has no .safetensors file ({found}). Pickled checkpoints are not read, since "
        "they can run code; convert it with safetensors, or take a revision that has them."
    )


def read_tensors(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Read the tensors whose names start with `prefix` from a folder's safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    found = {}
    for file in files:
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 (not a mapping)
                if name.startswith(prefix):
                    found[name.removeprefix(prefix)] = stream.get_tensor(name)
    return found


def read_tensor_ending(folder: Path, suffix: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Read the one tensor of a folder's safetensors whose name ends so and that has this shape.

    Models and files of different releases put different prefixes before the same names.

    Raises:
        InputError: there is no such tensor.
    """
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 (not a mapping)
                fits = name == suffix or name.endswith(f".{suffix}")
                if fits and tuple(stream.get_slice(name).get_shape()) == shape:
                    tensor: torch.Tensor = stream.get_tensor(name)
                    return tensor
    raise InputError(f"{folder} has no tensor '…{suffix}' of shape {shape} in its safetensors.")
