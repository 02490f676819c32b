"""The fused passes over DIMO's tables: dropout's distribution, gradients by finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from recbole_tpad.recommenders import dimo_tables, propagation
from recbole_tpad.recommenders.dimo_tables import keep_mask, propagated_tables, read_tables
from recbole_tpad.recommenders.item_graph import Pattern
from recbole_tpad.recommenders.propagation import Propagation, SparseMatrix

N, D = 7, 3


@pytest.fixture
def tiny_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even the smallest tables into blocks of columns and pieces of rows."""
    for name, value in (("_COLUMNS", 2), ("_SMALL_TABLE", 0), ("_PIECE", 33), ("_CACHED", 50)):
        monkeypatch.setattr(propagation, name, value)
    monkeypatch.setattr(propagation, "_LARGE", 0)


def graph(n: int = N, seed: int = 4) -> Propagation:
    """Symmetric counts; the padding row and one item have no partners."""
    rng = np.random.default_rng(seed)
    counts = np.triu(rng.integers(0, 4, (n, n)), 1) * (rng.random((n, n)) < 0.6)
    counts[[0, 5]] = counts[:, [0, 5]] = 0
    torch.set_default_dtype(torch.float64)
    try:
        return Propagation(sparse.csr_matrix((counts + counts.T).astype(float)))
    finally:
        torch.set_default_dtype(torch.float32)


def dense_step(found: Propagation) -> torch.Tensor:
    pattern = (found.values.numpy(), found.col.numpy(), found.crow.numpy())
    return torch.from_numpy(sparse.csr_matrix(pattern, shape=(found.n, found.n)).toarray())


@pytest.mark.parametrize("dropout", [0.3, 0.05, 0.9])
def test_entries_are_kept_with_the_asked_probability_and_independently(dropout: float) -> None:
    torch.manual_seed(1)
    kept = keep_mask((1000, 203), dropout, torch.device("cpu")).double()
    spread = (dropout * (1 - dropout) / kept.numel()) ** 0.5
    assert abs(float(kept.mean()) - (1 - dropout)) < 5 * spread + 2**-16
    # Four entries come from one 64-bit draw: neighbours at every distance stay uncorrelated.
    flat = (kept - kept.mean()).flatten()
    for distance in (1, 2, 3, 4, 203):
        product = float((flat[:-distance] * flat[distance:]).mean()) / (dropout * (1 - dropout))
        assert abs(product) < 5 / len(flat) ** 0.5
    for column in range(4):
        share = float(kept.flatten()[column::4].mean())
        assert abs(share - (1 - dropout)) < 10 * spread + 2**-16


def test_the_seed_decides_the_mask() -> None:
    masks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        masks.append(keep_mask((50, 9), 0.5, torch.device("cpu")))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_the_mask_does_not_depend_on_how_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (2**22, 64):
        monkeypatch.setattr(dimo_tables, "_MASK_PIECE", size)
        torch.manual_seed(3)
        found.append(keep_mask((50, 9), 0.5, torch.device("cpu")))
    assert torch.equal(*found)


@pytest.mark.parametrize("two", [False, True])
def test_dropped_entries_are_zero_and_the_others_scaled(two: bool) -> None:
    torch.manual_seed(0)
    own = torch.rand(N, D) + 1
    modality = torch.rand(N, D) + 1 if two else None
    trained = torch.tensor([False, True, True, False, True, True, True])
    found = propagated_tables(own, modality, trained, 0.5, graph(), 0)
    plain = own * trained[:, None]
    plain[0] = 0
    if modality is not None:
        plain = torch.cat([plain, modality], dim=1)
        plain[0] = 0
    assert bool(((found == 0) | torch.isclose(found, 2 * plain)).all())
    assert bool((found != 0).any())
    torch.testing.assert_close(propagated_tables(own, modality, trained, 0.0, graph(), 0), plain)


def check_tables(two: bool, dropout: float) -> None:
    trained = torch.tensor([False, True, True, False, True, True, True])
    found = graph()

    def call(own: torch.Tensor, modality: Any = None) -> torch.Tensor:
        torch.manual_seed(5)  # the same mask at every evaluation
        return propagated_tables(own, modality, trained, dropout, found, 3)

    inputs = [torch.randn(N, D, dtype=torch.float64, requires_grad=True) for _ in range(1 + two)]
    assert torch.autograd.gradcheck(call, inputs)
    torch.manual_seed(5)
    kept = keep_mask((N, D * len(inputs)), dropout, torch.device("cpu")) / (1 - dropout)
    real = torch.cat([t.clone() for t in inputs], dim=1).detach()
    real[~trained, :D] = 0
    real[0] = 0
    expected = torch.matrix_power(dense_step(found), 3) @ (real * (kept if dropout else 1))
    torch.testing.assert_close(call(*inputs), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("two", [False, True])
def test_propagated_tables_and_their_gradients(two: bool, dropout: float) -> None:
    check_tables(two, dropout)


@pytest.mark.parametrize("two", [False, True])
def test_propagated_tables_in_pieces(two: bool, tiny_pieces: None) -> None:
    like = torch.empty(0, dtype=torch.float64)
    assert len(propagation.column_blocks(N, D, like)) == 2
    assert len(propagation.row_pieces(N, 2, like, propagation._PIECE)) == 4
    check_tables(two, 0.4)


def test_tables_beyond_any_cache_keep_their_columns_together(
    tiny_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(propagation, "_LARGE_BLOCK", 0)
    like = torch.empty(0, dtype=torch.float64)
    assert propagation.column_blocks(N, D, like) == [slice(0, D)]
    check_tables(True, 0.4)


def test_a_table_without_gradient_gets_none() -> None:
    own = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    modality = torch.randn(N, D, dtype=torch.float64)
    everything = torch.ones(N, dtype=torch.bool)
    propagated_tables(own, modality, everything, 0.0, graph(), 2).sum().backward()
    expected = torch.matrix_power(dense_step(graph()), 2).sum(0)
    expected[0] = 0
    assert own.grad is not None
    torch.testing.assert_close(own.grad, expected[:, None].expand(N, D))


def matrix(dense: np.ndarray) -> SparseMatrix:
    rows, columns = dense.nonzero()
    crow = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=N))])
    torch.set_default_dtype(torch.float64)
    try:
        return SparseMatrix(Pattern(crow, columns, dense[rows, columns]))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("pieces", [False, True])
def test_gradients_of_what_a_step_reads(pieces: bool, request: pytest.FixtureRequest) -> None:
    if pieces:
        request.getfixturevalue("tiny_pieces")
    rng = np.random.default_rng(2)
    weights = np.triu(rng.random((N, N)) * (rng.random((N, N)) < 0.4), 1)
    weights[3] = 0  # an item without partners
    strangers = (np.tril(rng.random((N, N)), -1) > 0.4).astype(float)
    items = torch.tensor([1, 4, 4, 0, 6])
    table = torch.randn(N, 2 * D, dtype=torch.float64, requires_grad=True)

    def call(table: torch.Tensor) -> tuple[torch.Tensor, ...]:
        reads = read_tables(table, items, D, matrix(weights), matrix(strangers))
        return reads.table * 1.0, reads.rows, reads.cooccurrence

    assert torch.autograd.gradcheck(call, [table])


def test_a_zero_row_has_cosine_zero_and_no_gradient() -> None:
    everyone = np.ones((N, N)) - np.eye(N)
    table = torch.randn(N, D, dtype=torch.float64)
    table[2] = 0
    table.requires_grad_()
    losses = read_tables(
        table, torch.tensor([1]), D, matrix(everyone / (N - 1)), matrix(everyone)
    ).cooccurrence
    # Item 2: its own cosine and all those with the others are 0.
    assert float(losses[2].detach()) == pytest.approx(np.log10(1 + (N - 1)))
    losses.sum().backward()
    assert table.grad is not None
    assert bool(torch.isfinite(table.grad).all())
    assert float(table.grad.abs().max()) < 10
