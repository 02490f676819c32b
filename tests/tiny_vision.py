"""Very small random SigLIP and CLIP vision encoders and language models, saved in HF format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

EDGE, PATCH, WIDTH = 16, 4, 24
VISION: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": EDGE,
    "patch_size": PATCH,
    "initializer_range": 0.3,
}
_TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 30}
ENCODERS = ("siglip", "siglip_vision_model", "clip", "clip_vision_model")
LANGUAGE_MODELS = ("llama", "qwen2", "qwen3", "smollm3")


def write_encoder(folder: Path, kind: str) -> PreTrainedModel:
    """Write an encoder with its preprocessing; return the vision model inside."""
    torch.manual_seed(1)
    text = {**_TEXT, "num_attention_heads": 2, "max_position_embeddings": 8}
    model: PreTrainedModel
    if kind == "siglip":
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    elif kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION))
    elif kind == "siglip_vision_model":
        model = SiglipVisionModel(SiglipVisionConfig(**VISION))
    else:
        model = CLIPVisionModel(CLIPVisionConfig(**VISION))
    with torch.no_grad():  # their constructors scale some weights down to nothing
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    size = {"height": EDGE, "width": EDGE}
    if kind.startswith("siglip"):
        SiglipImageProcessorPil(size=size).save_pretrained(folder)
    else:
        CLIPImageProcessorPil(size={"shortest_edge": EDGE}, crop_size=size).save_pretrained(folder)
    found = getattr(model, "vision_model", model)
    assert isinstance(found, torch.nn.Module)
    return found.eval()  # type: ignore[return-value]


def language_model(kind: str, vocabulary: int) -> PreTrainedModel:
    """A random causal language model of a family."""
    torch.manual_seed(2)
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    if kind == "llama":  # SmolLM and SmolLM2 are of this class
        return LlamaForCausalLM(LlamaConfig(**sizes))
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**sizes))
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8))
    return SmolLM3ForCausalLM(SmolLM3Config(**sizes))
