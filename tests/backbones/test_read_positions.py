"""The last layer works on the positions that are read, and gives there what it always gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    OPTConfig,
    OPTModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from recbole_tpad.backbones.readout import ReadPositions

COMMON = {
    "vocab_size": 20,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.5,
}
GROUPED = COMMON | {"num_key_value_heads": 2}
MADE: dict[str, tuple[bool, Callable[[], PreTrainedModel]]] = {
    # name → whether its queries are narrowed too, and the model
    "llama": (True, lambda: LlamaModel(LlamaConfig(**COMMON))),
    "llama grouped": (True, lambda: LlamaModel(LlamaConfig(**GROUPED))),
    "llama wide heads": (True, lambda: LlamaModel(LlamaConfig(**GROUPED, head_dim=10))),
    "mistral window": (True, lambda: MistralModel(MistralConfig(**GROUPED, sliding_window=4))),
    "qwen2": (True, lambda: Qwen2Model(Qwen2Config(**GROUPED))),
    "qwen3": (True, lambda: Qwen3Model(Qwen3Config(**GROUPED, head_dim=6))),
    "gpt2": (
        False,
        lambda: GPT2Model(GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=20)),
    ),
    "opt": (
        False,
        lambda: (
            OPTModel(
                OPTConfig(
                    vocab_size=20,
                    hidden_size=24,
                    ffn_dim=40,
                    word_embed_proj_dim=24,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                )
            ).decoder
        ),
    ),
}
B, L = 5, 9


def made(name: str, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    model = MADE[name][1]()
    model.set_attn_implementation(attention)
    return model.eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    words = torch.randn(B, L, 24, generator=generator)
    return words, torch.tensor([[0, 3], [8, 2], [5, 5], [1, 8], [7, 6]])


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, "padding"])
@pytest.mark.parametrize("name", MADE)
def test_what_is_read_is_what_it_was(name: str, mask: str | None) -> None:
    model = made(name)
    words, columns = inputs()
    shown = None if mask is None else torch.ones(B, L, dtype=torch.long)
    if shown is not None:
        shown[3, :1] = 0
        shown[0, 6:] = 0

    def states() -> torch.Tensor:
        found = model(inputs_embeds=words, attention_mask=shown, use_cache=False)
        last: torch.Tensor = found.last_hidden_state
        return last[torch.arange(B)[:, None], columns]

    before = states()
    read = ReadPositions(model)
    with read.only(columns):
        narrowed = states()
    torch.testing.assert_close(narrowed, before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states(), before, rtol=0, atol=0)  # nothing stays behind


@torch.no_grad()
@pytest.mark.parametrize("name", MADE)
def test_the_last_layers_queries_are_those_that_are_read(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(name)
    words, columns = inputs()
    queries: list[int] = []
    plain = functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        queries.append(query.shape[2])
        return plain(query, *more, **named)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    with ReadPositions(model).only(columns):
        model(inputs_embeds=words, use_cache=False)
    assert queries == [L, 2 if MADE[name][0] else L]


@torch.no_grad()
def test_eager_attention_stays_as_it_is() -> None:
    model = made("llama", "eager")
    words, columns = inputs()
    before = model(inputs_embeds=words, use_cache=False).last_hidden_state
    with ReadPositions(model).only(columns):
        found = model(inputs_embeds=words, use_cache=False).last_hidden_state
    rows = torch.arange(B)[:, None]
    torch.testing.assert_close(found[rows, columns], before[rows, columns])


@torch.no_grad()
def test_a_replaced_forward_and_the_shared_configuration_come_back() -> None:
    model = made("llama")
    words, columns = inputs()
    last: Any = model.layers[-1]
    calls = []
    inner = last.mlp.forward

    def moved(states: torch.Tensor) -> torch.Tensor:
        calls.append(states.shape)
        return inner(states)  # type: ignore[no-any-return]

    last.mlp.forward = moved
    config = copy.deepcopy(model.config.to_dict())
    with ReadPositions(model).only(columns):
        model(inputs_embeds=words, use_cache=False)
    with pytest.raises(RuntimeError), ReadPositions(model).only(columns):
        model(inputs_embeds=words[:, :, :3], use_cache=False)
    assert calls == [(B, 2, 24)]
    assert last.mlp.forward is moved
    assert last.self_attn.config is model.config
    assert model.config.to_dict() == config
    assert "forward" not in vars(last.self_attn.q_proj)
    assert not hasattr(last.self_attn, "read_columns")
