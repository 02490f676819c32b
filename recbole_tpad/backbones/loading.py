"""Loads a composed backbone from Hugging Face folders or hub ids: safetensors, no remote code."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Blip2Config,
    Blip2QFormerModel,
    Blip2VisionModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from recbole_tpad.backbones.composed import ComposedBackbone, LoraSettings, VisionEncoder
from recbole_tpad.backbones.prompts import PromptTemplate
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.files import sha256_file
from recbole_tpad.settings import at_least, from_mapping

_SHA256 = re.compile("[0-9a-f]{64}")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class BackboneSettings:
    """Which backbone, as in the generator's YAML.

    Attributes:
        kind: 'composed' (folders or hub ids) or 'tiny' (made from the catalogue).
        vision: BLIP-2 checkpoint: local folder or hub id.
        language_model: causal LM: local folder or hub id.
        vision_revision, language_model_revision: commit to pin a hub id to.
        dtype: of the base weights.
        max_text_tokens: budget of an item's text.
        readout: 'at' or 'before' the summary token.
        gist_mask: answers see only the summary tokens.
        prompt: prompt parts that differ from the default.
        lora: LoRA settings that differ from the default.
        tiny: sizes of the tiny backbone that differ from the default.
    """

    kind: str = "composed"
    vision: str = ""
    language_model: str = ""
    vision_revision: str | None = None
    language_model_revision: str | None = None
    dtype: str = "float32"
    max_text_tokens: int = 96
    readout: str = "at"
    gist_mask: bool = False
    prompt: dict[str, str] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    tiny: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least("backbone", 1, max_text_tokens=self.max_text_tokens)
        choices = {
            "kind": ("composed", "tiny"),
            "dtype": tuple(DTYPES),
            "readout": ("at", "before"),
        }
        for key, known in choices.items():
            value = str(getattr(self, key))
            if value not in known:
                raise InputError(
                    f"Unknown backbone {key} '{value}'.{nearest(value, known)} "
                    f"Known: {', '.join(known)}."
                )


def resolve(name: str, revision: str | None) -> Path:
    """Return the local folder of a checkpoint, fetching a hub id's safetensors if need be.

    Raises:
        InputError: neither a folder nor a reachable hub id.
    """
    path = Path(name)
    if path.is_dir():
        return path
    try:
        fetched = snapshot_download(
            name,
            revision=revision,
            allow_patterns=["*.json", "*.safetensors", "*.model", "tokenizer*"],
        )
    except Exception as error:  # the hub client raises many kinds; each means "not to be had"
        raise InputError(
            f"'{name}' is neither a local folder nor a model that can be fetched from the hub "
            f"({type(error).__name__}). Check the spelling, access rights and network, or give a "
            "local folder."
        ) from error
    return Path(fetched)


def checkpoint_files(settings: BackboneSettings) -> dict[str, str]:
    """Name → SHA-256 of every file a composed backbone is made from: what its vectors depend on.

    In the hub's cache a large file is a link to a blob that is named by its hash; it is not read.

    Raises:
        InputError: a part that is neither a folder nor can be fetched.
    """
    found = {}
    for part, name, revision in (
        ("vision", settings.vision, settings.vision_revision),
        ("language_model", settings.language_model, settings.language_model_revision),
    ):
        folder = resolve(name, revision)
        for file in sorted(folder.iterdir()):
            if file.suffix in (".safetensors", ".json", ".model"):
                blob = file.resolve().name
                hashed = file.is_symlink() and _SHA256.fullmatch(blob)
                found[f"{part}/{file.name}"] = blob if hashed else sha256_file(file)
    return found


def _tensors(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Read the tensors whose names start with `prefix` from a folder's safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(
            f"{folder} has no .safetensors file. Pickled checkpoints are not read; convert it."
        )
    found = {}
    for file in files:
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 (not a mapping)
                if name.startswith(prefix):
                    found[name.removeprefix(prefix)] = stream.get_tensor(name)
    return found


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
        tensors = _tensors(folder, prefix)
        result = module.load_state_dict(tensors, strict=False)
        if result.missing_keys or not tensors:
            raise InputError(
                f"{folder} lacks {len(result.missing_keys)} tensors of BLIP-2's {prefix[:-1]}, "
                f"first: {', '.join(result.missing_keys[:3])}."
            )
    queries = _tensors(folder, "query_tokens")
    if "" not in queries:
        raise InputError(f"{folder} lacks the tensor query_tokens: not a BLIP-2 checkpoint.")
    return VisionEncoder(vit, qformer, queries[""].float())


def load_composed(folder_or_ids: BackboneSettings) -> ComposedBackbone:
    """Load a composed backbone.

    Raises:
        InputError: a part that is absent, not safetensors, or of another architecture.
    """
    settings = folder_or_ids
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
