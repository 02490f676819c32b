"""What dividing the frozen base among two CPU processes (FSDP) saves in memory and costs in time.

Usage: ``python perf/divided.py [--layers 8] [--width 512] [--batch 16] [--steps 15]``. Two forked
processes, a thread each, hold the same random composed base twice, whole and divided, and take
steps of stage 1 (LoRA 16, forward, backward, averaged gradients; texts, no images) with them in
turns. Progress goes to stderr; the last line is JSON: ``megabytes_whole`` and ``megabytes_divided``
(parameters in a process), ``seconds_whole`` and ``seconds_divided`` (median of the first process's
steps) and ``time_ratio`` (the median over the turns of divided over whole).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recbole_tpad.backbones.base import Backbone
from recbole_tpad.backbones.divided import divide, held_bytes
from recbole_tpad.backbones.loading import load_composed
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.backbones.tiny import TinySettings, create_tiny
from recbole_tpad.data import Item
from recbole_tpad.objectives import average_gradients, own_slice

CPU = torch.device("cpu")


def make_items(count: int) -> list[Item]:
    """Items with titles of 10 to 20 words, keywords and a category."""
    rng = random.Random(0)
    words = [f"word{k}" for k in range(300)]
    titles = (" ".join(rng.choices(words, k=rng.randint(10, 20))) for _ in range(count))
    return [
        Item(f"i{k}", title, "", f"c{k % 9}", "", None, None, (words[k % 300],))
        for k, title in enumerate(titles)
    ]


def stepper(backbone: Backbone, items: list[Item], batch: int) -> Callable[[int], float]:
    """Step number → seconds of one step of stage 1, all processes together."""
    backbone.use("knowledge")
    parameters = backbone.trained_parameters("knowledge")
    inputs = backbone.inputs(items, CPU)
    inputs.freeze()

    def step(number: int) -> float:
        rows = torch.arange(number * batch, (number + 1) * batch) % len(items)
        dist.barrier()
        started = time.perf_counter()
        with backbone.training_only(parameters):
            loss = backbone.encode(inputs.batch(own_slice(rows), answers=True)).answer_loss()
            assert loss is not None
            loss.backward()
        average_gradients(list(parameters.values()))
        backbone.zero_grad()
        return time.perf_counter() - started

    return step


def measure(rank: int, folder: Path, args: argparse.Namespace) -> None:
    """One of the two processes; the first one writes what it found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    items = make_items(8 * args.batch)
    parts = {"vision": str(folder / "vision"), "language_model": str(folder / "language_model")}
    whole = load_composed(BackboneSettings(dtype="float32", **parts)).eval()
    divided = load_composed(BackboneSettings(dtype="float32", **parts)).eval()
    divide(divided, CPU)
    steps = [stepper(backbone, items, args.batch) for backbone in (whole, divided)]
    turns = []
    for number in range(args.steps + 1):
        turns.append([step(number) for step in steps])
        if rank == 0:
            print(f"turn {number}: {turns[-1]} s", file=sys.stderr, flush=True)
    turns = turns[1:]  # the first one makes buffers
    if rank == 0:
        found = {
            "megabytes_whole": held_bytes(whole) / 1e6,
            "megabytes_divided": held_bytes(divided) / 1e6,
            "seconds_whole": median(turn[0] for turn in turns),
            "seconds_divided": median(turn[1] for turn in turns),
            "time_ratio": median(turn[1] / turn[0] for turn in turns),
        }
        (folder / "found.json").write_text(json.dumps({k: round(v, 3) for k, v in found.items()}))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in (("--layers", 8), ("--width", 512), ("--batch", 16), ("--steps", 15)):
        parser.add_argument(option, type=int, default=default)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        texts = [f"{item.title} {item.category}" for item in make_items(8 * args.batch)]
        sizes = TinySettings(word_dim=args.width, layers=args.layers, vocabulary=1000)
        create_tiny(folder, texts, sizes, 0)
        mp.start_processes(measure, (folder, args), 2, start_method="fork")
        found = json.loads((folder / "found.json").read_text())
    print(json.dumps({**found, "layers": args.layers, "width": args.width, "batch": args.batch}))


if __name__ == "__main__":
    main()
