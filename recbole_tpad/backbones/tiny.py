"""The `tiny` preset: a real composed backbone with small random weights, saved in HF format.

Its tokenizer is trained on the catalogue's own text. Randomly initialised parts learn nothing
while frozen, so stage 1 trains all of it. It is for demos and tests and never described as more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from recbole_tpad.errors import InputError
from recbole_tpad.settings import at_least

_VISION_HEADS = 4


@dataclass(frozen=True, slots=True)
class TinySettings:
    """Sizes of the tiny backbone."""

    word_dim: int = 96
    layers: int = 3
    heads: int = 4
    vocabulary: int = 2000
    image_size: int = 48
    patch_size: int = 8
    vision_dim: int = 64
    vision_layers: int = 2
    queries: int = 8

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            at_least("backbone.tiny", 1, **{name: value})
        at_least("backbone.tiny", 256 + 3, vocabulary=self.vocabulary)  # bytes, special tokens
        for name, divisor in (("word_dim", 2 * self.heads), ("vision_dim", _VISION_HEADS)):
            if getattr(self, name) % divisor:
                raise InputError(f"backbone.tiny: {name} must be a multiple of {divisor}.")
        at_least("backbone.tiny", self.patch_size, image_size=self.image_size)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer (any script round-trips) with <s>, </s> and <pad>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def create_tiny(folder: Path, texts: Iterable[str], settings: TinySettings, seed: int) -> None:
    """Write ``vision/`` and ``language_model/`` in Hugging Face format into `folder`.

    Args:
        folder: an existing empty folder.
        texts: the catalogue's texts and answers, for the tokenizer.
        settings: sizes.
        seed: of the random weights.
    """
    tokenizer = train_tokenizer(texts, settings.vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = Blip2VisionModel(
            Blip2VisionConfig(
                hidden_size=settings.vision_dim,
                intermediate_size=2 * settings.vision_dim,
                num_hidden_layers=settings.vision_layers,
                num_attention_heads=_VISION_HEADS,
                image_size=settings.image_size,
                patch_size=settings.patch_size,
                initializer_range=settings.vision_dim**-0.5,
            )
        )
        qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                vocab_size=2,
                hidden_size=settings.vision_dim,
                num_hidden_layers=1,
                num_attention_heads=_VISION_HEADS,
                intermediate_size=2 * settings.vision_dim,
                encoder_hidden_size=settings.vision_dim,
                cross_attention_frequency=1,
                initializer_range=settings.vision_dim**-0.5,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
        # Zero queries (BLIP-2's constructor) would all attend alike: no image content passes.
        queries = torch.randn(1, settings.queries, settings.vision_dim)
        language_model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=settings.word_dim,
                intermediate_size=3 * settings.word_dim,
                num_hidden_layers=settings.layers,
                num_attention_heads=settings.heads,
                num_key_value_heads=settings.heads,
                max_position_embeddings=512,
                # 0.02 is for widths in the thousands: here a random layer would pass nothing on.
                initializer_range=settings.word_dim**-0.5,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    language_model.save_pretrained(folder / "language_model")
    tokenizer.save_pretrained(folder / "language_model")
    save_vision(folder / "vision", vision, qformer, queries, settings.image_size)
    (folder / "tiny.json").write_text(json.dumps({"settings": asdict(settings), "seed": seed}))


def save_vision(
    folder: Path,
    vision: Blip2VisionModel,
    qformer: Blip2QFormerModel,
    queries: torch.Tensor,
    image_size: int,
) -> None:
    """Save a BLIP-2 vision side with the key names of the published checkpoints."""
    folder.mkdir(parents=True)
    tensors = {f"vision_model.{n}": t for n, t in vision.state_dict().items()}
    tensors |= {f"qformer.{n}": t for n, t in qformer.state_dict().items()}
    tensors["query_tokens"] = queries
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    config = {
        "model_type": "blip-2",
        "num_query_tokens": queries.shape[1],
        "vision_config": vision.config.to_dict(),
        "qformer_config": qformer.config.to_dict(),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
    BlipImageProcessorPil(size={"height": image_size, "width": image_size}).save_pretrained(folder)
