"""The co-occurrence kernel against loops."""

from __future__ import annotations

import numpy as np
import torch

from recbole_tpad.recommenders.embedding_kernel import (
    CooccurrenceKernel,
    EmbeddingKernel,
    similarity_kernel,
)

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


def test_the_kernel_and_its_scores_equal_loops() -> None:
    expected = kernel_by_loops(0.3, 3)
    found = similarity_kernel(ROWS, TRAINED, 0.3, 3).toarray()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    counts = np.zeros((N, N))
    for session in SESSIONS:
        for a, x in enumerate(session):
            for b, y in enumerate(session):
                counts[x, y] += a != b and x != y
    context = torch.tensor([[1, 2, 0], [6, 0, 0], [8, 0, 0]])
    scores = EmbeddingKernel(SESSIONS, ROWS, TRAINED, 0.3, 3).log_scores(context).numpy()
    for row, items in enumerate(([1, 2], [6], [8])):
        mass = sum(counts[i] for i in items) @ expected
        share = mass / mass.sum() if mass.sum() else mass
        np.testing.assert_allclose(scores[row], np.log1p(N * share), atol=1e-4)
    assert not scores[2].any()  # an item without sessions says nothing
    assert scores[:2, 8].max() > 0  # but it can be reached


def test_plain_cooccurrence_and_a_cold_kernel_are_one() -> None:
    context = torch.tensor([[2, 0], [8, 0]])
    # Item 2's partners: 1 twice in one session and once in another, 3, 4, 5 once each.
    share = np.array([[0, 3, 0, 1, 1, 1, 0, 0, 0], [0] * N]) / 6
    for kernel in (
        CooccurrenceKernel(SESSIONS, N),
        EmbeddingKernel(SESSIONS, ROWS, TRAINED, 1e-3, N),
    ):
        scores = kernel.log_scores(context).numpy()
        np.testing.assert_allclose(scores, np.log1p(N * share), atol=1e-4)
