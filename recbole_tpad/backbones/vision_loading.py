"""Vision encoders with their image processors from Hugging Face folders: BLIP-2, SigLIP, CLIP."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    Blip2Config,
    Blip2QFormerModel,
    Blip2VisionModel,
    CLIPVisionModel,
    PreTrainedModel,
    SiglipVisionModel,
)

from recbole_tpad.backbones.checkpoints import read_tensors, require_safetensors
from recbole_tpad.backbones.vision import PatchEncoder, QueryEncoder, VisionEncoder
from recbole_tpad.errors import InputError

_PATCH_MODELS = {
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
}

ImageProcessor = Callable[..., Mapping[str, torch.Tensor]]


def load_image_processor(folder: Path) -> ImageProcessor:
    """Load a checkpoint's preprocessing, in the form that needs Pillow only.

    Raises:
        InputError: the folder has none, or one that runs code of its own.
    """
    try:
        found: ImageProcessor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{folder} has no image processor that can be used: {error}") from error
    return found


def load_vision(
    folder: Path, *, dtype: torch.dtype = torch.float32, grid: int = 0
) -> VisionEncoder:
    """Load the vision side of a checkpoint; a language model beside it is left alone.

    Args:
        folder: BLIP-2, SigLIP or CLIP in Hugging Face format.
        dtype: of the weights.
        grid: SigLIP and CLIP: average the patches to grid x grid visual tokens; 0 keeps all.

    Raises:
        InputError: another kind of model, no safetensors, or tensors that are missing.
    """
    config, kind = _configuration(folder)
    require_safetensors(folder)
    if kind == "blip-2":
        return _load_blip2(folder, config).to(dtype)
    try:
        vit = _PATCH_MODELS[kind].from_pretrained(
            folder, dtype=dtype, use_safetensors=True, attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be loaded as a vision encoder: {error}") from error
    return _patches(vit, grid)


def empty_vision(folder: Path, grid: int = 0) -> VisionEncoder:
    """The vision side of a checkpoint from its configuration, on the current device.

    Raises:
        InputError: another kind of model.
    """
    config, kind = _configuration(folder)
    if kind == "blip-2":
        return _new_blip2(folder, config)
    model = _PATCH_MODELS[kind]
    own = config.get("vision_config", config)
    return _patches(model(model.config_class.from_dict(own)), grid)


def _configuration(folder: Path) -> tuple[dict[str, Any], str]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not a model configuration: {error}.") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "blip-2" and kind not in _PATCH_MODELS:
        raise InputError(
            f"{file}: its model_type is {kind!r}; a vision encoder is 'blip-2' (a BLIP-2 "
            f"checkpoint) or one of {', '.join(_PATCH_MODELS)}."
        )
    return config, str(kind)


def _patches(vit: PreTrainedModel, grid: int) -> PatchEncoder:
    side = vit.config.image_size // vit.config.patch_size
    if not 0 <= grid <= side:
        raise InputError(f"backbone: visual_grid is between 0 and {side} here, not {grid}.")
    return PatchEncoder(vit, side, grid)


def _new_blip2(folder: Path, content: dict[str, Any]) -> QueryEncoder:
    try:
        config = Blip2Config.from_dict(content)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder / 'config.json'} is not a BLIP-2 configuration: {error}."
        ) from error
    vit, qformer = Blip2VisionModel(config.vision_config), Blip2QFormerModel(config.qformer_config)
    queries = torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size)
    return QueryEncoder(vit, qformer, queries)


def _load_blip2(folder: Path, content: dict[str, Any]) -> QueryEncoder:
    made = _new_blip2(folder, content)
    for module, prefix in ((made.vit, "vision_model."), (made.qformer, "qformer.")):
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
    made.query_tokens = torch.nn.Parameter(queries[""].float())
    return made
