"""Every item once through a tower."""

from __future__ import annotations

import torch
from tqdm import tqdm

from recbole_tpad.backbones.base import Backbone, Inputs


@torch.no_grad()
def encode_states(
    backbone: Backbone, inputs: Inputs, tower: str, batch: int = 128
) -> dict[str, torch.Tensor]:
    """Encode every item once with a tower.

    Batches are cut from the items sorted by length, so little is padded and the composition does
    not depend on anything but the items.

    Returns:
        Modality → (N, width) float32 states on the CPU, rows in item order.
    """
    backbone.use(tower)
    backbone.eval()
    order = torch.argsort(inputs.lengths(), stable=True)
    states: dict[str, torch.Tensor] = {}
    for rows in tqdm(order.split(batch), desc=f"encode ({tower})", delay=3, leave=False):
        for name, values in backbone.encode(inputs.batch(rows)).summaries.items():
            table = states.setdefault(name, torch.empty(len(order), values.shape[1]))
            table[rows] = values.float().cpu()
    return states
