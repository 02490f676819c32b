"""Failure signatures of stage 1, and the probes that come with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_catalogue import load_backbone

from recbole_tpad.data import DatasetFolder
from recbole_tpad.stages.probes import knowledge_warnings, probe_knowledge

GOOD: dict[str, float | None] = {
    "recall": 0.7,
    "f1": 0.7,
    "chance": 0.2,
    "shuffled_images": 0.25,
    "empty": 0.0,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"recall": 0.1}, ["not above 0.2", "with shuffled images 0.250", "check the keywords"]),
        ({"recall": 0.05, "empty": 0.9}, ["90% of the answers empty", "have no keyword"]),
        ({"shuffled_images": 0.68}, ["reads and does not look", "0.680"]),
        ({"empty": 0.6}, ["60% of the generated answers have no keyword"]),
    ],
    ids=str,
)
def test_signatures(change: dict[str, float], words: list[str]) -> None:
    found = knowledge_warnings({**GOOD, **change})
    assert bool(found) == bool(words)
    assert all(any(word in line for line in found) for word in words)


def test_without_keywords() -> None:
    assert "No Generation Rate" in knowledge_warnings(None)[0]


def test_probes_say_what_was_read_and_disturb_nothing(
    checkpoint: Path, dataset: DatasetFolder
) -> None:
    backbone = load_backbone(checkpoint, lora={"dropout": 0.3})
    inputs = backbone.inputs(dataset.items, torch.device("cpu"))
    tower = backbone.tower_parameters("knowledge")
    before: dict[str, Any] = {n: t.clone() for n, t in backbone.state_dict().items()}
    state = torch.get_rng_state()
    found = probe_knowledge(backbone, inputs, [2, 5, 7], tower)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in backbone.state_dict().items())
    assert all(p.grad is None for p in tower.values())
    assert set(found.gradient_norms) == {
        "LoRA",
        "connector",
        "summary-token rows",
        "no-image vectors",
    }
    assert found.gradient_norms["connector"] > 0
    item = dataset.items[2]
    assert item.title in found.prompt
    assert found.prompt.count("<IMG_SUM>") == found.prompt.count("<TEXT_SUM>") == 1
    assert "<image x 3>" in found.prompt
    assert found.gold == f"{', '.join(item.keywords)}; {item.category}"
    assert item.category not in found.prompt
    text = str(found)
    assert "connector" in text
    assert "<IMG_SUM>" in text
