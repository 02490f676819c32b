"""Size and work of a composed or native backbone, counted on the meta device: nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from recbole_tpad.backbones.checkpoints import resolve
from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.backbones.loading import load_tokenizer
from recbole_tpad.backbones.lora import LoraSettings
from recbole_tpad.backbones.native import NativeBackbone
from recbole_tpad.backbones.prompts import PromptTemplate
from recbole_tpad.backbones.settings import DTYPES, BackboneSettings
from recbole_tpad.backbones.vision_loading import empty_vision
from recbole_tpad.errors import InputError
from recbole_tpad.settings import from_mapping

META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class Work:
    """Of one forward and backward pass over a batch.

    Attributes:
        flops: floating point operations (a multiply-add is two), forward and backward.
        forward_flops: of the forward pass alone.
        activation_bytes: what the forward pass keeps for the backward pass.
    """

    flops: int
    forward_flops: int
    activation_bytes: int


def empty_backbone(settings: BackboneSettings) -> ComposedBackbone | NativeBackbone:
    """A backbone without weights, from configuration and tokenizer alone.

    Raises:
        InputError: a part that is absent or of another architecture.
    """
    dtype = DTYPES[settings.dtype]
    lora = from_mapping(LoraSettings, settings.lora, "backbone.lora")
    options: dict[str, Any] = {
        "lora": lora,
        "template": PromptTemplate.from_config(settings.prompt),
        "max_text_tokens": settings.max_text_tokens,
        "readout": settings.readout,
    }
    part, auto = ("language_model", AutoModelForCausalLM)
    if settings.kind == "native":
        part, auto = ("model", AutoModelForImageTextToText)
    name, revision = settings.parts()[part]
    folder = resolve(name, revision, weights=False)
    tokenizer = load_tokenizer(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with META:
            model: PreTrainedModel = auto.from_config(config, dtype=dtype)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no configuration of a {part}: {error}") from error
    with META:
        if settings.kind == "native":
            return NativeBackbone(model, _nothing, tokenizer, **options)
        vision = empty_vision(
            resolve(*settings.parts()["vision"], weights=False), settings.visual_grid
        )
        return ComposedBackbone(
            vision.to(dtype), _nothing, model, tokenizer, gist_mask=settings.gist_mask, **options
        )


def _nothing(**_: Any) -> dict[str, torch.Tensor]:
    return {}


def parameter_count(module: nn.Module) -> int:
    """Numbers in a module's parameters, each once."""
    return sum(p.numel() for p in {id(p): p for p in module.parameters()}.values())


def count_step(
    backbone: ComposedBackbone, batch: int, length: int, answers: int, *, checkpointing: bool
) -> Work:
    """Count the language model's part of a training step.

    Args:
        backbone: of `empty_backbone`.
        batch: items.
        length: padded tokens of a prompt with its answer.
        answers: answer tokens, on which the output head runs.
        checkpointing: activations are recomputed, layer by layer.
    """
    decoder = backbone.language_model.get_base_model().get_decoder()
    own = {p.untyped_storage()._cdata for p in backbone.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # alive, so that no address comes twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    words = torch.empty(batch, length, backbone.word_dim, dtype=decoder.dtype, device=META)
    words.requires_grad_()
    # A finished mask: making one would look at values, which there are none of.
    mask = torch.empty(batch, 1, length, length, dtype=decoder.dtype, device=META)
    places = torch.empty(batch, length, dtype=torch.int64, device=META)
    with backbone.training_only(backbone.tower_parameters("knowledge")):
        counter = FlopCounterMode(display=False)
        # Anomaly mode, which importing RecBole's models turns on, looks at values: there are none.
        no_values = torch.autograd.set_detect_anomaly(False)
        with no_values, counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            hidden = decoder(
                inputs_embeds=words, attention_mask=mask, position_ids=places, use_cache=False
            ).last_hidden_state
            head = backbone.language_model.get_output_embeddings()
            logits = head(hidden.flatten(0, 1)[:answers]).float()
            forward = counter.get_total_flops()
            logits.sum().backward()
    activations = sum(s.nbytes() for s in kept.values())
    if checkpointing:
        layers = int(backbone.language_model.config.num_hidden_layers)
        activations = activations // layers + layers * words.nbytes
    return Work(counter.get_total_flops(), forward, activations)


def vision_flops(backbone: ComposedBackbone) -> int:
    """Operations of the vision encoder on one image."""
    edge = backbone.vision.image_size
    pixels = torch.empty(1, 3, edge, edge, device=META)
    with FlopCounterMode(display=False) as counter:
        backbone.vision(pixels)
    return int(counter.get_total_flops())
