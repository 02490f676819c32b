"""From settings to a backbone: safetensors from folders or the hub, no remote code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Blip2Config,
    Blip2QFormerModel,
    Blip2VisionModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from recbole_tpad.backbones.base import Backbone
from recbole_tpad.backbones.checkpoints import read_tensors, resolve
from recbole_tpad.backbones.composed import ComposedBackbone, LoraSettings
from recbole_tpad.backbones.encoder_loading import load_encoder
from recbole_tpad.backbones.prompts import PromptTemplate
from recbole_tpad.backbones.settings import DTYPES, BackboneSettings
from recbole_tpad.backbones.vision import VisionEncoder
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.settings import from_mapping


def load_backbone(settings: BackboneSettings, items: Sequence[Item]) -> Backbone:
    """Load a backbone of any kind.

    Args:
        settings: which.
        items: the catalogue: kinds that answer by heads take their classes from it.

    Raises:
        InputError: a part that is absent, not safetensors, or of another architecture.
    """
    if settings.kind == "encoder":
        return load_encoder(settings, items)
    return load_composed(settings)


def load_vision(folder: Path) -> VisionEncoder:
    """Load BLIP-2's ViT, Q-Former and query tokens; a language model beside them is left alone."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        # Before anything is built: absent parts would default to the 1B-parameter ViT.
        if not isinstance(content, dict) or content.get("model_type") != "blip-2":
            raise ValueError("its model_type is not 'blip-2'")
        config = Blip2Config.from_dict(content)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder / 'config.json'} is not a BLIP-2 configuration: {error}."
        ) from error
    vit, qformer = Blip2VisionModel(config.vision_config), Blip2QFormerModel(config.qformer_config)
    for module, prefix in ((vit, "vision_model."), (qformer, "qformer.")):
        tensors = read_tensors(folder, prefix)
        result = module.load_state_dict(tensors, strict=False)
        if result.missing_keys or not tensors:
            raise InputError(
                f"{folder} lacks {len(result.missing_keys)} tensors of BLIP-2's {prefix[:-1]}, "
                f"first: {', '.join(result.missing_keys[:3])}."
            )
    queries = read_tensors(folder, "query_tokens")
    if "" not in queries:
        raise InputError(f"{folder} lacks the tensor query_tokens: not a BLIP-2 checkpoint.")
    return VisionEncoder(vit, qformer, queries[""].float())


def load_composed(settings: BackboneSettings) -> ComposedBackbone:
    """Load a composed backbone.

    Raises:
        InputError: a part that is absent, not safetensors, or of another architecture.
    """
    vision_folder = resolve(settings.vision, settings.vision_revision)
    language_folder = resolve(settings.language_model, settings.language_model_revision)
    dtype = DTYPES[settings.dtype]
    try:
        language_model = AutoModelForCausalLM.from_pretrained(
            language_folder, dtype=dtype, use_safetensors=True, attn_implementation="sdpa"
        )
        tokenizer = AutoTokenizer.from_pretrained(language_folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{language_folder} cannot be loaded as a causal LM: {error}") from error
    lora = from_mapping(LoraSettings, settings.lora, "backbone.lora")
    names = {n.rpartition(".")[2] for n, _ in language_model.named_modules()}
    for target in lora.target_modules:
        if target not in names:
            raise InputError(
                f"backbone.lora: {language_folder} has no module '{target}'."
                f"{nearest(target, names)}"
            )
    return ComposedBackbone(
        load_vision(vision_folder),
        BlipImageProcessorPil.from_pretrained(vision_folder),
        language_model,
        tokenizer,
        lora=lora,
        template=PromptTemplate.from_config(settings.prompt),
        max_text_tokens=settings.max_text_tokens,
        readout=settings.readout,
        gist_mask=settings.gist_mask,
    )
