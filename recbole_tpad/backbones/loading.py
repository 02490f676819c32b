"""From settings to a backbone: safetensors from folders or the hub, no remote code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from recbole_tpad.backbones.base import Backbone
from recbole_tpad.backbones.checkpoints import checkpoint_files, require_safetensors, resolve
from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.backbones.encoder_loading import load_encoder
from recbole_tpad.backbones.lora import LoraSettings
from recbole_tpad.backbones.native import NativeBackbone
from recbole_tpad.backbones.prompts import PromptTemplate
from recbole_tpad.backbones.settings import DTYPES, BackboneSettings
from recbole_tpad.backbones.vision_cache import VisionCache
from recbole_tpad.backbones.vision_loading import load_image_processor, load_vision
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.files import sha256_json
from recbole_tpad.settings import from_mapping


def load_backbone(
    settings: BackboneSettings, items: Sequence[Item], features: Path | None = None
) -> Backbone:
    """Load a backbone of any kind.

    Args:
        settings: which.
        items: the catalogue: kinds that answer by heads take their classes from it.
        features: a folder for vision features on disk; None where the vision encoder is trained.

    Raises:
        InputError: a part that is absent, not safetensors, or of another architecture.
    """
    backbone: Backbone
    if settings.kind == "encoder":
        backbone = load_encoder(settings, items)
    else:
        backbone = load_native(settings) if settings.kind == "native" else load_composed(settings)
    if features is not None and "visual" in backbone.widths:
        backbone.vision_cache = VisionCache(features / _encoder_key(settings))
    return backbone


def _encoder_key(settings: BackboneSettings) -> str:
    """Names the vision encoder: equal keys give equal features of an image."""
    files = checkpoint_files(settings, ("vision", "model", "image_encoder"))
    shape = {"dtype": settings.dtype, "grid": settings.visual_grid}
    return f"vision-{sha256_json({'files': files, **shape})[:16]}"


def load_composed(settings: BackboneSettings) -> ComposedBackbone:
    """Load a composed backbone.

    Raises:
        InputError: a part that is absent, not safetensors, or of another architecture.
    """
    vision_folder = resolve(settings.vision, settings.vision_revision)
    language_folder = resolve(settings.language_model, settings.language_model_revision)
    dtype = DTYPES[settings.dtype]
    require_safetensors(language_folder)
    try:
        language_model = AutoModelForCausalLM.from_pretrained(
            language_folder, dtype=dtype, use_safetensors=True, attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{language_folder} cannot be loaded as a causal LM: {error}") from error
    return ComposedBackbone(
        load_vision(vision_folder, dtype=dtype, grid=settings.visual_grid),
        load_image_processor(vision_folder),
        language_model,
        load_tokenizer(language_folder),
        lora=from_mapping(LoraSettings, settings.lora, "backbone.lora"),
        template=PromptTemplate.from_config(settings.prompt),
        max_text_tokens=settings.max_text_tokens,
        readout=settings.readout,
        activation_checkpointing=settings.activation_checkpointing,
        gist_mask=settings.gist_mask,
    )


def load_native(settings: BackboneSettings) -> NativeBackbone:
    """Load a native backbone.

    Raises:
        InputError: a part that is absent, not safetensors, or of another architecture.
    """
    folder = resolve(settings.model, settings.model_revision)
    require_safetensors(folder)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=DTYPES[settings.dtype],
            use_safetensors=True,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} cannot be loaded as an image-text-to-text model: {error}"
        ) from error
    return NativeBackbone(
        model,
        load_image_processor(folder),
        load_tokenizer(folder),
        lora=from_mapping(LoraSettings, settings.lora, "backbone.lora"),
        template=PromptTemplate.from_config(settings.prompt),
        max_text_tokens=settings.max_text_tokens,
        readout=settings.readout,
        activation_checkpointing=settings.activation_checkpointing,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer; one without a padding token will do, padding is masked.

    Raises:
        InputError: the folder has none.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no tokenizer that can be loaded: {error}") from error
