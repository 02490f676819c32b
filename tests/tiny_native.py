"""Very small random image-text-to-text models with the real classes, saved in HF format."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from recbole_tpad.backbones.tiny import train_tokenizer
from recbole_tpad.data import Item

FAMILIES = ("qwen2_vl", "qwen3_vl", "smolvlm", "llava")
LANGUAGE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}


def _qwen2_vl(ids: dict[str, int], vocabulary: int) -> tuple[PreTrainedModel, object]:
    config = Qwen2VLConfig(
        text_config={**LANGUAGE, "vocab_size": vocabulary, "rope_parameters": ROPE},
        vision_config={
            "depth": 1,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
            "initializer_range": 0.3,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return Qwen2VLForConditionalGeneration(config), Qwen2VLImageProcessorPil(
        patch_size=4, size={"shortest_edge": 64, "longest_edge": 400}
    )


def _qwen3_vl(ids: dict[str, int], vocabulary: int) -> tuple[PreTrainedModel, object]:
    rope = {**ROPE, "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={**LANGUAGE, "vocab_size": vocabulary, "head_dim": 8, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.3,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return Qwen3VLForConditionalGeneration(config), Qwen2VLImageProcessorPil(
        patch_size=4, size={"shortest_edge": 64, "longest_edge": 400}
    )


def _smolvlm(ids: dict[str, int], vocabulary: int) -> tuple[PreTrainedModel, object]:
    config = SmolVLMConfig(
        text_config={**LANGUAGE, "model_type": "llama", "vocab_size": vocabulary},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
            "initializer_range": 0.3,
        },
        image_token_id=ids["<image>"],
        scale_factor=2,
    )
    return SmolVLMForConditionalGeneration(config), SmolVLMImageProcessorPil(
        size={"longest_edge": 16}, max_image_size={"longest_edge": 16}
    )


def _llava(ids: dict[str, int], vocabulary: int) -> tuple[PreTrainedModel, object]:
    config = LlavaConfig(
        text_config={**LANGUAGE, "model_type": "llama", "vocab_size": vocabulary},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
            "projection_dim": 16,
            "initializer_range": 0.3,
        },
        image_token_index=ids["<image>"],
        image_token_id=ids["<image>"],
    )
    return LlavaForConditionalGeneration(config), CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )


TOKENS = {
    "qwen2_vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "smolvlm": ["<fake_token_around_image>", "<global-img>", "<image>"],
    "llava": ["<image>"],
}
TOKENS["qwen3_vl"] = TOKENS["qwen2_vl"]
_MAKE = {"qwen2_vl": _qwen2_vl, "qwen3_vl": _qwen3_vl, "smolvlm": _smolvlm, "llava": _llava}


def write_native(folder: Path, family: str, items: list[Item]) -> Path:
    """Write a model of a family with a tokenizer that knows the items' texts."""
    texts = [" ".join([i.title, i.brand, i.category, *i.keywords]) for i in items]
    tokenizer: PreTrainedTokenizerBase = train_tokenizer(texts, 400)
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS[family]})
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in TOKENS[family]}
    torch.manual_seed(4)
    model, processor = _MAKE[family](ids, len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder
