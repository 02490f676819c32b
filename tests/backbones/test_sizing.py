"""What is counted without weights, against the real thing and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_native import write_native
from transformers import AutoTokenizer, Blip2Config, LlamaConfig

from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.backbones.loading import load_backbone
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.backbones.sizing import count_step, empty_backbone, parameter_count, vision_flops
from recbole_tpad.data import Item


def composed(folder: Path, **changes: object) -> BackboneSettings:
    return BackboneSettings(
        vision=str(folder / "vision"),
        language_model=str(folder / "language_model"),
        **changes,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("kind", ["composed", "native"])
def test_parameters_are_those_of_the_loaded_backbone(
    kind: str, checkpoint: Path, items: list[Item], tmp_path: Path
) -> None:
    settings = composed(checkpoint)
    if kind == "native":
        folder = write_native(tmp_path / "native", "smolvlm", items)
        settings = BackboneSettings(kind="native", model=str(folder))
    real, empty = load_backbone(settings, items), empty_backbone(settings)
    assert all(p.is_meta for p in empty.parameters())
    assert parameter_count(empty) == parameter_count(real)
    for tower in ("knowledge", "transition"):
        wanted = {n: p.shape for n, p in real.tower_parameters(tower).items()}
        assert {n: p.shape for n, p in empty.tower_parameters(tower).items()} == wanted


@pytest.mark.slow
def test_llama_2_7b_and_blip_2(checkpoint: Path, tmp_path: Path) -> None:
    Blip2Config().save_pretrained(tmp_path / "vision")
    LlamaConfig(num_hidden_layers=32).save_pretrained(tmp_path / "language_model")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "language_model")
    tokenizer.save_pretrained(tmp_path / "language_model")
    empty = empty_backbone(composed(tmp_path, dtype="bfloat16"))
    assert isinstance(empty, ComposedBackbone)
    language = parameter_count(empty) - parameter_count(empty.vision)
    towers = sum(parameter_count_of(empty, t) for t in ("knowledge", "transition"))
    assert language - towers == 6_738_415_616  # as published
    batch, length = 2, 160
    work = count_step(empty, batch, length, 1, checkpointing=False)
    # 2N a token forward; 4N with the gradients through frozen weights (LoRA's own aside).
    inner = 6_738_415_616 - 2 * 32000 * 4096
    assert work.forward_flops / (2 * inner * batch * length) == pytest.approx(1, abs=0.05)
    assert work.flops / (4 * inner * batch * length) == pytest.approx(1, abs=0.05)
    less = count_step(empty, batch, length, 1, checkpointing=True)
    assert less.activation_bytes < work.activation_bytes / 10


def parameter_count_of(backbone: ComposedBackbone, tower: str) -> int:
    return sum(p.numel() for p in backbone.tower_parameters(tower).values())


def test_counts_in_a_process_that_looks_for_nan(checkpoint: Path) -> None:
    empty = empty_backbone(composed(checkpoint))
    assert isinstance(empty, ComposedBackbone)
    expected = count_step(empty, 2, 8, 3, checkpointing=False)
    with torch.autograd.set_detect_anomaly(True):
        assert count_step(empty, 2, 8, 3, checkpointing=False) == expected
        assert torch.is_anomaly_enabled()


def test_activations_are_what_a_step_keeps(checkpoint: Path) -> None:
    settings = composed(checkpoint)
    empty = empty_backbone(settings)
    assert isinstance(empty, ComposedBackbone)
    real = load_backbone(settings, [])
    assert isinstance(real, ComposedBackbone)
    batch, length = 5, 40
    counted = count_step(empty, batch, length, 7, checkpointing=False).activation_bytes
    own = {p.untyped_storage().data_ptr() for p in real.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    words = torch.randn(batch, length, real.word_dim, requires_grad=True)
    decoder = real.language_model.get_base_model().get_decoder()
    with (
        real.training_only(real.tower_parameters("knowledge")),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
    ):
        hidden = decoder(inputs_embeds=words, use_cache=False).last_hidden_state
        real.language_model.get_output_embeddings()(hidden.flatten(0, 1)[:7]).float().sum()
    found = sum(s.nbytes() for s in kept.values())
    assert counted == pytest.approx(found, rel=0.25)


def test_the_vision_encoders_work(checkpoint: Path) -> None:
    empty = empty_backbone(composed(checkpoint))
    assert isinstance(empty, ComposedBackbone)
    # One layer on 5 tokens of width 16: q, k, v, o and an MLP twice as wide; the Q-Former besides.
    least = 2 * 5 * (4 * 16 * 16 + 2 * 16 * 32)
    assert least < vision_flops(empty) < 8 * least
