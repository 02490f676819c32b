"""A base whose layers two processes share computes what a whole one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_encoder import write_text_encoder
from tiny_catalogue import load_backbone
from tiny_native import write_native
from torch.distributed.tensor import DTensor
from two_processes import Found, by_two

from recbole_tpad.backbones import loading
from recbole_tpad.backbones.base import TOWERS, Backbone
from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.backbones.divided import decoder_layers, expected_bytes, held_bytes
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.generators.embed import embed
from recbole_tpad.objectives import average_gradients
from recbole_tpad.stages import processes as module
from recbole_tpad.stages.inputs import encode_states
from recbole_tpad.stages.processes import Processes, place, processes
from recbole_tpad.stages.transition import encode_distinct

CPU = torch.device("cpu")


def computed(backbone: Backbone, items: list[Item]) -> Found:
    """Loss, states and gradients, with unequal numbers of passes where there are two processes."""
    inputs = backbone.inputs(items, CPU)
    inputs.freeze()
    found: Found = {}

    def gradients(tower: str) -> dict[str, torch.Tensor]:
        parameters = backbone.trained_parameters(tower)
        average_gradients(list(parameters.values()))
        taken = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        backbone.zero_grad()
        return taken

    backbone.use("knowledge")
    with backbone.training_only(backbone.trained_parameters("knowledge")):
        encoded = backbone.encode(inputs.batch(torch.arange(5), answers=True))
        loss = encoded.answer_loss()
        assert loss is not None
        (loss + sum(s.square().mean() for s in encoded.summaries.values())).backward()
    found |= {"loss": loss.detach(), "knowledge": gradients("knowledge")}
    found["states"] = encode_states(backbone, inputs, "transition", batch=5)  # 14 items
    with backbone.training_only(backbone.trained_parameters("transition")):
        states = encode_distinct(backbone, inputs, torch.arange(9), chunk=4)
        torch.stack([s.square().mean() for s in states.values()]).sum().backward()
    found |= {"distinct": {n: s.detach() for n, s in states.items()}}
    return found | {"transition": gradients("transition")}


@pytest.mark.parametrize("kind", ["composed", "checkpointing", "bfloat16", "qwen2_vl", "smolvlm"])
def test_equals_a_whole_base(
    kind: str, items: list[Item], checkpoint: Path, tmp_path: Path
) -> None:
    if kind in ("qwen2_vl", "smolvlm"):
        lora = {"rank": 4, "alpha": 8, "dropout": 0.0}
        folder = write_native(tmp_path / "native", kind, items)
        settings = BackboneSettings(kind="native", model=str(folder), dtype="float32", lora=lora)

    def load() -> Backbone:
        if kind in ("qwen2_vl", "smolvlm"):
            torch.manual_seed(5)
            return loading.load_native(settings)
        dtype = "bfloat16" if kind == "bfloat16" else "float32"
        checkpointing = kind == "checkpointing"
        return load_backbone(checkpoint, dtype=dtype, activation_checkpointing=checkpointing)

    wanted = computed(place(load(), CPU), items)
    for found in by_two(tmp_path, lambda: computed(place(load(), CPU), items)):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_each_process_holds_its_part(checkpoint: Path, tmp_path: Path) -> None:
    def held() -> Found:
        backbone = place(load_backbone(checkpoint), CPU)
        layers = decoder_layers(backbone.decoder())  # type: ignore[arg-type]
        split = [p for layer in layers for p in layer.parameters() if isinstance(p, DTensor)]
        towers = [p for tower in TOWERS for p in backbone.tower_parameters(tower).values()]
        return {
            "layers": len(split),
            "numbers": sum(p.numel() for p in split),
            "own": sum(p.to_local().numel() for p in split),
            "trained": any(isinstance(p, DTensor) for p in towers),
            "bytes": held_bytes(backbone),
        }

    whole = load_backbone(checkpoint)
    layers = decoder_layers(whole.decoder())
    frozen = [p for layer in layers for n, p in layer.named_parameters() if "lora_" not in n]
    parts = by_two(tmp_path, held)
    for part in parts:
        assert part["layers"] == len(frozen)
        assert part["numbers"] == sum(p.numel() for p in frozen)
        assert part["own"] == part["numbers"] / 2
        assert not part["trained"]
        assert part["bytes"] == held_bytes(whole) - part["own"] * 4
        assert part["bytes"] == pytest.approx(expected_bytes(whole, 2), rel=0.001)


def test_answers_that_end_at_different_times(
    items: list[Item], checkpoint: Path, tmp_path: Path
) -> None:
    def said(backbone: ComposedBackbone, row: int, end: str | None) -> list[int]:
        if end is not None:
            backbone.tokenizer.eos_token = end
        batch = backbone.inputs(items, CPU).batch(torch.tensor([row]), left=True)
        return backbone.generate(*batch, max_new_tokens=6)[0]

    whole = load_backbone(checkpoint)
    endless = [said(whole, row, None) for row in range(len(items))]
    end = endless[0][0]
    other = next(row for row, ids in enumerate(endless) if end not in ids)
    token = str(whole.tokenizer.convert_ids_to_tokens(end))

    def work() -> Found:
        backbone = place(load_backbone(checkpoint), CPU)
        assert isinstance(backbone, ComposedBackbone)
        return {"ids": said(backbone, (0, other)[processes().rank], token)}

    first, second = by_two(tmp_path, work)
    assert (first["ids"], second["ids"]) == ([], endless[other])


def test_what_cannot_be_divided_is_refused(
    items: list[Item], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "processes", lambda: Processes(0, 2, divide=True))
    with pytest.raises(InputError, match="FSDP is asked for, but train_base is on"):
        place(load_backbone(checkpoint), CPU, train_base=True)
    encoder = write_text_encoder(tmp_path / "text", ["mug", "bowl"])
    settings = BackboneSettings(kind="encoder", text_encoder=str(encoder))
    with pytest.raises(InputError, match="EncoderBackbone has no frozen decoder layers"):
        place(loading.load_backbone(settings, items), CPU)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="generator 'random' does not divide its model"):
        embed(tmp_path, "shop", "random")
