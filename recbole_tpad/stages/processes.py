"""Several processes that train one stage together, as `accelerate launch` or `torchrun` start them.

Every process holds the whole model, or with FSDP a part of each frozen layer; it computes its share
of each batch, and gradients are added up.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from recbole_tpad.backbones.base import Backbone
from recbole_tpad.backbones.divided import divide, held_bytes
from recbole_tpad.errors import InputError
from recbole_tpad.host_memory import keep_freed_memory

logger = logging.getLogger("recbole_tpad")


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among its like.

    Attributes:
        rank: from 0; the first one writes files.
        count: how many there are.
        divide: whether they divide the frozen base's layers among them (FSDP).
    """

    rank: int = 0
    count: int = 1
    divide: bool = False

    @property
    def first(self) -> bool:
        """Whether this process writes what all have computed."""
        return self.rank == 0

    def share(self, rows: torch.Tensor) -> torch.Tensor:
        """This process's part of a batch's rows."""
        return rows[self.rank :: self.count]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            dist.barrier()

    def add_up(self, tensors: Iterable[torch.Tensor], device: torch.device) -> None:
        """Replace each tensor by its sum over the processes, in place.

        Args:
            tensors: anywhere.
            device: of the models; what the processes talk through.
        """
        if self.count > 1:
            for tensor in tensors:
                moved = tensor.to(device)
                dist.all_reduce(moved)
                tensor.copy_(moved)

    def first_says(self, value: float, device: torch.device) -> float:
        """The first process's value, for decisions that all have to make alike."""
        if self.count == 1:
            return value
        said = torch.tensor(value, dtype=torch.float64, device=device)
        dist.broadcast(said, 0)
        return float(said)

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the summed gradients; one that has none yet counts as zero."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


@cache
def processes() -> Processes:
    """The processes this one was started with: one, unless a launcher said otherwise.

    Raises:
        InputError: a launcher asks for DeepSpeed.
    """
    if _asked("ACCELERATE_USE_DEEPSPEED"):
        raise InputError(
            "DeepSpeed is asked for, but is not used here. Use FSDP, which divides the frozen base "
            "(docs/backbones.md), or a plain multi-process configuration (MULTI_GPU, MULTI_CPU)."
        )
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true"
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        # torch elastic keeps its store over a restart: without a prefix of their own, restarted
        # processes would find, and wait for, the addresses of the killed ones.
        store, rank, count = next(iter(rendezvous("env://")))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group(
            "nccl" if gpu else "gloo",
            store=PrefixStore(f"attempt-{attempt}", store),
            rank=rank,
            world_size=count,
        )
    return Processes(dist.get_rank(), dist.get_world_size(), _asked("ACCELERATE_USE_FSDP"))


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1")


def place(backbone: Backbone, device: torch.device, *, train_base: bool = False) -> Backbone:
    """Move a loaded backbone to its device; of several processes each takes its part with FSDP.

    Args:
        backbone: as loaded.
        device: where it computes.
        train_base: a stage trains the base too.

    Raises:
        InputError: FSDP is asked for and there is nothing frozen to divide.
    """
    if processes().divide:
        if train_base:
            raise InputError(
                "FSDP is asked for, but train_base is on: the whole base is trained, and only "
                "frozen layers are divided. Turn train_base off, or use a plain multi-process "
                "configuration (MULTI_GPU, MULTI_CPU)."
            )
        whole = held_bytes(backbone)
        divide(backbone, device)
        part, count = held_bytes(backbone), processes().count
        logger.info("FSDP: %d processes hold %.2f of %.2f GB each.", count, part / 1e9, whole / 1e9)
    keep_freed_memory(device.type)
    return backbone.to(device).eval()
