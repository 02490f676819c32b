"""Every item once through a tower."""

from __future__ import annotations

import torch

from recbole_tpad.backbones.base import Backbone, Inputs
from recbole_tpad.progress import progress
from recbole_tpad.stages.processes import processes

_NAMED = 8  # items in a message


@torch.no_grad()
def encode_states(
    backbone: Backbone, inputs: Inputs, tower: str, batch: int = 128
) -> dict[str, torch.Tensor]:
    """Encode every item once with a tower.

    Batches are cut from the items sorted by length, so little is padded and the composition does
    not depend on anything but the items.

    Several processes (`processes`) encode a part each and share the result.

    Returns:
        Modality → (N, width) float32 states on the CPU, rows in item order.
    """
    backbone.use(tower)
    backbone.eval()
    order = torch.argsort(inputs.lengths(), stable=True)
    team = processes()
    states = {n: torch.zeros(len(order), width) for n, width in backbone.widths.items()}
    every = order.split(batch)
    own = every[team.rank :: team.count]
    spare = backbone.passes(len(own)) - len(own)
    for rows in progress(own, desc=f"encode ({tower})"):
        for name, values in backbone.encode(inputs.batch(rows)).summaries.items():
            states[name][rows] = values.float().cpu()
    for rows in every[:spare]:
        backbone.encode(inputs.batch(rows))  # others have one more, and need this process's part
    team.add_up(states.values(), inputs.device)
    return states


@torch.no_grad()
def name_items(backbone: Backbone, inputs: Inputs, rows: torch.Tensor, chunk: int = 32) -> str:
    """A failed step's items in words: those whose states are not finite, or else some of all.

    Args:
        backbone: with the tower in use that failed.
        rows: (U,) of the step.
        chunk: items encoded at a time.
    """
    bad = []
    # With a divided base a pass needs all processes, and perhaps only this one has failed.
    for part in () if backbone.divided else rows.split(chunk):
        states = backbone.encode(inputs.batch(part)).summaries.values()
        fine = torch.stack([torch.isfinite(s).all(1).cpu() for s in states]).all(0)
        bad += part[~fine].tolist()
    chosen = bad or rows.tolist()
    names = ", ".join(inputs.items[row].item_id for row in chosen[:_NAMED])
    names += ", …" if len(chosen) > _NAMED else ""
    return f"the states of the items {names} are not finite" if bad else f"items {names}"
