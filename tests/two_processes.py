"""Work done by two forked processes that divide the frozen base, as two of a launcher would."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recbole_tpad.stages.processes import processes

Found = dict[str, Any]


def child(rank: int, folder: Path, work: Callable[[], Found]) -> None:
    os.environ |= {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    processes.cache_clear()
    torch.save(work(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def by_two(folder: Path, work: Callable[[], Found], seconds: float = 300) -> list[Found]:
    """What two forked processes return, each of them with a part of every layer."""
    context = mp.start_processes(child, (folder, work), 2, join=False, start_method="fork")
    deadline = time.monotonic() + seconds
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, "the processes wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
