"""Stage 1 and encoding with a divided base, where processes differ in what they have to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_catalogue import load_backbone, write_backbone, write_catalogue
from torch.distributed.tensor import DTensor
from two_processes import Found, by_two

from recbole_tpad.backbones.base import Backbone
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.stages import held_out, knowledge
from recbole_tpad.stages.encoding import EncodingSettings, encode_shards
from recbole_tpad.stages.knowledge import KnowledgeSettings, train_knowledge
from recbole_tpad.stages.loop import LoopSettings
from recbole_tpad.stages.probes import probe_knowledge
from recbole_tpad.stages.processes import place, processes
from recbole_tpad.store.shards import ShardFolder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return write_catalogue(tmp_path_factory.mktemp("data"), n_items=14).items


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, items: list[Item]) -> Path:
    return write_backbone(tmp_path_factory.mktemp("backbone") / "tiny", items)


def loaded(checkpoint: Path) -> Backbone:
    return place(load_backbone(checkpoint), CPU)


@pytest.mark.parametrize("batch", [1, 5])  # of one item the second process has no share
def test_stage_1(batch: int, items: list[Item], checkpoint: Path, tmp_path: Path) -> None:
    settings = KnowledgeSettings(
        LoopSettings(steps=3, learning_rate=1e-3),
        batch_size=batch,
        micro_batch_tokens=60,  # an item at a time
        holdout=0.3,
        evaluate_every=1,
        patience=2,
    )

    def train(folder: Path) -> Found:
        backbone = loaded(checkpoint)
        inputs = backbone.inputs(items, CPU)
        inputs.prepare(train_base=False)
        result = train_knowledge(backbone, inputs, settings, folder, seed=0)
        parameters = backbone.trained_parameters("knowledge")
        probes = probe_knowledge(backbone, inputs, [0, 1, 2], parameters)
        found = {n: p.detach().clone() for n, p in parameters.items()}
        losses = [m["loss"] for m in result.history]
        base = {n: p.detach() for n, p in backbone.base_parameters().items()}
        base = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in base.items()}
        return {"base": base, "weights": found, "losses": losses, "norms": probes.gradient_norms}

    wanted = train(tmp_path / "one")
    for found in by_two(tmp_path, lambda: train(tmp_path / "two")):
        torch.testing.assert_close(found.pop("base"), wanted["base"], rtol=0, atol=0)
        torch.testing.assert_close(found, {n: wanted[n] for n in found}, rtol=1e-4, atol=1e-4)


def test_a_loss_that_one_process_finds_infinite(
    items: list[Item], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names its items without the others, which cannot know."""
    backbone = loaded(checkpoint)
    monkeypatch.setattr(backbone, "divided", True)
    monkeypatch.setattr(backbone, "encode", lambda batch: pytest.fail("a pass of one process"))
    said = knowledge.name_items(backbone, backbone.inputs(items, CPU), torch.tensor([2, 5]))
    assert said == "items i02, i05"


def test_shards(items: list[Item], checkpoint: Path, tmp_path: Path) -> None:
    """Three shards of unequal numbers of batches, of which the first process has two."""
    settings = EncodingSettings(batch_tokens=120, shard_items=5)

    def encode(folder: Path) -> Found:
        backbone = loaded(checkpoint)
        ids = [item.item_id for item in items]
        shards = ShardFolder(folder, ids, backbone.widths, settings.shard_items)
        done = encode_shards(backbone, items, shards, settings, CPU)
        rows = {n: torch.from_numpy(a[:].astype("float32")) for n, a in shards.arrays.items()}
        return {"rows": rows, "shards": done.shards}

    wanted = encode(tmp_path / "one")
    found = by_two(tmp_path, lambda: encode(tmp_path / "two"))
    assert [part["shards"] for part in found] == [2, 1]
    torch.testing.assert_close(found[0]["rows"], wanted["rows"], rtol=1e-3, atol=1e-3)


def test_a_batch_that_does_not_fit(
    items: list[Item], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halving it would be a pass more in one process."""

    def full(batch: object) -> None:
        raise torch.OutOfMemoryError("full")

    backbone = loaded(checkpoint)
    monkeypatch.setattr(backbone, "divided", True)
    monkeypatch.setattr(backbone, "passes", lambda own: own)
    monkeypatch.setattr(backbone, "encode", full)
    shards = ShardFolder(tmp_path, [i.item_id for i in items], backbone.widths, 20)
    with pytest.raises(InputError, match=r"Take a smaller encoding\.batch_tokens"):
        encode_shards(backbone, items, shards, EncodingSettings(), CPU)


def test_the_end_is_one_process_affair(
    items: list[Item], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out losses that differ, as they may on GPUs, neither part processes nor hang them."""
    settings = KnowledgeSettings(
        LoopSettings(steps=8, learning_rate=1e-2),
        batch_size=4,
        holdout=0.3,
        evaluate_every=1,
        patience=2,
    )

    def train(folder: Path) -> Found:
        looks = iter(range(100))
        rank = processes().rank

        def differing(*_: object) -> float:  # better and better for the second process alone
            return 5.0 - next(looks) if rank else 5.0 + next(looks)

        monkeypatch.setattr(held_out, "held_out_loss", differing)
        backbone = loaded(checkpoint)
        inputs = backbone.inputs(items, CPU)
        inputs.prepare(train_base=False)
        result = train_knowledge(backbone, inputs, settings, folder, seed=0)
        parameters = backbone.trained_parameters("knowledge")
        weights = {n: p.detach().clone() for n, p in parameters.items()}
        return {"weights": weights, "steps": len(result.history), "stopped": result.stopped}

    first, second = by_two(tmp_path, lambda: train(tmp_path / "two"), seconds=100)
    assert first["stopped"]
    assert first["steps"] == second["steps"] == 4  # looks after steps 1, 2 and 3
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
