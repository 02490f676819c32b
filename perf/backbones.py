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
- items_per_s and plain_items_per_s: the rates behind the ratios;

and on a GPU (`--large 7b`; `--large tiny` is the same code on any machine) of stage 1 with
Llama-2-7B's shapes, random bfloat16 weights, LoRA, prompts of 160 tokens, kept vision features:

- mfu: 4 operations a parameter and token (the frozen weights take no gradient; recomputation does
  not count), the output head's on answer tokens only, over 989 TFLOP/s (an H100's bfloat16);
- gemm_share: the same operations over the rate of a large matrix product measured in this run;
- items_per_s of "7b", and peak_gb, the most memory ever allocated.

    python perf/backbones.py [--large 7b|tiny|none]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, LlamaConfig

from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.backbones.composed_inputs import ComposedInputs
from recbole_tpad.backbones.loading import load_composed, load_tokenizer
from recbole_tpad.backbones.lora import LoraSettings
from recbole_tpad.backbones.prompts import IGNORED_LABEL, VISUAL_TOKEN, PromptTemplate
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.backbones.sizing import count_step, empty_backbone, vision_flops
from recbole_tpad.backbones.tiny import TinySettings, create_tiny
from recbole_tpad.backbones.vision_loading import load_image_processor, load_vision
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
LENGTH = 160  # tokens of a prompt with its answer, of the large model
PEAK_FLOPS = 989e12  # H100, bfloat16, dense
LARGE = {
    "7b": LlamaConfig(  # Llama-2-7B
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
        max_position_embeddings=4096,
    ),
    "tiny": LlamaConfig(
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=4000,
        max_position_embeddings=512,
    ),
}


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


def large_backbone(folder: Path, config: LlamaConfig, device: torch.device) -> ComposedBackbone:
    """A composed backbone with a language model of this shape, made where it is used."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    made = ComposedBackbone(
        load_vision(folder / "vision", dtype=torch.bfloat16),
        load_image_processor(folder / "vision"),
        model,
        load_tokenizer(folder / "language_model"),
        lora=LoraSettings(),
        template=PromptTemplate.from_config({}),
        max_text_tokens=LENGTH,
    )
    return made.to(device)


def of_length(backbone: ComposedBackbone, items: list[Item]) -> list[Item]:
    """The items with titles that make prompt and answer `LENGTH` tokens long."""

    def missing(item: Item) -> int:
        prompt = backbone.prompts.prompt(item)
        return LENGTH - len(prompt.ids) - len(prompt.answer)

    found = []
    for item in items:
        filled = replace(item, title="a")
        while missing(filled) > 0:
            filled = replace(filled, title=filled.title + " a")
        found.append(filled)
    assert {missing(item) for item in found} == {0}
    return found


def matrix_rate(edge: int, device: torch.device) -> float:
    """Operations a second of a large bfloat16 matrix product, the best of ten."""
    left = torch.randn(edge, edge, dtype=torch.bfloat16, device=device)
    seconds = []
    for _ in range(11):
        wait_for(device)
        started = time.perf_counter()
        left @ left
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return float(2 * edge**3 / min(seconds[1:]))


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def large(
    folder: Path, items: list[Item], shape: str, device: torch.device, tokens: int, steps: int
) -> dict[str, float]:
    """Stage 1 of a large model: how near it comes to what the device can do."""
    backbone = large_backbone(folder, LARGE[shape], device)
    inputs = backbone.inputs(of_length(backbone, items), device)
    inputs.prepare(train_base=False)
    ours = OurLoop(backbone, inputs, tokens)
    ours.run(2)
    wait_for(device)
    seconds = clock(ours.run, steps)  # every step waits for its loss
    head = backbone.language_model.get_output_embeddings().weight.numel()
    words = backbone.language_model.get_input_embeddings().weight.numel()
    whole = sum(p.numel() for p in backbone.language_model.parameters())
    unused = sum(p.numel() for p in backbone.tower_parameters("transition").values())
    inner = whole - head - words - unused
    answers = float(inputs.answer_lengths().float().mean())
    flops = 4 * BATCH * steps * (LENGTH * inner + answers * head)
    rate = flops / seconds
    say(f"{shape}: {steps} steps in {seconds:.1f} s, {rate / 1e12:.2f} TFLOP/s")
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "mfu": rate / PEAK_FLOPS,
        "gemm_share": rate / matrix_rate(8192 if device.type == "cuda" else 512, device),
        "items_per_s": BATCH * steps / seconds,
        "peak_gb": peak / 1e9,
    }


def main() -> None:
    """Measure and print."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns")
    parser.add_argument("--micro_batch_tokens", type=int, default=900)
    parser.add_argument("--large", choices=[*LARGE, "none"], default="7b" if gpu else "none")
    parser.add_argument("--large_tokens", type=int, default=2560, help="tokens at once; memory")
    parser.add_argument("--large_steps", type=int, default=10)
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
        big: dict[str, float] = {}
        if options.large != "none":
            device = torch.device("cuda") if gpu else CPU
            shape = (options.large, device, options.large_tokens, options.large_steps)
            big = large(folder / "model", items, *shape)
    result: dict[str, Any] = {
        "speedup_vs_plain": {name: round(f["speedup"], 2) for name, f in found.items()},
        "wait_share": round(max(f["wait_share"] for f in found.values()), 4),
        **{
            key: {name: round(f[key], 1) for name, f in found.items()}
            for key in ("items_per_s", "plain_items_per_s")
        },
        "vision_over_language": round(ratio, 1),
        "once_items_per_s": round(found["images"]["once_items_per_s"], 1),
    }
    if big:
        result["items_per_s"][options.large] = round(big.pop("items_per_s"), 1)
        result |= {name: float(f"{value:.4g}") for name, value in big.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
