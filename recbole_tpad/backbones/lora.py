"""LoRA of a tower: its settings, and adapters of both towers on one base (peft)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from recbole_tpad.backbones.base import TOWERS
from recbole_tpad.errors import InputError, nearest


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """LoRA of a tower (TPAD: r=16, α=32, dropout .05 on q, k, v, o)."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise InputError(
                f"Impossible LoRA settings: rank {self.rank}, alpha {self.alpha}, dropout "
                f"{self.dropout}."
            )


def add_towers(
    model: PreTrainedModel, lora: LoraSettings, prefixes: Iterable[str] = ("",)
) -> PeftModel:
    """Put a LoRA adapter for every tower into a model, whose own weights stay as they are.

    Args:
        model: the base.
        lora: settings.
        prefixes: modules below which adapters go, as names with a dot at the end; all by default.

    Raises:
        InputError: a target module that the base does not have.
    """
    inside = [n for n, _ in model.named_modules() if n.startswith(tuple(prefixes))]
    names = {n.rpartition(".")[2] for n in inside}
    for target in lora.target_modules:
        if target not in names:
            raise InputError(
                f"backbone.lora: {type(model).__name__} has no module '{target}'."
                f"{nearest(target, names)}"
            )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[n for n in inside if n.rpartition(".")[2] in lora.target_modules],
    )
    adapted = get_peft_model(model, config, adapter_name=TOWERS[0])
    for tower in TOWERS[1:]:
        adapted.add_adapter(tower, config)
    return adapted


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Within the context the active adapter is part of the weights; then they are as before.

    Nothing changes in half precision: there the sum would be rounded, and the towers differ by
    less than that. Nor in layers that are divided among processes.
    """
    kept = []
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            if weight.dtype == torch.float32 and not isinstance(weight, DTensor):
                kept.append((layer, weight, weight.data))
                weight.data = weight.data.clone()
                layer.merge()
    try:
        yield
    finally:
        for layer, weight, data in kept:
            weight.data = data
            layer.merged_adapters.clear()


def adapter_parameters(model: nn.Module, tower: str) -> dict[str, nn.Parameter]:
    """``lora.…`` → parameter of a tower's adapter; equal names for all towers."""
    return {
        f"lora.{n.replace(f'.{tower}.', '.')}": p
        for n, p in model.named_parameters()
        if "lora_" in n and f".{tower}." in n
    }


def word_spread(words: torch.Tensor) -> float:
    """Standard deviation of word vectors, for the rows of new tokens; any number without data."""
    return 1.0 if words.is_meta else float(words.detach().float().std())
