"""Co-occurrence and popularity against loops over the training sessions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import planted_sessions, write_data_set

from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.dataset import load_data
from recbole_tpad.bridge.runner import build_model
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.errors import InputError
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


def test_with_item_embeddings_counts_become_shares_and_similar_items_are_added(build: Any) -> None:
    _, plain, _ = build("CoOccurrence")
    _, model, loaders = build("CoOccurrence", item_embeddings="content")
    rows = loaders.test.collate_fn(np.arange(4))[0]
    counts = plain.full_sort_predict(rows)
    expected = torch.log1p(plain.n_items * counts / counts.sum(1, keepdim=True))
    torch.testing.assert_close(model.full_sort_predict(rows), expected)  # no weight before training
    model.score_adjustments.similarity_weight.fill_(0.5)
    kernel = model.score_adjustments.term("similarity_weight", rows["item_id_list"])
    torch.testing.assert_close(model.full_sort_predict(rows), expected + 0.5 * kernel)
    assert float(kernel.max()) > 0


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


def contexts_of(rows: Any) -> list[list[int]]:
    pairs = zip(rows["item_id_list"].tolist(), rows["item_length"].tolist(), strict=True)
    return [items[:length] for items, length in pairs]


def every_test_row(loaders: Any) -> Any:
    return loaders.test.collate_fn(np.arange(len(loaders.test._dataset)))[0]


@pytest.mark.parametrize("decay", [1.0, 0.6])
def test_ordered_cooccurrence_equals_loops(build: Any, decay: float) -> None:
    _, model, loaders = build("CoOccurrence", max_order=3, history_decay=decay)
    _, sessions = training_sessions(loaders.train._dataset)
    rows = every_test_row(loaders)
    scores = model.full_sort_predict(rows)
    for b, context in enumerate(contexts_of(rows)):
        expected = np.zeros(model.n_items)
        for steps, item in enumerate(reversed(context)):
            for session in sessions:
                for here, first in enumerate(session):
                    for order in (1, 2, 3):
                        if first == item and here + order < len(session):
                            after = session[here + order]
                            if after != item:
                                expected[after] += decay**steps / order
        np.testing.assert_allclose(scores[b].numpy(), expected, rtol=1e-6)


WEIGHTS = {
    "none": lambda place, length: 1.0,
    "linear": lambda place, length: place / length,
    "quadratic": lambda place, length: (place / length) ** 2,
    "div": lambda place, length: 1 / (length - place + 1),
    "log": lambda place, length: np.log10(1.7) / np.log10(length - place + 1.7),
}


def neighbours_by_hand(
    sessions: list[list[int]], context: list[int], keys: dict[str, Any], n_items: int
) -> np.ndarray:
    """SKNN's scores, with loops over the training sessions."""
    place = {item: position for position, item in enumerate(context, start=1)}  # the last one
    weigh = WEIGHTS[keys.get("position_weighting", "none")]
    vote = WEIGHTS[keys.get("vote_weighting", "none")]
    candidates = [k for k, s in enumerate(sessions) if set(s) & set(context)]
    compared = []
    for k in candidates[-keys["sample_size"] :]:
        shared = set(sessions[k]) & set(context)
        overlap = sum(weigh(place[i], len(context)) for i in shared)
        similarity = overlap / (len(set(context)) * len(set(sessions[k]))) ** 0.5
        compared.append((similarity, k, vote(max(place[i] for i in shared), len(context))))
    compared.sort(key=lambda found: (-round(found[0], 12), -found[1]))
    scores = np.zeros(n_items)
    for similarity, k, weight in compared[: keys["n_neighbours"]]:
        for item in set(sessions[k]):
            holding = sum(item in s for s in sessions)
            idf = 1 + keys.get("idf_weight", 0) * np.log(len(sessions) / holding)
            scores[item] += similarity * weight * idf
    return scores


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"position_weighting": "linear", "vote_weighting": "linear", "idf_weight": 5},
        {"position_weighting": "div", "vote_weighting": "quadratic"},
        {"position_weighting": "log", "vote_weighting": "div", "idf_weight": 1},
    ],
    ids=["SKNN", "V-SKNN", "div", "log"],
)
def test_session_neighbours_equal_loops(build: Any, keys: dict[str, Any]) -> None:
    keys = {"n_neighbours": 7, "sample_size": 15, **keys}
    _, model, loaders = build("SKNN", **keys)
    _, sessions = training_sessions(loaders.train._dataset)
    rows = every_test_row(loaders)
    scores = model.full_sort_predict(rows)
    for b, context in enumerate(contexts_of(rows)):
        expected = neighbours_by_hand([s.tolist() for s in sessions], context, keys, model.n_items)
        np.testing.assert_allclose(scores[b].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert scores.any()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"n_neighbours": 0}, "n_neighbours"),
        ({"n_neighbours": 50, "sample_size": 10}, "sample_size"),
        ({"position_weighting": "linaer"}, "Did you mean 'linear'"),
    ],
)
def test_bad_keys_of_session_neighbours(build: Any, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("SKNN", **keys)


def test_a_session_of_unknown_items_has_no_neighbours(build: Any) -> None:
    _, model, loaders = build("SKNN")
    rows = every_test_row(loaders)
    cold = int(np.flatnonzero(loaders.train._dataset.field2id_token["item_id"] == "new")[0])
    rows["item_id_list"][0] = 0
    rows["item_id_list"][0, 0] = cold
    rows["item_length"][0] = 1
    assert not model.full_sort_predict(rows)[0].any()


@pytest.mark.parametrize("model", ["CoOccurrence", "SKNN", "SPop", "RepeatLast", "Popularity"])
def test_permuting_held_out_targets_changes_no_score(tmp_path: Path, model: str) -> None:
    train, valid, test = planted_sessions()
    targets = [items[-1] for _, items in [*valid, *test]]
    scores = []
    for seed in (1, 2):
        order = np.random.default_rng(seed).permutation(len(targets))
        held_out = [
            (name, [*items[:-1], targets[k]])
            for (name, items), k in zip([*valid, *test], order, strict=True)
        ]
        path = tmp_path / str(seed)
        write_data_set(path, "shop", train, held_out[: len(valid)], held_out[len(valid) :])
        with numpy_names():
            config = SessionConfig(model, "shop", None, {"data_path": str(path)})
            loaders = load_data(config)
            found = build_model(config, loaders.train._dataset)
        assert not np.array_equal(order, np.arange(len(order)))
        scores.append(found.full_sort_predict(loaders.train.collate_fn(np.arange(60))))
    assert torch.equal(*scores)


def test_session_popularity_and_repeat_last(build: Any) -> None:
    _, spop, loaders = build("SPop")
    _, repeat, _ = build("RepeatLast")
    rows = every_test_row(loaders)
    popularity = training_item_counts(loaders.train._dataset)
    for b, context in enumerate(contexts_of(rows)):
        inside = Counter(context)
        expected = sorted(range(1, spop.n_items), key=lambda i: (-inside[i], -popularity[i], i))
        found = spop.full_sort_predict(rows)[b].numpy()
        assert sorted(range(1, spop.n_items), key=lambda i: (-found[i], i)) == expected
        scores = repeat.full_sort_predict(rows)[b].numpy()
        assert scores.argmax() == context[-1]
        others = [i for i in range(1, spop.n_items) if i != context[-1]]
        np.testing.assert_array_equal(scores[others], popularity[others])
