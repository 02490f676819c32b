"""Stage 1's training items a second, against a careful plain Hugging Face loop of the same model.

Random weights, batch 32, LoRA, float32, one CPU thread. How much is won with images depends on
what the vision encoder costs beside the language model's training step: counted at 100 tokens, 11
times as much for BLIP-2's encoder with SmolLM-135M, a fifth with Llama-2-7B, and here
`vision_over_language` times.
The plain loop keeps pixel values in memory, pads to the longest prompt of the batch, runs the
vision encoder every step without gradients, and takes the model's own loss (`labels=`). Both are
measured in turns in one run. Last line: JSON with

- speedup_vs_plain: {"images": …, "text": …}, items a second of `train_knowledge` over the plain
  loop's; encoding each image once, before, is not in it (`once_items_per_s`);
- wait_share: share of our steps spent on making batches;
- vision_over_language: operations of one image over those of one item's training step, counted;
- items_per_s and plain_items_per_s: the rates behind the ratios.

    python perf/backbones.py
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image

from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.backbones.composed_inputs import ComposedInputs
from recbole_tpad.backbones.loading import load_composed
from recbole_tpad.backbones.prompts import IGNORED_LABEL, VISUAL_TOKEN
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.backbones.sizing import count_step, empty_backbone, vision_flops
from recbole_tpad.backbones.tiny import TinySettings, create_tiny
from recbole_tpad.data import Item
from recbole_tpad.stages.knowledge import KnowledgeSettings, train_knowledge
from recbole_tpad.stages.loop import LoopSettings, epoch_batches

BATCH, ITEMS = 32, 128
SIZES = TinySettings(
    word_dim=96,
    layers=6,
    heads=4,
    vocabulary=4000,
    image_size=224,
    patch_size=14,
    vision_dim=256,
    vision_layers=8,
    queries=32,
)
CPU = torch.device("cpu")


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def catalogue(folder: Path) -> list[Item]:
    """Items with titles as long and as uneven as Amazon's (median 14 words), and noise pictures."""
    rng = random.Random(0)
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrstx"]
    made = []
    for k in range(ITEMS):
        count = min(70, max(2, round(rng.lognormvariate(2.65, 0.6))))
        image = folder / f"{k}.jpg"
        pixels = np.random.default_rng(k).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image)
        title = " ".join(rng.choices(words, k=count))
        made.append(
            Item(f"i{k}", title, "brand", "kind", "", None, image, tuple(rng.choices(words, k=4)))
        )
    return made


def load(folder: Path) -> ComposedBackbone:
    """The backbone with its default LoRA."""
    torch.manual_seed(0)
    return load_composed(
        BackboneSettings(
            vision=str(folder / "vision"), language_model=str(folder / "language_model")
        )
    )


class PlainLoop:
    """What one would write with transformers and peft."""

    def __init__(
        self, backbone: ComposedBackbone, inputs: ComposedInputs, shown: list[Item]
    ) -> None:
        self.backbone = backbone
        self.parameters = backbone.tower_parameters("knowledge")
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=1e-4)
        self.inputs = inputs
        self.pixels = pixels_of(backbone, shown) if shown else None
        self.step = 0

    def run(self, steps: int) -> None:
        """Train some steps."""
        with self.backbone.training_only(self.parameters):
            for _ in range(steps):
                rows = epoch_batches(ITEMS, BATCH, self.step, 0)
                loss = self.loss(rows)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
                self.optimizer.step()
                self.step += 1

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        """Loss of a batch, by the language model's own `labels=`."""
        backbone = self.backbone
        tower = backbone.towers["knowledge"]
        prompts = self.inputs.batch(rows, answers=True).prompts
        ids = prompts.ids.clamp(min=0)
        words = backbone.language_model.get_input_embeddings()(ids)
        place = (prompts.ids == VISUAL_TOKEN).unsqueeze(-1)
        if self.pixels is None:
            seen = tower.no_image.expand(len(rows), -1, -1)
        else:
            with torch.no_grad():
                features = backbone.vision(self.pixels[rows])
            seen = tower.connector(features)
        words = words.masked_scatter(place, seen)
        for row, marker in enumerate((-2, -3)):
            summary = tower.summary_tokens[row]
            words = torch.where((prompts.ids == marker).unsqueeze(-1), summary, words)
        labels = prompts.labels.masked_fill(prompts.labels == IGNORED_LABEL, -100)
        output = backbone.language_model(
            inputs_embeds=words, attention_mask=prompts.mask, labels=labels
        )
        found: torch.Tensor = output.loss
        return found


def pixels_of(backbone: ComposedBackbone, items: list[Item]) -> torch.Tensor:
    """Every image's pixel values, decoded once."""
    opened = [Image.open(i.image).convert("RGB") for i in items if i.image]
    return torch.cat([backbone.pixels(opened[k : k + 32]) for k in range(0, len(opened), 32)])


class OurLoop:
    """`train_knowledge`, a few steps a call; the time spent on making batches is kept."""

    def __init__(self, backbone: ComposedBackbone, inputs: ComposedInputs, tokens: int) -> None:
        self.backbone = backbone
        self.inputs = inputs
        self.tokens = tokens
        self.waited = 0.0
        self.folder = Path(tempfile.mkdtemp())
        make = inputs.batch

        def timed(*args: object, **options: object) -> object:
            started = time.perf_counter()
            batch = make(*args, **options)  # type: ignore[arg-type]
            self.waited += time.perf_counter() - started
            return batch

        inputs.batch = timed  # type: ignore[assignment, method-assign]

    def run(self, steps: int) -> None:
        """Train some steps."""
        loop = LoopSettings(steps, checkpoint_seconds=1e9)
        settings = KnowledgeSettings(
            loop, batch_size=BATCH, holdout=0.0, micro_batch_tokens=self.tokens
        )
        train_knowledge(self.backbone, self.inputs, settings, self.folder / "none", 0)


def clock(run: Callable[[int], None], steps: int) -> float:
    """Seconds of some steps."""
    started = time.perf_counter()
    run(steps)
    return time.perf_counter() - started


def compare(
    folder: Path, items: list[Item], steps: int, rounds: int, tokens: int
) -> dict[str, float]:
    """Both loops in turns on the same items."""
    ours, plain = load(folder), load(folder)
    inputs = ours.inputs(items, CPU)
    images = bool(inputs.has_image.any())
    once = clock(lambda _: inputs.freeze(), 1)
    loops = (
        OurLoop(ours, inputs, tokens),
        PlainLoop(
            plain,
            plain.inputs([replace(i, image=None) for i in items], CPU),
            items if images else [],
        ),
    )
    for loop in loops:
        loop.run(1)
    loops[0].waited = 0.0
    seconds = [0.0, 0.0]
    for turn in range(rounds):
        for which, loop in enumerate(loops):
            seconds[which] += clock(loop.run, steps)
        say(f"{'images' if images else 'text'}: turn {turn + 1} of {rounds}, {seconds}")
    count = steps * rounds * BATCH
    return {
        "speedup": seconds[1] / seconds[0],
        "items_per_s": count / seconds[0],
        "plain_items_per_s": count / seconds[1],
        "wait_share": loops[0].waited / seconds[0],
        "once_items_per_s": len(items) / once,
    }


def over_language(folder: Path, items: list[Item]) -> float:
    """Counted operations of the vision encoder on one image over one item's training step."""
    settings = BackboneSettings(
        vision=str(folder / "vision"), language_model=str(folder / "language_model")
    )
    empty = empty_backbone(settings)
    assert isinstance(empty, ComposedBackbone)
    prompts = [empty.prompts.prompt(item) for item in items]
    length = sum(len(p.ids) + len(p.answer) for p in prompts) // len(prompts)
    answers = sum(len(p.answer) for p in prompts) // len(prompts)
    step = count_step(empty, BATCH, length, BATCH * answers, checkpointing=False)
    return vision_flops(empty) * BATCH / step.flops


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns")
    parser.add_argument("--micro_batch_tokens", type=int, default=900)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        items = catalogue(folder)
        (folder / "model").mkdir()
        texts = [" ".join([i.title, i.brand, *i.keywords]) for i in items]
        rng = random.Random(1)
        letters = "abcdefghijklmnopqrstuvwxyz"
        fill = [" ".join("".join(rng.choices(letters, k=6)) for _ in range(20)) for _ in range(200)]
        create_tiny(folder / "model", texts + fill, SIZES, 0)
        arguments = (options.steps, options.rounds, options.micro_batch_tokens)
        text = [replace(i, image=None) for i in items]
        found = {
            "text": compare(folder / "model", text, *arguments),
            "images": compare(folder / "model", items, *arguments),
        }
        ratio = over_language(folder / "model", items)
    result = {
        "speedup_vs_plain": {name: round(f["speedup"], 2) for name, f in found.items()},
        "wait_share": round(max(f["wait_share"] for f in found.values()), 4),
        **{
            key: {name: round(f[key], 1) for name, f in found.items()}
            for key in ("items_per_s", "plain_items_per_s")
        },
        "vision_over_language": round(ratio, 1),
        "once_items_per_s": round(found["images"]["once_items_per_s"], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
