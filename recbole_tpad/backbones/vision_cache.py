"""Vision features on disk: one frozen encoder's output per image, shared by whoever asks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from recbole_tpad.files import atomic_path

Features = Mapping[str, torch.Tensor]


class VisionCache:
    """SHA-256 of an image's bytes → named tensors of its features.

    The folder's name stands for the encoder: its files, preprocessing and precision. Features are
    added in parts, each a safetensors file written atomically, so a killed run keeps what it had.
    Which images were encoded side by side may differ between runs; that moves features by less
    than the rounding to half precision, in which they are kept.

    Args:
        folder: where the parts lie; made when the first is written. None keeps all in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._memory: dict[str, Features] = {}
        self._names: dict[str, list[str]] = {}
        self._place: dict[str, Any] = {}
        if folder is not None and folder.is_dir():
            for part in sorted(folder.glob("*.safetensors")):
                self._open(part)

    def __contains__(self, image: object) -> bool:
        return image in self._memory or image in self._names

    def __len__(self) -> int:
        return len(self._memory.keys() | self._names.keys())

    def get(self, image: str) -> dict[str, torch.Tensor]:
        """Features of an image; KeyError where there are none."""
        if image in self._memory:
            return dict(self._memory[image])
        part = self._place[image]
        return {name: part.get_tensor(f"{image}/{name}") for name in self._names[image]}

    def add(self, features: Mapping[str, Features]) -> None:
        """Keep the features of some images; floating point in half precision."""
        kept = {
            image: {n: _compact(t) for n, t in tensors.items()}
            for image, tensors in features.items()
        }
        if self._folder is None:
            self._memory.update(kept)
            return
        tensors = {f"{image}/{n}": t for image, named in kept.items() for n, t in named.items()}
        name = hashlib.sha256("\n".join(sorted(tensors)).encode()).hexdigest()[:32]
        file = self._folder / f"{name}.safetensors"
        with atomic_path(file) as temporary:
            save_file(tensors, temporary)
        self._open(file)

    def _open(self, file: Path) -> None:
        part: Any = safe_open(file, framework="pt")
        names: dict[str, list[str]] = {}
        for key in part.keys():  # noqa: SIM118 (not a mapping)
            image, _, name = key.partition("/")
            names.setdefault(image, []).append(name)
        self._names |= names
        self._place |= dict.fromkeys(names, part)


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        limit = torch.finfo(torch.float16).max
        tensor = tensor.clamp(-limit, limit).half()
    return tensor.clone().contiguous()  # a slice must not keep its whole batch alive
