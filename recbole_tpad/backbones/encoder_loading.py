"""From settings to an encoder backbone: safetensors from folders or the hub, no remote code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPVisionModel,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from recbole_tpad.backbones.checkpoints import resolve
from recbole_tpad.backbones.encoder import EncoderBackbone, EncoderSettings
from recbole_tpad.backbones.prompts import PromptTemplate
from recbole_tpad.backbones.settings import DTYPES, BackboneSettings
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.settings import from_mapping

_VISION_CLASSES = {
    "clip": (CLIPVisionModel, CLIPImageProcessorPil),
    "clip_vision_model": (CLIPVisionModel, CLIPImageProcessorPil),
    "siglip": (SiglipVisionModel, SiglipImageProcessorPil),
    "siglip_vision_model": (SiglipVisionModel, SiglipImageProcessorPil),
}


def load_encoder(settings: BackboneSettings, items: Sequence[Item]) -> EncoderBackbone:
    """Load an encoder backbone.

    Args:
        settings: with `text_encoder`, and `image_encoder` where images are to be read.
        items: the catalogue, for the answers' classes.

    Raises:
        InputError: a part that is absent, not safetensors, or of another architecture.
    """
    if not settings.text_encoder:
        raise InputError("backbone: kind 'encoder' needs text_encoder, a local folder or hub id.")
    own = from_mapping(EncoderSettings, settings.encoder, "backbone.encoder")
    folder = resolve(settings.text_encoder, settings.text_encoder_revision)
    try:
        text = AutoModel.from_pretrained(
            folder,
            dtype=DTYPES[settings.dtype],
            use_safetensors=True,
            attn_implementation="sdpa",
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be loaded as a text encoder: {error}") from error
    image, processor = None, None
    if settings.image_encoder:
        vision_folder = resolve(settings.image_encoder, settings.image_encoder_revision)
        image, processor = _load_image_encoder(vision_folder, settings)
    return EncoderBackbone(
        text,
        tokenizer,
        items,
        settings=own,
        template=PromptTemplate.from_config(settings.prompt),
        max_text_tokens=settings.max_text_tokens,
        image=image,
        image_processor=processor,
    )


def empty_encoder(settings: BackboneSettings, items: Sequence[Item]) -> EncoderBackbone:
    """An encoder backbone whose encoders have no weights, from configuration and tokenizer alone.

    Raises:
        InputError: as `load_encoder`.
    """
    if not settings.text_encoder:
        raise InputError("backbone: kind 'encoder' needs text_encoder, a local folder or hub id.")
    dtype = DTYPES[settings.dtype]
    folder = resolve(settings.text_encoder, settings.text_encoder_revision, weights=False)
    image = None
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            text = AutoModel.from_config(config, dtype=dtype)
        if settings.image_encoder:
            own = (settings.image_encoder, settings.image_encoder_revision)
            vision = AutoConfig.from_pretrained(resolve(*own, weights=False))
            model = _vision_class(vision.model_type)[0]
            with torch.device("meta"):
                image = model(getattr(vision, "vision_config", vision)).to(dtype)
    except (OSError, ValueError) as error:
        raise InputError(f"backbone: no configuration of an encoder: {error}") from error
    return EncoderBackbone(
        text,
        tokenizer,
        items,
        settings=from_mapping(EncoderSettings, settings.encoder, "backbone.encoder"),
        template=PromptTemplate.from_config(settings.prompt),
        max_text_tokens=settings.max_text_tokens,
        image=image,
    )


def _vision_class(kind: str) -> tuple[Any, Any]:
    if kind not in _VISION_CLASSES:
        raise ValueError(f"its model_type is '{kind}', not one of {', '.join(_VISION_CLASSES)}")
    return _VISION_CLASSES[kind]


def _load_image_encoder(
    folder: Path, settings: BackboneSettings
) -> tuple[PreTrainedModel, Callable[..., Any]]:
    try:
        kind = AutoConfig.from_pretrained(folder).model_type
        model, processor = _vision_class(kind)
        encoder = model.from_pretrained(folder, dtype=DTYPES[settings.dtype], use_safetensors=True)
        return encoder, processor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be loaded as an image encoder: {error}") from error
