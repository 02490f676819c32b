"""Stages of a few steps on the very small backbone, and what they changed."""

from __future__ import annotations

import torch

from recbole_tpad.backbones.base import Inputs
from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.data import DatasetFolder
from recbole_tpad.stages.alignment import AlignmentSettings
from recbole_tpad.stages.knowledge import KnowledgeSettings
from recbole_tpad.stages.loop import LoopSettings
from recbole_tpad.stages.pairs import MetaPairs
from recbole_tpad.stages.transition import TransitionSettings

LOOP = LoopSettings(steps=3, learning_rate=1e-2, checkpoint_seconds=0)
KNOWLEDGE = KnowledgeSettings(LOOP, batch_size=5)
TRANSITION = TransitionSettings(LOOP, pairs_per_step=12)
ALIGNMENT = AlignmentSettings(LOOP, batch_size=6, projection=8)
Weights = dict[str, torch.Tensor]


def inputs_of(backbone: ComposedBackbone, dataset: DatasetFolder) -> Inputs:
    inputs = backbone.inputs(dataset.items, torch.device("cpu"))
    inputs.freeze()
    return inputs


def weights(backbone: ComposedBackbone) -> Weights:
    return {n: t.detach().clone() for n, t in backbone.state_dict().items()}


def changed(before: Weights, after: Weights) -> set[str]:
    assert set(before) == set(after)
    return {n for n, t in before.items() if not torch.equal(t, after[n])}


def names_of(backbone: ComposedBackbone, parameters: dict[str, torch.nn.Parameter]) -> set[str]:
    ids = {id(p) for p in parameters.values()}
    return {n for n, p in backbone.named_parameters() if id(p) in ids}


def pairs_of(dataset: DatasetFolder) -> MetaPairs:
    row = {item_id: k for k, item_id in enumerate(dataset.item_ids)}
    sessions = [[row[i] for i in items] for _, items in dataset.train_sessions()]
    return MetaPairs(sessions, len(row), (1, 2, 3))
