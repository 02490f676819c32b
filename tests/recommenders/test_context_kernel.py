"""Kernels over the context against loops."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from recbole_tpad.recommenders.context_kernel import (
    ContextKernel,
    similarity_kernel,
)
from recbole_tpad.recommenders.item_graph import cooccurrence_counts

N = 9
SESSIONS = [np.array(s) for s in ([1, 2, 3], [2, 4], [5, 1, 2, 1], [6, 7])]
TRAINED = np.isin(np.arange(N), np.concatenate(SESSIONS))
ROWS = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)


def kernel_by_loops(temperature: float, neighbours: int) -> np.ndarray:
    centred = ROWS.astype(np.float64) - ROWS[TRAINED].mean(0)
    found = np.zeros((N, N))
    for m in range(1, N):
        near = []
        for j in range(1, N):
            cosine = centred[m] @ centred[j]
            cosine /= np.linalg.norm(centred[m]) * np.linalg.norm(centred[j])
            near.append((cosine, j))
        for cosine, j in sorted(near, reverse=True)[:neighbours]:
            found[m, j] = np.exp((cosine - 1) / temperature)
    return found / np.maximum(found.sum(1, keepdims=True), 1e-300)


def counts_by_loops() -> np.ndarray:
    counts = np.zeros((N, N))
    for session in SESSIONS:
        for a, x in enumerate(session):
            for b, y in enumerate(session):
                counts[x, y] += a != b and x != y
    return counts


@pytest.mark.parametrize("decay", [1.0, 0.5])
@pytest.mark.parametrize("factors", ["F", "K", "FK"])
def test_scores_equal_loops(factors: str, decay: float) -> None:
    near = kernel_by_loops(0.3, 3)
    kernel = similarity_kernel(ROWS, TRAINED, 0.3, 3)
    np.testing.assert_allclose(kernel.toarray(), near, atol=1e-5)
    counts = counts_by_loops()
    sparse = {"F": cooccurrence_counts(SESSIONS, N), "K": kernel}
    dense = {"F": counts, "K": near, "FK": counts @ near}[factors]
    context = torch.tensor([[1, 2, 0], [6, 0, 0], [8, 0, 0], [2, 1, 2]])
    scores = ContextKernel(*(sparse[f] for f in factors)).log_scores(context, decay).numpy()
    for row, items in enumerate(([1, 2], [6], [8], [2, 1, 2])):
        mass = sum(decay ** (len(items) - 1 - p) * dense[i] for p, i in enumerate(items))
        share = mass / mass.sum() if mass.sum() else mass
        np.testing.assert_allclose(scores[row], np.log1p(N * share), atol=1e-4)
    if factors == "F":
        assert not scores[2].any()  # an item without sessions says nothing
        assert not scores[:, 8].any()  # and is not reached
    else:
        assert scores[:2, 8].max() > 0  # but what is like others can be reached


def test_a_cold_kernel_is_plain_cooccurrence() -> None:
    counts = cooccurrence_counts(SESSIONS, N)
    cold = similarity_kernel(ROWS, TRAINED, 1e-3, N)
    context = torch.tensor([[2, 0], [5, 6]])
    torch.testing.assert_close(
        ContextKernel(counts, cold).log_scores(context), ContextKernel(counts).log_scores(context)
    )


MEMORY = """
import numpy as np
from recbole_tpad.recommenders.context_kernel import nearest_trained, similarity_kernel

def peak_mb():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024

items = 10_000
rows = np.random.default_rng(2).normal(size=(items, 4)).astype(np.float32)
trained = np.ones(items, dtype=np.bool_)
similarity_kernel(rows[:100], trained[:100], 0.1, 8)
before = peak_mb()
if WHICH == "kernel":
    similarity_kernel(rows, trained, 0.1, 8)
else:
    nearest_trained(rows, np.arange(1, items), trained, 0.1, 8)
print(peak_mb() - before)
"""


@pytest.mark.parametrize("which", ["kernel", "trained"])
def test_similar_items_are_found_without_all_pairs_in_memory(which: str) -> None:
    """A few neighbours an item are kept; of all pairs, 381 MB, only a block is there at a time."""
    script = MEMORY.replace("WHICH", repr(which))
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(found.stdout) < 200
