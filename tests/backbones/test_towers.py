"""Two towers on one base: what belongs to which, and how they part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_catalogue import load_backbone

from recbole_tpad.backbones.base import TOWERS, Inputs
from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.backbones.towers import load_tower, put
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.stages.inputs import encode_states


@pytest.fixture
def backbone(checkpoint: Path) -> ComposedBackbone:
    return load_backbone(checkpoint)


def test_every_parameter_belongs_to_one_owner(backbone: ComposedBackbone) -> None:
    groups = [backbone.base_parameters(), *(backbone.tower_parameters(t) for t in TOWERS)]
    ids = [id(p) for group in groups for p in group.values()]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in backbone.parameters()}
    assert set(groups[1]) == set(groups[2])


def test_a_copied_tower_gives_the_same_states(
    backbone: ComposedBackbone, items: list[Item]
) -> None:
    inputs = backbone.inputs(items, torch.device("cpu"))
    knowledge, transition = (encode_states(backbone, inputs, t) for t in TOWERS)
    assert all((knowledge[n] - transition[n]).abs().max() > 1e-3 for n in knowledge)
    backbone.copy_tower("knowledge", "transition")
    copied = encode_states(backbone, inputs, "transition")
    assert all(torch.equal(knowledge[n], copied[n]) for n in knowledge)
    # A copy, not the same memory.
    with torch.no_grad():
        for parameter in backbone.tower_parameters("transition").values():
            parameter.add_(1.0)
    again = encode_states(backbone, inputs, "knowledge")
    assert all(torch.equal(knowledge[n], again[n]) for n in knowledge)


def test_training_one_tower_leaves_the_rest(backbone: ComposedBackbone, items: list[Item]) -> None:
    backbone.copy_tower("knowledge", "transition")
    before = {n: p.detach().clone() for n, p in backbone.named_parameters()}
    own = backbone.tower_parameters("transition")
    inputs = backbone.inputs(items, torch.device("cpu"))
    backbone.use("transition")
    with backbone.training_only(own):
        assert {id(p) for p in backbone.parameters() if p.requires_grad} == {
            id(p) for p in own.values()
        }
        batch, visual, has_image = inputs.batch(torch.arange(len(items)))
        hidden = backbone.hidden(batch, visual, has_image)
        states = torch.stack(list(backbone.summaries(batch, hidden).values()))
        # Not their norm: a final RMS norm keeps that constant.
        (states * torch.randn_like(states)).sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in own.values())
        torch.optim.SGD(own.values(), lr=0.1).step()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not backbone.training
    owned = {id(p) for p in own.values()}
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, before[name]) != (id(parameter) in owned), name
    other = backbone.tower_parameters("knowledge")
    assert all(not torch.equal(own[n], other[n]) for n in own)


def test_a_new_adapter_changes_nothing(checkpoint: Path, items: list[Item]) -> None:
    fresh = load_backbone(checkpoint, stir=False)
    inputs = fresh.inputs(items, torch.device("cpu"))
    with_lora = encode_states(fresh, inputs, "knowledge")
    with fresh.language_model.disable_adapter():
        without = encode_states_of_the_base(fresh, inputs)
    assert all(torch.allclose(with_lora[n], without[n], atol=1e-6) for n in with_lora)


@torch.no_grad()
def encode_states_of_the_base(
    backbone: ComposedBackbone, inputs: Inputs
) -> dict[str, torch.Tensor]:
    return backbone.encode(inputs.batch(torch.arange(len(inputs.items)))).summaries


def test_weights_name_their_base(backbone: ComposedBackbone, tmp_path: Path) -> None:
    tower = backbone.tower_parameters("knowledge")
    file = tmp_path / "weights.safetensors"
    save_file({n: p.detach() for n, p in tower.items()}, file, metadata={"base": "a" * 64})
    weights = load_tower(file, "a" * 64)
    put(tower, weights)
    with pytest.raises(InputError, match="belongs to another base model"):
        load_tower(file, "b" * 64)
    name = next(n for n in tower if "lora_A" in n)
    before = {n: p.clone() for n, p in tower.items()}
    wider = {**{n: t + 1 for n, t in weights.items()}, name: torch.zeros(4, 48)}
    with pytest.raises(InputError, match=r"do not fit the base model: .*lora_A.*\(4, 48\) here"):
        put(tower, wider)
    with pytest.raises(InputError, match="no such tensor"):
        put(tower, {n: t for n, t in weights.items() if n != name})
    assert all(torch.equal(p, before[n]) for n, p in tower.items())
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read"):
        load_tower(file, "a" * 64)
