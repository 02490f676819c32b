"""The state of a training run between two batches: written atomically, restored to the last bit."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from recbole_tpad.bridge.checkpoints import items_sha256, part_sha256
from recbole_tpad.errors import InputError
from recbole_tpad.files import atomic_path, sha256_file, sha256_json

FORMAT = 1
# What does not change a result, so a run may go on with other values of it.
_FREE = {
    "checkpoint_dir",
    "checkpoint_seconds",
    "config_files",
    "data_path",
    "log_wandb",
    "resume",
    "show_progress",
    "state",
    "verbose",
}


@dataclass(slots=True)
class Progress:
    """Where a training run stands.

    Attributes:
        epoch, batch: the next batch to train on.
        loss: sum of the losses of the epoch's batches so far.
        without_gain: validations since the best one.
        finished: nothing is left to train.
        seconds: wall-clock time spent so far.
        curve, best_epoch, best_valid_score, best_valid_result: see `SessionTrainer`.
        saved_model_file, saved: the best epoch's file and whether it has been written.
    """

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    without_gain: int = 0
    finished: bool = False
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = -1
    best_valid_score: float = 0.0
    best_valid_result: dict[str, float] | None = None
    saved_model_file: str = ""
    saved: bool = False


def state_path(config: Any, model: nn.Module, train: Any, valid: Any) -> Path:
    """Return the file that a run's state is kept in.

    Its name holds a fingerprint of what determines the result: configuration, training and
    validation rows, item ids, item embeddings, the code of the model and of the bridge, and the
    versions of torch, numpy and RecBole. A changed run therefore never meets a foreign state.
    """
    final = {k: v for k, v in config.final_config_dict.items() if k not in _FREE}
    stores = sorted(str(m.store_sha256) for m in model.modules() if hasattr(m, "store_sha256"))
    here = Path(__file__).parent
    sources = {*here.glob("*.py"), *(here.parent / "recommenders").glob("*.py")}
    modules = (inspect.getmodule(base) for base in inspect.getmro(type(model)))
    files = (getattr(module, "__file__", None) for module in modules)  # None for built-in ones
    sources |= {Path(file) for file in files if file}
    key = sha256_json(
        {
            "config": json.loads(json.dumps(final, sort_keys=True, default=str)),
            "items": items_sha256(train._dataset),
            "parts": [part_sha256(p._dataset) for p in (train, valid) if p],
            "stores": stores,
            "code": sorted(f"{p.name} {sha256_file(p)}" for p in sources),
            "versions": {n: metadata.version(n) for n in ("torch", "numpy", "recbole")},
        }
    )
    name = f"{config['model']}-{Path(config['data_path']).name}-seed{config['seed']}-{key[:16]}"
    return Path(config["checkpoint_dir"]) / f"{name}.resume.safetensors"


def save_state(
    path: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    best: Mapping[str, Tensor] | None,
    epoch_generator: Tensor,
) -> None:
    """Write everything the rest of the training depends on, in one atomic step.

    Tensors are safetensors, the rest is JSON in the same file's header, so that a kill can never
    leave one without the other.

    Args:
        path: from `state_path`.
        progress: counters and history.
        model: its parameters and persistent buffers are kept.
        optimizer: its state, tensors and numbers.
        scaler: of mixed precision.
        best: parameters of the best epoch, None before there is one.
        epoch_generator: state of the loader's generator when the epoch began, (bytes,) uint8.
    """
    tensors: dict[str, Tensor] = {"generator": epoch_generator}
    numbers: dict[str, dict[str, Any]] = {}
    optimizer_state = optimizer.state_dict()
    for index, entries in optimizer_state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    for name, value in model.state_dict().items():
        tensors[f"model/{name}"] = value
    for name, value in (best or {}).items():
        tensors[f"best/{name}"] = value
    random_tensors, random_numbers = _random_states()
    tensors.update(random_tensors)
    content = {
        "format": FORMAT,
        "progress": asdict(progress),
        "optimizer": {"param_groups": optimizer_state["param_groups"], "state": numbers},
        "scaler": scaler.state_dict(),
        "random": random_numbers,
        "has_best": best is not None,
    }
    # Clones: safetensors refuses tensors that share memory, as tied parameters do.
    kept = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(kept, temporary, metadata={"state": json.dumps(content)})


@dataclass(slots=True)
class SavedState:
    """What `read_state` found; the RNGs are put back by `restore_random` at the right moment."""

    progress: Progress
    best: dict[str, Tensor] | None
    generator: Tensor
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    def restore_random(self) -> None:
        """Set the random states of torch, numpy and Python."""
        _set_random_states(self.tensors, self.numbers)


def read_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any
) -> SavedState:
    """Read a state and put it into model, optimiser and scaler.

    Raises:
        InputError: damaged, of another format, or of another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if content["format"] != FORMAT:
            raise InputError(
                f"{path} has format {content['format']!r}, this version reads {FORMAT}. Delete it "
                "to train from the start."
            )
        progress = Progress(**content["progress"])
        model.load_state_dict(_part(tensors, "model/"))
        state: dict[int, dict[str, Any]] = {}
        for name, value in _part(tensors, "optimizer/").items():
            index, key = name.split("/", 1)
            state.setdefault(int(index), {})[key] = value
        for index, entries in content["optimizer"]["state"].items():
            state.setdefault(int(index), {}).update(entries)
        groups = content["optimizer"]["param_groups"]
        for group in groups:
            # JSON has no tuples: Adam's betas come back as a list.
            for key, value in group.items():
                group[key] = tuple(value) if isinstance(value, list) and key != "params" else value
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        scaler.load_state_dict(content["scaler"])
        best = _part(tensors, "best/") if content["has_best"] else None
        return SavedState(progress, best, tensors["generator"], tensors, content["random"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}, the state of an interrupted run, is damaged or belongs to another model "
            f"({error}). Delete it to train from the start."
        ) from error


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _random_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {"random/torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    tensors["random/numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    version, internal, next_gauss = random.getstate()
    numbers = {
        "numpy": [kind, position, has_gauss, gauss],
        "python": [version, list(internal), next_gauss],
    }
    return tensors, numbers


def _set_random_states(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    torch.set_rng_state(tensors["random/torch"])
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])
    kind, position, has_gauss, gauss = numbers["numpy"]
    keys = tensors["random/numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, int(position), int(has_gauss), float(gauss)))
    version, internal, next_gauss = numbers["python"]
    random.setstate((version, tuple(internal), next_gauss))
