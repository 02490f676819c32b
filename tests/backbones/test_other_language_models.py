"""Other causal language models than Llama: absolute positions, other module names."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_catalogue import load_backbone
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)
from two_processes import Found, by_two

from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.stages.inputs import encode_states
from recbole_tpad.stages.processes import place

CPU = torch.device("cpu")


def gpt2(vocabulary: int) -> tuple[PreTrainedModel, list[str]]:
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=400,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config), ["c_attn"]


def opt(vocabulary: int) -> tuple[PreTrainedModel, list[str]]:
    config = OPTConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=400,
        init_std=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return OPTForCausalLM(config), ["q_proj", "out_proj"]


@pytest.fixture(params=[gpt2, opt], ids=["gpt2", "opt"])
def backbone(request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path) -> ComposedBackbone:
    folder = tmp_path / "backbone"
    shutil.copytree(checkpoint / "vision", folder / "vision")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "language_model")
    torch.manual_seed(0)
    model, targets = request.param(len(tokenizer))
    model.save_pretrained(folder / "language_model")
    tokenizer.save_pretrained(folder / "language_model")
    with pytest.raises(InputError, match="has no module 'k_projection'"):
        load_backbone(folder, lora={"target_modules": ["k_projection"]})
    return load_backbone(folder, lora={"target_modules": targets}, gist_mask=True)


@torch.no_grad()
def test_padding_text_and_answers(backbone: ComposedBackbone, items: list[Item]) -> None:
    uneven = [replace(i, title=i.title * (1 + k % 3)) for k, i in enumerate(items)]
    other = [replace(i, title="another one altogether") for i in items]
    inputs, changed = backbone.inputs(uneven, CPU), backbone.inputs(other, CPU)
    rows = torch.arange(len(items))
    states = []
    for batch, visual, has_image in (
        inputs.batch(rows),
        inputs.batch(rows, left=True),
        inputs.batch(rows, answers=True),
        changed.batch(rows),
    ):
        hidden = backbone.hidden(batch, visual, has_image)
        states.append(backbone.summaries(batch, hidden))
    right, left, answered, retitled = states
    for name in ("visual", "text"):
        assert torch.allclose(right[name], left[name], atol=1e-4), name
        assert torch.allclose(right[name], answered[name], atol=1e-4), name
    assert torch.allclose(right["visual"], retitled["visual"], atol=1e-4)
    assert (right["text"] - retitled["text"]).abs().amax(-1).min() > 1e-3


def test_generation(backbone: ComposedBackbone, items: list[Item]) -> None:
    inputs = backbone.inputs(items, CPU)
    rows = torch.arange(len(items))
    together = backbone.generate(*inputs.batch(rows, left=True), max_new_tokens=4)
    alone = [
        backbone.generate(*inputs.batch(row[None], left=True), max_new_tokens=4)[0] for row in rows
    ]
    assert together == alone


def test_two_processes_share_the_layers(
    backbone: ComposedBackbone, items: list[Item], tmp_path: Path
) -> None:
    def states() -> Found:
        placed = place(backbone, CPU)
        return encode_states(placed, placed.inputs(items, CPU), "knowledge", batch=5)

    wanted = states()
    for found in by_two(tmp_path, states):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
