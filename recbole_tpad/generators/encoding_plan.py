"""What encoding would take: items, tokens, operations, time; nothing is loaded."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from recbole_tpad.backbones.checkpoints import resolve
from recbole_tpad.backbones.loading import load_tokenizer
from recbole_tpad.backbones.native import NativeBackbone
from recbole_tpad.backbones.prompts import PromptTemplate
from recbole_tpad.backbones.settings import DTYPES, BackboneSettings
from recbole_tpad.backbones.sizing import META, empty_backbone, vision_flops
from recbole_tpad.backbones.tiny import TinySettings, create_tiny
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.settings import from_mapping

MATRIX = 2048
MATRIX_SECONDS = 0.5
# Share of a large matrix product's rate that a whole pass reaches (assumption).
EFFICIENCY = 0.4


@dataclass(frozen=True, slots=True)
class EncodingPlan:
    """Of some items.

    Attributes:
        items: how many.
        tokens: of all prompts together, image places included; None where it depends on images.
        images: how many items have one.
        flops: of the language or text model on these tokens.
        vision_flops: of the vision encoder on these images, if none of them is in the cache.
        seconds: expected, at `EFFICIENCY` of the device's measured rate.
        store_bytes: of the vectors.
        rate: operations a second of a large matrix product.
        device: its type.
    """

    items: int
    tokens: int | None
    images: int
    flops: float | None
    vision_flops: float | None
    seconds: float | None
    store_bytes: int
    rate: float
    device: str

    def lines(self) -> list[str]:
        """What to tell people."""
        disk = f"{self.store_bytes / 1e9:.3f} GB of vectors"
        if self.tokens is None or self.flops is None:
            return [
                f"Encoding: {self.items:,} items, {self.images:,} images, {disk}; tokens and time "
                "are not estimated, since how many tokens an image takes depends on the images"
            ]
        work = f"{self.flops / 1e12:,.2f} TFLOP"
        if self.images and self.vision_flops is not None:
            work += f" and {self.vision_flops / 1e12:,.2f} for {self.images:,} images not yet seen"
        return [
            f"Encoding: {self.items:,} items, {self.tokens:,} tokens, {work}, {disk}",
            f"Expected time of encoding on {self.device} (a matrix product runs at "
            f"{self.rate / 1e12:.2f} TFLOP/s there, {EFFICIENCY:.0%} of it assumed): "
            f"{duration(self.seconds or 0.0)}; by n processes an n-th of it",
        ]


def plan_encoding(
    backbone: BackboneSettings, items: Sequence[Item], device: torch.device
) -> EncodingPlan:
    """Count what encoding items would take, for the mean length of their prompts.

    Args:
        backbone: of any kind.
        items: as they are read.
        device: whose rate is measured.

    Raises:
        InputError: a part that is absent or of another architecture.
    """
    if backbone.kind == "tiny" and not Path(backbone.language_model, "config.json").is_file():
        with tempfile.TemporaryDirectory() as folder:
            return plan_encoding(made_tiny(Path(folder), backbone, items), items, device)
    shown = sum(item.image is not None for item in items)
    rate = matrix_rate(device, DTYPES[backbone.dtype])
    if backbone.kind == "encoder":
        lengths, per_token, per_image, width = _encoder(backbone, items)
    else:
        empty = empty_backbone(backbone)
        width = sum(empty.widths.values())
        if isinstance(empty, NativeBackbone):
            size = len(items) * width * 2
            return EncodingPlan(len(items), None, shown, None, None, None, size, rate, device.type)
        lengths = [len(empty.prompts.states_prompt(item)) for item in items]
        mean = max(1, round(sum(lengths) / len(lengths)))
        decoder = empty.language_model.get_base_model().get_decoder()
        words = torch.empty(1, mean, empty.word_dim, dtype=decoder.dtype, device=META)
        mask = torch.empty(1, 1, mean, mean, dtype=decoder.dtype, device=META)
        places = torch.empty(1, mean, dtype=torch.int64, device=META)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            decoder(inputs_embeds=words, attention_mask=mask, position_ids=places, use_cache=False)
        per_token = counter.get_total_flops() / mean
        per_image = vision_flops(empty) if shown else 0
    tokens = sum(lengths)
    flops, vision = tokens * per_token, float(shown * per_image)
    return EncodingPlan(
        items=len(items),
        tokens=tokens,
        images=shown,
        flops=flops,
        vision_flops=vision,
        seconds=(flops + vision) / (rate * EFFICIENCY),
        store_bytes=len(items) * width * 2,
        rate=rate,
        device=device.type,
    )


def made_tiny(folder: Path, backbone: BackboneSettings, items: Sequence[Item]) -> BackboneSettings:
    """A tiny backbone written to a folder, and the settings that name it."""
    sizes = from_mapping(TinySettings, backbone.tiny, "backbone.tiny")
    texts = [" ".join([i.title, i.brand, i.category, *i.keywords]) for i in items]
    create_tiny(folder, texts, sizes, 0)
    return replace(
        backbone,
        kind="composed",
        vision=str(folder / "vision"),
        language_model=str(folder / "language_model"),
    )


def _encoder(
    backbone: BackboneSettings, items: Sequence[Item]
) -> tuple[list[int], float, float, int]:
    """Token counts, operations a token and an image, and width of all vectors of an item."""
    folder = resolve(*backbone.parts()["text_encoder"], weights=False)
    template = PromptTemplate.from_config(backbone.prompt)
    texts = [template.text_of(item) for item in items]
    tokens = load_tokenizer(folder)(
        texts, truncation=True, max_length=backbone.max_text_tokens, split_special_tokens=True
    )["input_ids"]
    lengths = [len(t) for t in tokens]
    mean = max(1, round(sum(lengths) / len(lengths)))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with META:
            model = AutoModel.from_config(config, add_pooling_layer=False)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder} has no configuration of a text encoder: {error}") from error
    ids = torch.zeros(1, mean, dtype=torch.int64, device=META)
    mask = torch.empty(1, 1, mean, mean, device=META)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        states = model.embeddings(ids)
        model.encoder(states, attention_mask=mask)
    width, per_image = int(config.hidden_size), 0.0
    if backbone.image_encoder:
        folder = resolve(*backbone.parts()["image_encoder"], weights=False)
        whole = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        vision = getattr(whole, "vision_config", whole)
        with META:
            image = AutoModel.from_config(vision)
        edge = int(vision.image_size)
        with torch.no_grad(), FlopCounterMode(display=False) as counter_image:
            image(pixel_values=torch.empty(1, 3, edge, edge, device=META))
        width, per_image = width + int(vision.hidden_size), counter_image.get_total_flops()
    return lengths, counter.get_total_flops() / mean, per_image, width


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    left = torch.ones(MATRIX, MATRIX, dtype=dtype, device=device)
    started, count, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < MATRIX_SECONDS or count < 2:
        found = left @ left
        float(found[0, 0])  # waits for a GPU
        count += 1
        elapsed = time.perf_counter() - started
    return 2 * MATRIX**3 * count / elapsed


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
