"""Co-occurrence and popularity against loops over the training sessions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_data import planted_sessions

from recbole_tpad.recommenders.item_graph import never_together, top_partners
from recbole_tpad.recommenders.sessions import training_item_counts, training_sessions


def test_training_sessions_are_each_rebuilt_once(build: Any) -> None:
    _, _, loaders = build("Popularity")
    dataset = loaders.train._dataset
    users, sessions = training_sessions(dataset)
    tokens, names = dataset.field2id_token["item_id"], dataset.field2id_token["session_id"]
    found = [
        (str(names[u]), [str(tokens[i]) for i in s]) for u, s in zip(users, sessions, strict=True)
    ]
    assert found == planted_sessions()[0]
    expected = Counter(item for _, items in found for item in items)
    counts = training_item_counts(dataset)
    assert {str(tokens[i]): int(c) for i, c in enumerate(counts) if c} == dict(expected)


def test_cooccurrence_equals_loops(build: Any) -> None:
    _, model, loaders = build("CoOccurrence")
    _, sessions = training_sessions(loaders.train._dataset)
    rows = loaders.test.collate_fn(np.arange(len(loaders.test._dataset)))[0]
    scores = model.full_sort_predict(rows)
    for b, length in enumerate(rows["item_length"].tolist()):
        context = rows["item_id_list"][b]
        expected = np.zeros(model.n_items)
        for item in context[:length].tolist():
            for session in sessions:
                for here in session:
                    for other in session:
                        if here == item and other != item:
                            expected[other] += 1
        np.testing.assert_array_equal(scores[b].numpy(), expected)
    picked = model.predict(rows)
    torch.testing.assert_close(picked, scores[torch.arange(len(picked)), rows["item_id"]])


def test_the_content_kernel_reaches_items_without_sessions(build: Any) -> None:
    keys = {"kernel_weight": 0.5, "kernel_temperature": 0.2}
    _, plain, _ = build("CoOccurrence")
    _, model, loaders = build("CoOccurrence", item_embeddings="content", **keys)
    rows = loaders.test.collate_fn(np.arange(4))[0]
    kernel = model.full_sort_predict(rows) - plain.full_sort_predict(rows)
    unit = model.unit
    for b, length in enumerate(rows["item_length"].tolist()):
        context = rows["item_id_list"][b]
        near = torch.stack([((unit @ unit[i] - 1) / 0.2).exp() for i in context[:length]])
        torch.testing.assert_close(kernel[b], 0.5 * near.sum(0))
    cold = int(np.flatnonzero(loaders.train._dataset.field2id_token["item_id"] == "new")[0])
    assert bool((kernel[:, cold] > 0).all())


def test_popularity_scores_training_counts(build: Any) -> None:
    _, model, loaders = build("Popularity")
    rows = loaders.test.collate_fn(np.arange(3))[0]
    expected = training_item_counts(loaders.train._dataset)
    for row in model.full_sort_predict(rows):
        np.testing.assert_array_equal(row.numpy(), expected)


def test_strangers_in_a_dense_graph_are_the_whole_complement(shop: Path) -> None:
    from scipy import sparse

    n = 12
    met = np.ones((n, n)) - np.eye(n)
    met[0] = met[:, 0] = 0
    met[1, 2] = met[2, 1] = 0
    counts = sparse.csr_matrix(met)
    found = never_together(counts, 10, np.random.default_rng(0))
    dense = found.scipy().toarray()
    assert dense.sum() == 2
    assert dense[1, 2] == dense[2, 1] == 1
    assert top_partners(counts, 3).scipy().toarray()[3].nonzero()[0].tolist() == [1, 2, 4]
