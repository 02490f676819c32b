"""Stages on input that teaches nothing or is broken: named errors, or a stated result."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_stages import (
    ALIGNMENT,
    KNOWLEDGE,
    LOOP,
    TRANSITION,
    changed,
    inputs_of,
    names_of,
    weights,
)
from tiny_catalogue import load_backbone

from recbole_tpad.backbones.base import Inputs
from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.stages.alignment import train_alignment
from recbole_tpad.stages.inputs import encode_states
from recbole_tpad.stages.knowledge import train_knowledge
from recbole_tpad.stages.loop import Metrics
from recbole_tpad.stages.pairs import MetaPairs
from recbole_tpad.stages.signatures import alignment_warnings
from recbole_tpad.stages.transition import train_transition


@pytest.fixture
def backbone(checkpoint: Path) -> ComposedBackbone:
    return load_backbone(checkpoint)


def inputs_with_nan(backbone: ComposedBackbone, dataset: DatasetFolder, row: int) -> Inputs:
    """Inputs whose vision encoder gave one item's image a NaN."""
    place = sum(item.image is not None for item in dataset.items[:row])

    def spoil(_module: object, _pixels: object, features: torch.Tensor) -> torch.Tensor:
        spoiled = features.clone()
        spoiled[place, 0, 0] = float("nan")
        return spoiled

    hook = backbone.vision.register_forward_hook(spoil)
    inputs = inputs_of(backbone, dataset)
    hook.remove()
    return inputs


@pytest.mark.parametrize("stage", ["knowledge", "transition", "alignment"])
def test_an_items_nan_features_are_named_and_nothing_is_trained(
    backbone: ComposedBackbone, dataset: DatasetFolder, tmp_path: Path, stage: str
) -> None:
    teacher = encode_states(backbone, inputs_of(backbone, dataset), "transition")
    inputs = inputs_with_nan(backbone, dataset, 6)
    before = weights(backbone)

    def train() -> None:
        if stage == "knowledge":
            settings = replace(KNOWLEDGE, batch_size=14, holdout=0.0)
            train_knowledge(backbone, inputs, settings, tmp_path / "c", 0)
        elif stage == "transition":
            every = MetaPairs([list(range(14))], 14, (1,))
            many = replace(TRANSITION, pairs_per_step=200)
            train_transition(backbone, inputs, every, many, tmp_path / "c", 0)
        else:
            whole = replace(ALIGNMENT, batch_size=14)
            train_alignment(backbone, inputs, teacher, whole, tmp_path / "c", 0)

    with pytest.raises(InputError, match=r"states of the items i06 are not finite") as caught:
        train()
    assert f"'{stage}'" in str(caught.value)
    assert "checkpoint" in str(caught.value)
    tower = names_of(backbone, backbone.tower_parameters("transition"))
    # Stage 2a copies K(0) first; no step was made.
    assert changed(before, weights(backbone)) <= (tower if stage == "transition" else set())


@pytest.mark.parametrize(
    "sessions", [[[3, 5]], [[3, 5, 8]] * 20, [[4], [1], [3, 5]]], ids=["one", "identical", "short"]
)
@pytest.mark.parametrize(("kind", "chunk"), [("item", 0), ("item", 1), ("session", 0)])
def test_sessions_with_next_to_nothing_to_learn(
    backbone: ComposedBackbone,
    dataset: DatasetFolder,
    tmp_path: Path,
    sessions: list[list[int]],
    kind: str,
    chunk: int,
) -> None:
    # Every item of these sessions is a known partner of every other: no negative is left, the
    # loss is 0, and T stays K(0) instead of learning noise.
    pairs = MetaPairs(sessions, len(dataset.items), (1, 2))
    settings = replace(TRANSITION, input=kind, chunk=chunk)
    inputs = inputs_of(backbone, dataset)
    before = encode_states(backbone, inputs, "knowledge")
    loop = replace(LOOP, weight_decay=0.0)
    history, _ = train_transition(
        backbone, inputs, pairs, replace(settings, loop=loop), tmp_path / "c", 0
    )
    assert [m["loss"] for m in history] == [0.0] * LOOP.steps
    after = encode_states(backbone, inputs, "transition")
    for name, states in before.items():
        torch.testing.assert_close(after[name], states)


def align_to(
    teacher: float, checkpoint: Path, dataset: DatasetFolder, folder: Path, **changes: Any
) -> list[Metrics]:
    """Stage 2b long enough to be judged; T's states shrunk by a factor towards a constant."""
    backbone = load_backbone(checkpoint)
    inputs = inputs_of(backbone, dataset)
    states = encode_states(backbone, inputs, "transition")
    states = {n: s[:1] + teacher * (s - s[:1]) for n, s in states.items()}
    loop = replace(LOOP, steps=20, checkpoint_seconds=1e9)
    settings = replace(ALIGNMENT, loop=loop, batch_size=14, q_learning_rate=0.05, **changes)
    return train_alignment(backbone, inputs, states, settings, folder, 0).history


def warnings_of(history: list[Metrics], items: int) -> list[str]:
    return alignment_warnings(history, mi_lower="infonce", marginals="table", batch=14, items=items)


def test_an_upper_bound_that_vanishes_stops_a_run_that_aligns_nothing(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"was disentangled from z early.*gamma_lower is 0"):
        align_to(0.0, checkpoint, dataset, tmp_path / "a", gamma_lower=0.0)
    # With something to align it goes on, and the warning says why the bound vanished.
    history = align_to(0.0, checkpoint, dataset, tmp_path / "b")
    assert [m["upper_vanished"] for m in history if "upper_vanished" in m] == [1.0]
    assert "disentangled" in warnings_of(history, len(dataset.items))[0]


@pytest.mark.parametrize("gamma_lower", [0.0, 1.0])
def test_a_healthy_run_is_not_accused(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path, gamma_lower: float
) -> None:
    history = align_to(1.0, checkpoint, dataset, tmp_path / "a", gamma_lower=gamma_lower)
    assert [m["upper_vanished"] for m in history if "upper_vanished" in m] == [0.0]
    assert warnings_of(history, len(dataset.items)) == []


def one_item(dataset: DatasetFolder, backbone: ComposedBackbone) -> Inputs:
    inputs = backbone.inputs(dataset.items[:1], torch.device("cpu"))
    inputs.freeze()
    return inputs


@pytest.mark.parametrize("mi_lower", ["infonce", "mine", "soft"])
def test_a_catalogue_of_one_item(
    backbone: ComposedBackbone, dataset: DatasetFolder, tmp_path: Path, mi_lower: str
) -> None:
    inputs = one_item(dataset, backbone)
    train_knowledge(backbone, inputs, KNOWLEDGE, tmp_path / "k", 0)
    with pytest.raises(InputError, match="no pair of different items"):
        MetaPairs([[0, 0], [0]], 1, (1,))
    teacher = encode_states(backbone, inputs, "knowledge")
    settings = replace(ALIGNMENT, mi_lower=mi_lower)
    history = train_alignment(backbone, inputs, teacher, settings, tmp_path / "c", 0).history
    assert all(math.isfinite(m["loss"]) and m["mi_lower"] == 0 for m in history)
