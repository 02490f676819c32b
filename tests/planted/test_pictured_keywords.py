"""A world whose keywords only the pictures tell: stage 1 of the tiny preset has to look.

All items carry one and the same text. Controls: answers generated from other items' pictures, and
a tower trained on answers that were permuted across its training items.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_tpad.backbones.loading import load_composed
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.backbones.tiny import TinySettings, create_tiny
from recbole_tpad.data import Item
from recbole_tpad.demo.photographs import photograph
from recbole_tpad.presets import read_preset
from recbole_tpad.stages.generation_rate import measure
from recbole_tpad.stages.held_out import split_holdout
from recbole_tpad.stages.knowledge import KnowledgeSettings, train_knowledge
from recbole_tpad.stages.loop import LoopSettings

pytestmark = pytest.mark.slow
COLOURS = ("red", "yellow", "green", "turquoise", "blue", "black")
SHAPES = ("round", "square", "triangle")
ITEMS, STEPS = 480, 400


def world(folder: Path) -> list[Item]:
    """Items that differ by their photographs only; these vary in light, size and place, too."""
    rng = np.random.default_rng(3)
    made = []
    for k in range(ITEMS):
        colour, shape = str(rng.choice(COLOURS)), str(rng.choice(SHAPES))
        image = folder / f"{k}.png"
        photograph(rng, colour, shape, size=48, noise=6.0).save(image)
        made.append(Item(f"i{k}", "thing", "maker", "", "", None, image, (colour, shape)))
    return made


def rates(items: list[Item], gold: list[Item], folder: Path) -> dict[str, float | None]:
    """Train stage 1 on `items`; measure on the held-out ones of `gold`."""
    preset = read_preset("generator", "tpad-tiny")["backbone"]
    texts = ["thing maker " + " ".join(i.keywords) for i in items]
    folder.mkdir()
    create_tiny(folder, texts, TinySettings(**preset["tiny"]), seed=0)
    torch.manual_seed(0)
    backbone = load_composed(
        BackboneSettings(
            vision=str(folder / "vision"),
            language_model=str(folder / "language_model"),
            gist_mask=preset["gist_mask"],
            prompt=preset["prompt"],
        )
    )
    inputs = backbone.inputs(items, torch.device("cpu"))
    inputs.prepare(train_base=True)
    settings = KnowledgeSettings(
        LoopSettings(STEPS, 1.5e-3, checkpoint_seconds=1e9), batch_size=32, train_base=True
    )
    train_knowledge(backbone, inputs, settings, folder / "checkpoint", 0)
    inputs.freeze()
    _, holdout = split_holdout(inputs.has_answer, settings.holdout, 0)
    inputs.items = gold
    return measure(backbone, inputs, holdout, seed=0, max_new_tokens=12)


def test_the_pictures_are_read(tmp_path: Path) -> None:
    items = world(tmp_path)
    found = rates(items, items, tmp_path / "own")
    chance, shuffled = found["chance"], found["shuffled_images"]
    assert found["f1"] is not None
    assert chance is not None
    assert shuffled is not None
    assert found["f1"] >= 0.8
    assert abs(shuffled - chance) < 0.12
    training, _ = split_holdout(torch.ones(len(items), dtype=torch.bool), 0.1, 0)
    order = random.Random(1).sample(training, len(training))
    answers = dict(zip(training, order, strict=True))
    permuted = [
        replace(item, keywords=items[answers.get(k, k)].keywords) for k, item in enumerate(items)
    ]
    control = rates(permuted, items, tmp_path / "permuted")
    assert control["f1"] is not None
    assert control["f1"] < chance + 0.15
