"""A small random BERT and a small CLIP vision tower, saved in Hugging Face format."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
)

WIDTH, LAYERS, VISION_WIDTH, EDGE = 24, 3, 16, 16


def write_text_encoder(
    folder: Path,
    words: list[str],
    *,
    layers: int = LAYERS,
    width: int = WIDTH,
    spread: float = 0.3,
) -> Path:
    """Write a random BERT whose vocabulary holds the words; a small spread keeps words apart."""
    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(words))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    torch.manual_seed(1)
    model = BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=2 * width,
            max_position_embeddings=64,
            initializer_range=spread,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_image_encoder(folder: Path, seed: int = 2) -> Path:
    """Write a random CLIP vision tower with its image processor."""
    torch.manual_seed(seed)
    model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=VISION_WIDTH,
            intermediate_size=2 * VISION_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=EDGE,
            patch_size=8,
            initializer_range=0.3,
        )
    )
    model.save_pretrained(folder)
    size = {"height": EDGE, "width": EDGE}
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder)
    return folder
