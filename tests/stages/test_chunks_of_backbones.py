"""Gradient caching on every kind of backbone: the gradients are those of the whole graph."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny_catalogue import load_backbone as load_tiny
from tiny_native import write_native

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "backbones"))
from small_encoder import write_image_encoder, write_text_encoder

from recbole_tpad.backbones.base import Backbone
from recbole_tpad.backbones.loading import load_backbone
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.data import DatasetFolder
from recbole_tpad.objectives import pair_info_nce
from recbole_tpad.objectives.gradient_cache import Encode
from recbole_tpad.stages import transition

CPU = torch.device("cpu")
CHUNK = 4
Gradients = dict[str, torch.Tensor]


def build(
    kind: str, dropout: float, checkpoint: Path, items: DatasetFolder, made: Path
) -> Backbone:
    lora = {"rank": 4, "alpha": 8, "dropout": dropout}
    if kind == "composed":
        return load_tiny(checkpoint, lora=lora)
    if kind == "native":
        model = write_native(made / "native", "qwen2_vl", items.items)
        settings = BackboneSettings(kind="native", model=str(model), dtype="float32", lora=lora)
    else:
        words = " ".join(f"{i.title} {i.brand}" for i in items.items).lower().split()
        settings = BackboneSettings(
            kind="encoder",
            text_encoder=str(write_text_encoder(made / "text", words)),
            image_encoder=str(write_image_encoder(made / "image")),
            encoder={"transition": "both", "dropout": dropout},
        )
    torch.manual_seed(5)
    backbone = load_backbone(settings, items.items)
    with torch.no_grad():
        for parameter in backbone.tower_parameters("transition").values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return backbone


def with_graphs(
    encode: Encode, rows: torch.Tensor, *, chunk: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """`cached_states` as it would be with memory for everything."""
    parts = [encode(part) for part in rows.split(chunk)]
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["composed", "native", "encoder"])
def test_gradients_equal_the_whole_graphs(
    kind: str,
    dropout: float,
    checkpoint: Path,
    dataset: DatasetFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = build(kind, dropout, checkpoint, dataset, tmp_path)
    inputs = backbone.inputs(dataset.items, CPU)
    inputs.freeze()
    rows = torch.tensor([0, 2, 3, 5, 6, 8, 9, 11, 12, 13])
    pairs = torch.tensor([[0, 1], [2, 3], [4, 5], [9, 8], [7, 6]])
    backbone.use("transition")
    trained = backbone.trained_parameters("transition")
    read: list[int] = []
    encode = backbone.encode

    def watched(batch: object) -> object:
        found = encode(batch)  # type: ignore[arg-type]  # whatever the backbone's batches are
        read.append(len(found.summaries["text"]))
        return found

    monkeypatch.setattr(backbone, "encode", watched)

    def gradients(chunk: int) -> Gradients:
        torch.manual_seed(1)
        states = transition.encode_distinct(backbone, inputs, rows, chunk)
        known = torch.zeros(len(rows), len(rows), dtype=torch.bool)
        scale = torch.tensor(2.0)
        loss = torch.stack([pair_info_nce(s, pairs, scale, known) for s in states.values()]).sum()
        backbone.zero_grad()
        loss.backward()
        return {n: p.grad.clone() for n, p in trained.items() if p.grad is not None}

    with backbone.training_only(trained):
        cached = gradients(CHUNK)
        assert max(read) == CHUNK  # no more than a chunk of images and texts at a time
        assert sorted(read) == [2, 2, 4, 4, 4, 4]
        if dropout:
            monkeypatch.setattr(transition, "cached_states", with_graphs)
            whole = gradients(CHUNK)
        else:
            whole = gradients(0)
            assert max(read) == len(rows)
    assert set(cached) == set(whole)
    assert any(bool(g.any()) for g in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(cached[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
