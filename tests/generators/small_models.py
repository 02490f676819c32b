"""Very small random models of the comparison generators' own classes, in Hugging Face format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_catalogue import TINY, write_backbone
from tiny_vision import EDGE, VISION
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    OPTConfig,
    OPTForCausalLM,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from recbole_tpad.backbones.tiny import train_tokenizer
from recbole_tpad.data import Item


def texts_of(items: Sequence[Item]) -> list[str]:
    """What a tokenizer of the catalogue is trained on."""
    return [f"{i.title} {i.brand} {i.category}" for i in items]


def _stir(model: torch.nn.Module, seed: int, spread: float = 0.3) -> None:
    """Weights large enough that inputs make a difference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)


def write_two_towers(folder: Path, kind: str, items: Sequence[Item]) -> Path:
    """CLIP or SigLIP with both sides, tokenizer and image processor."""
    tokenizer = train_tokenizer(texts_of(items), 300)
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    model: CLIPModel | SiglipModel
    with torch.random.fork_rng():
        torch.manual_seed(1)  # CLIP's class embedding is a vector, which `_stir` leaves alone
        if kind == "clip":
            model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12))
        else:
            text["hidden_size"] = text["projection_size"] = VISION["hidden_size"]
            model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    _stir(model, 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": EDGE, "width": EDGE}
    if kind == "clip":
        CLIPImageProcessorPil(size={"shortest_edge": EDGE}, crop_size=size).save_pretrained(folder)
    else:
        SiglipImageProcessorPil(size=size).save_pretrained(folder)
    return folder


def write_blip2(folder: Path, items: Sequence[Item]) -> Path:
    """A whole BLIP-2: vision side and Q-Former of the tiny backbone, a small OPT inside."""
    vision = write_backbone(folder, list(items)) / "vision"
    tokenizer = train_tokenizer(texts_of(items), 300)
    language = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = OPTForCausalLM(language)
    _stir(model, 2)
    tensors = load_file(vision / "model.safetensors")
    tensors |= {f"language_model.{n}": t.clone() for n, t in model.state_dict().items()}
    tensors["language_projection.weight"] = torch.zeros(16, TINY["vision_dim"])
    tensors["language_projection.bias"] = torch.zeros(16)
    save_file(tensors, vision / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((vision / "config.json").read_text())
    config["architectures"] = ["Blip2ForConditionalGeneration"]
    config["text_config"] = language.to_dict()
    (vision / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(vision)
    return vision


def write_bert(folder: Path, items: Sequence[Item], width: int = 16, spread: float = 0.3) -> Path:
    """A small BERT whose vocabulary holds the items' words."""
    folder.mkdir(parents=True)
    words = sorted({w for text in texts_of(items) for w in text.lower().split()})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *words]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    model = BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=2 * width,
            max_position_embeddings=64,
        )
    )
    _stir(model, 3, spread)
    model.save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
