"""Composed backbones of other parts: SigLIP, CLIP; Qwen, SmolLM; precisions; odd tokenizers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_vision import ENCODERS, LANGUAGE_MODELS, PATCH, WIDTH, language_model, write_encoder
from transformers import AutoTokenizer

from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.backbones.loading import load_composed
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.backbones.vision_loading import load_image_processor, load_vision
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.stages.inputs import encode_states
from recbole_tpad.stages.knowledge import KnowledgeSettings, train_knowledge, trained_parameters
from recbole_tpad.stages.loop import LoopSettings

CPU = torch.device("cpu")
SIDE = 16 // PATCH


@pytest.mark.parametrize("kind", ENCODERS)
def test_patches_are_the_models_own(kind: str, tmp_path: Path) -> None:
    model = write_encoder(tmp_path, kind)
    encoder = load_vision(tmp_path)
    assert encoder.shape == (SIDE**2, WIDTH)
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        states = model(pixel_values=pixels).last_hidden_state
        states = states[:, 1:] if kind.startswith("clip") else states
        centred = states - states.mean(-1, keepdim=True)
        expected = centred / (states.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        assert torch.allclose(encoder(pixels), expected, atol=1e-5)


def test_patches_averaged_to_a_grid(tmp_path: Path) -> None:
    model = write_encoder(tmp_path, "siglip")
    encoder = load_vision(tmp_path, grid=2)
    assert encoder.shape == (4, WIDTH)
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        states = model(pixel_values=pixels).last_hidden_state.view(2, SIDE, SIDE, WIDTH)
        found = encoder(pixels)
    for place, (row, column) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2))):
        mean = states[:, row : row + 2, column : column + 2].mean((1, 2))
        expected = torch.nn.functional.layer_norm(mean, (WIDTH,))
        assert torch.allclose(found[:, place], expected, atol=1e-5)
    with pytest.raises(InputError, match="visual_grid is between 0 and 4 here, not 5"):
        load_vision(tmp_path, grid=5)


def test_preprocessing_is_the_checkpoints_own(tmp_path: Path) -> None:
    write_encoder(tmp_path, "siglip")
    grey = Image.new("RGB", (16, 16), (255, 255, 255))
    pixels = load_image_processor(tmp_path)(images=[grey], return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixels, torch.ones_like(pixels))  # SigLIP: mean .5, deviation .5
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="has no image processor"):
        load_image_processor(tmp_path)


def write_parts(
    folder: Path, checkpoint: Path, encoder: str, language: str, *, pad: bool = True
) -> dict[str, Any]:
    write_encoder(folder / "vision", encoder)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "language_model")
    model = language_model(language, len(tokenizer))
    model.save_pretrained(folder / "language_model")
    if not pad:
        tokenizer.pad_token = None
        tokenizer.bos_token = None
    tokenizer.save_pretrained(folder / "language_model")
    return {"vision": str(folder / "vision"), "language_model": str(folder / "language_model")}


def load(parts: dict[str, Any], **changes: Any) -> ComposedBackbone:
    torch.manual_seed(5)
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0}
    backbone = load_composed(BackboneSettings(**parts, lora=lora, **changes)).eval()
    with torch.no_grad():
        for parameter in backbone.tower_parameters("knowledge").values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone


@pytest.mark.parametrize(
    ("encoder", "language"),
    list(zip(ENCODERS, LANGUAGE_MODELS, strict=True)),
    ids=lambda v: str(v),
)
def test_train_save_load_encode(
    encoder: str, language: str, checkpoint: Path, items: list[Item], tmp_path: Path
) -> None:
    parts = write_parts(tmp_path, checkpoint, encoder, language, pad=False)
    backbone = load(parts, visual_grid=2)
    assert backbone.tokenizer.pad_token_id is None
    uneven = [replace(i, title=i.title * (1 + k % 4)) for k, i in enumerate(items)]
    inputs = backbone.inputs(uneven, CPU)
    rows = torch.arange(len(items))
    with torch.no_grad():
        right = backbone.encode(inputs.batch(rows)).summaries
        left = backbone.encode(inputs.batch(rows, left=True)).summaries
    assert all(torch.allclose(right[n], left[n], atol=1e-4) for n in right)
    together = backbone.predict(inputs, rows[:6], max_new_tokens=4)
    alone = [backbone.predict(inputs, row[None], max_new_tokens=4)[0] for row in rows[:6]]
    assert together == alone
    before = {n: t.clone() for n, t in backbone.base_parameters().items()}
    settings = KnowledgeSettings(LoopSettings(2, 1e-2, checkpoint_seconds=1e9), batch_size=8)
    inputs.freeze()
    train_knowledge(backbone, inputs, settings, tmp_path / "c", 0)
    assert all(torch.equal(t, before[n]) for n, t in backbone.base_parameters().items())
    again = load(parts, visual_grid=2)
    trained = trained_parameters(backbone, settings)
    with torch.no_grad():
        for name, parameter in again.tower_parameters("knowledge").items():
            parameter.copy_(trained[name])
    states, copied = (
        encode_states(b, b.inputs(uneven, CPU), "knowledge") for b in (backbone, again)
    )
    assert all(torch.equal(states[n], copied[n]) for n in states)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str, checkpoint: Path, items: list[Item], tmp_path: Path) -> None:
    parts = write_parts(tmp_path, checkpoint, "siglip", "llama")
    whole, half = load(parts), load(parts, dtype=dtype)
    assert {p.dtype for p in half.base_parameters().values()} == {getattr(torch, dtype)}
    assert {p.dtype for p in half.tower_parameters("knowledge").values()} == {torch.float32}
    wanted, found = (encode_states(b, b.inputs(items, CPU), "knowledge") for b in (whole, half))
    for name, states in found.items():
        assert states.dtype == torch.float32
        near = torch.nn.functional.cosine_similarity(states, wanted[name])
        assert near.min() > 0.99, name
        assert not torch.equal(states, wanted[name])
    settings = KnowledgeSettings(LoopSettings(3, 1e-2, checkpoint_seconds=1e9), batch_size=14)
    inputs = half.inputs(items, CPU)
    inputs.freeze()
    tower = {n: p.clone() for n, p in half.tower_parameters("knowledge").items()}
    history = train_knowledge(half, inputs, settings, tmp_path / "c", 0).history
    assert history[-1]["loss"] < history[0]["loss"]
    moved = [not torch.equal(p, tower[n]) for n, p in half.tower_parameters("knowledge").items()]
    assert all(moved)
