"""Chunks with replayed random numbers equal the whole batch; so do slices of two processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from recbole_tpad.objectives import (
    average_gradients,
    cached_states,
    gather_slices,
    own_slice,
    pair_info_nce,
)

CPU = torch.device("cpu")
ITEMS, WIDTH = 23, 6
Encode = Callable[[torch.Tensor], dict[str, torch.Tensor]]


class Encoder(nn.Module):
    """Two modalities, with dropout whose draw depends on where the chunk begins."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(ITEMS, WIDTH)
        self.body = nn.Sequential(nn.Linear(WIDTH, 9), nn.Tanh(), nn.Dropout(dropout))
        self.text, self.visual = nn.Linear(9, 5), nn.Linear(9, 4)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.body(self.table(rows))
        return {"text": self.text(hidden), "visual": self.visual(hidden)}

    def loss(self, states: dict[str, torch.Tensor], block: int | None = None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(4)
        pairs = torch.randint(0, ITEMS, (40, 2), generator=generator)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        known = torch.zeros(ITEMS, ITEMS, dtype=torch.bool)
        known[pairs[:, 0], pairs[:, 1]] = known[pairs[:, 1], pairs[:, 0]] = True
        losses = [pair_info_nce(s, pairs, self.scale, known, block=block) for s in states.values()]
        return torch.stack(losses).sum()

    def gradients(self) -> dict[str, torch.Tensor]:
        found = {}
        for name, parameter in self.named_parameters():
            assert parameter.grad is not None, name
            found[name] = parameter.grad.clone()
        self.zero_grad()
        return found


def chunked_with_graph(encoder: Encode, rows: torch.Tensor, chunk: int) -> dict[str, torch.Tensor]:
    """The same chunks in the same order with all graphs kept: the reference for dropout."""
    parts = [encoder(part) for part in rows.split(chunk)]
    return {n: torch.cat([p[n] for p in parts]) for n in parts[0]}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("chunk", [1, 5, 23, 64])
@pytest.mark.parametrize("block", [None, 7])
def test_equals_the_whole_batch(dropout: float, chunk: int, block: int | None) -> None:
    encoder, rows = Encoder(dropout), torch.arange(ITEMS)
    torch.manual_seed(9)
    whole = chunked_with_graph(encoder, rows, chunk) if dropout else encoder(rows)
    loss = encoder.loss(whole)
    loss.backward()
    expected, after = encoder.gradients(), torch.get_rng_state()
    torch.manual_seed(9)
    states = cached_states(encoder, rows, chunk=chunk, device=CPU)
    cached = encoder.loss(states, block)
    cached.backward()
    assert cached.item() == pytest.approx(loss.item(), abs=1e-5)
    for name, gradient in encoder.gradients().items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5)
    # The replay leaves the stream of random numbers where the first pass left it.
    if dropout:
        assert torch.equal(torch.get_rng_state(), after)


def test_dropout_that_is_not_replayed_would_be_seen() -> None:
    encoder, rows = Encoder(0.4), torch.arange(ITEMS)
    gradients = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        encoder.loss(cached_states(encoder, rows, chunk=5, device=CPU)).backward()
        gradients.append(encoder.gradients()["body.0.weight"])
    assert not torch.allclose(*gradients, atol=1e-3)


def test_one_chunk_has_a_graph_at_a_time() -> None:
    encoder, rows = Encoder(0.0), torch.arange(ITEMS)
    with_graph: list[int] = []

    def watched(part: torch.Tensor) -> dict[str, torch.Tensor]:
        if torch.is_grad_enabled():
            with_graph.append(len(part))
        return encoder(part)  # type: ignore[no-any-return]

    loss = encoder.loss(cached_states(watched, rows, chunk=4, device=CPU))
    assert with_graph == []
    loss.backward()
    assert sorted(with_graph) == [3, 4, 4, 4, 4, 4]


def test_without_gradients_nothing_is_replayed() -> None:
    encoder = Encoder(0.0)
    with torch.no_grad():
        states = cached_states(encoder, torch.arange(ITEMS), chunk=4, device=CPU)
    torch.testing.assert_close(states, encoder(torch.arange(ITEMS)))
    assert not states["text"].requires_grad


def test_frozen_encoders_need_no_backward_pass() -> None:
    encoder = Encoder(0.0)
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    scale = nn.Parameter(torch.tensor(1.0))
    encoder.scale = scale
    encoder.loss(cached_states(encoder, torch.arange(ITEMS), chunk=4, device=CPU)).backward()
    assert scale.grad is not None


def two_processes(rank: int, rendezvous: str, output: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    encoder, rows = Encoder(0.0), torch.arange(ITEMS)
    states = cached_states(encoder, own_slice(rows), chunk=4, device=CPU)
    whole = {name: gather_slices(state, len(rows)) for name, state in states.items()}
    loss = encoder.loss(whole)
    loss.backward()
    average_gradients(list(encoder.parameters()))
    torch.save({"loss": loss.detach(), **encoder.gradients()}, f"{output}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    encoder = Encoder(0.0)
    loss = encoder.loss(encoder(torch.arange(ITEMS)))
    loss.backward()
    expected = {"loss": loss.detach(), **encoder.gradients()}
    arguments = (str(tmp_path / "rendezvous"), str(tmp_path / "result"))
    mp.spawn(two_processes, args=arguments, nprocs=2)
    for rank in (0, 1):
        found = torch.load(f"{arguments[1]}-{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
