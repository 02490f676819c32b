"""A frozen base whose decoder layers are divided among processes (torch's `fully_shard`, FSDP2).

Every process keeps a part of each layer's weights. They are gathered while the layer computes, in
the forward pass and again in the backward pass, so all processes have to make the same passes:
`Backbone.passes` says how many. What is trained stays whole in every process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from recbole_tpad.backbones.base import TOWERS, Backbone
from recbole_tpad.errors import InputError


def divide(backbone: Backbone, device: torch.device) -> None:
    """Divide the frozen decoder layers among all processes of the default group, in place.

    Args:
        backbone: as loaded; layers move to the device one at a time, all else stays where it is.
        device: of this process.

    Raises:
        InputError: a kind without such layers.
    """
    decoder = backbone.decoder()
    layers = decoder_layers(decoder) if decoder is not None else []
    if decoder is None or not layers:
        raise InputError(
            f"FSDP is asked for, but {type(backbone).__name__} has no frozen decoder layers to "
            "divide. Use a plain multi-process configuration (MULTI_GPU, MULTI_CPU)."
        )
    trained = _tower_parameters(backbone)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers:
        for parameter in layer.parameters():
            if parameter not in trained:
                parameter.requires_grad_(False)  # their gradients must not be gathered
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    # A common root with nothing of its own: layers are fetched while earlier ones compute.
    inside = {p for layer in layers for p in layer.parameters()}
    rest = {p for p in decoder.parameters() if p not in inside}
    fully_shard(decoder, mesh=mesh, ignored_params=trained | rest)
    backbone.divided = True


def decoder_layers(decoder: nn.Module) -> list[nn.Module]:
    """The layers of a decoder: what its direct lists of modules hold."""
    lists = [child for child in decoder.children() if isinstance(child, nn.ModuleList)]
    return [layer for modules in lists for layer in modules]


def _tower_parameters(backbone: Backbone) -> set[nn.Parameter]:
    towers = [backbone.tower_parameters(tower).values() for tower in TOWERS]
    return {parameter for tower in towers for parameter in tower}


def expected_bytes(backbone: Backbone, count: int) -> int:
    """Bytes of a whole backbone's parameters that each of `count` processes would hold of it.

    What does not divide evenly is padded, by less than a thousandth of a real model.
    """
    decoder = backbone.decoder()
    layers = decoder_layers(decoder) if decoder is not None else []
    trained = _tower_parameters(backbone)
    inside = {p for layer in layers for p in layer.parameters()} - trained
    shared = sum(p.numel() * p.element_size() for p in inside)
    return held_bytes(backbone) - shared + -(-shared // count)


def held_bytes(backbone: Backbone) -> int:
    """Bytes of a backbone's parameters in this process: of a divided one, this process's part."""
    found = 0
    for parameter in backbone.parameters():
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        found += own.numel() * own.element_size()
    return found
