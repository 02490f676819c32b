"""Meta pairs against their definition, written out."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch

from recbole_tpad.errors import InputError
from recbole_tpad.stages.pairs import MetaPairs

ITEMS = 9
Pair = tuple[int, int]


def random_sessions(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [rng.choices(range(ITEMS), k=rng.randint(1, 7)) for _ in range(rng.randint(1, 15))]


def by_definition(sessions: list[list[int]], order: int) -> Counter[Pair]:
    return Counter(
        (s[t], s[t + order])
        for s in sessions
        for t in range(len(s) - order)
        if s[t] != s[t + order]
    )


def draws(pairs: MetaPairs, count: int, seed: int = 0) -> list[Pair]:
    drawn = pairs.sample(count, torch.Generator().manual_seed(seed))
    return [(int(a), int(b)) for a, b in drawn]


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("orders", [(1,), (1, 2, 3), (2, 5)])
def test_the_definition(seed: int, orders: tuple[int, ...]) -> None:
    sessions = random_sessions(seed)
    expected = {o: by_definition(sessions, o) for o in orders}
    every = sum(expected.values(), Counter())
    if not every:
        with pytest.raises(InputError, match="no pair of different items"):
            MetaPairs(sessions, ITEMS, orders)
        return
    pairs = MetaPairs(sessions, ITEMS, orders)
    assert len(pairs) == sum(every.values())
    known = np.zeros((ITEMS, ITEMS), dtype=bool)
    for a, b in every:
        known[a, b] = known[b, a] = True
    assert pairs.known_pairs.dtype == bool
    assert np.array_equal(pairs.known_pairs.toarray(), known)
    rows = np.array([4, 0, 7])
    assert np.array_equal(pairs.known(rows).numpy(), known[np.ix_(rows, rows)])
    drawn = draws(pairs, 3000)
    assert all(a != b for a, b in drawn)
    assert set(drawn) <= set(every)
    if len(every) < 30:
        assert set(drawn) == set(every)


def test_orders_are_drawn_by_one_over_o() -> None:
    # Items 0..5 in one long session: the order of a pair is the difference of its items.
    pairs = MetaPairs([list(range(6))], 6, (1, 2, 3))
    count = 60_000
    found = Counter(b - a for a, b in draws(pairs, count))
    total = 1 + 1 / 2 + 1 / 3
    for order in (1, 2, 3):
        assert found[order] / count == pytest.approx(1 / order / total, abs=0.01)
    first = Counter(a for a, b in draws(pairs, count) if b - a == 1)
    assert all(n / found[1] == pytest.approx(1 / 5, abs=0.02) for n in first.values())


def test_repeated_transitions_weigh_by_how_often_they_occur() -> None:
    found = Counter(draws(MetaPairs([[0, 1]] * 9 + [[2, 3]], 4, (1,)), 20_000))
    assert found[0, 1] / 20_000 == pytest.approx(0.9, abs=0.01)


def test_sessions_are_not_joined() -> None:
    pairs = MetaPairs([[0, 1], [2, 3], [4], [5, 6]], 7, (1, 2, 3))
    assert set(draws(pairs, 500)) == {(0, 1), (2, 3), (5, 6)}


def test_draws_depend_on_the_generator_only() -> None:
    pairs = MetaPairs(random_sessions(3), ITEMS, (1, 2))
    torch.manual_seed(1)
    first = draws(pairs, 50, seed=7)
    torch.manual_seed(2)
    assert draws(pairs, 50, seed=7) == first != draws(pairs, 50, seed=8)


@pytest.mark.parametrize("sessions", [[], [[1]], [[2, 2, 2]], [[1], [2], [3]]])
def test_nothing_to_learn_from(sessions: list[list[int]]) -> None:
    with pytest.raises(InputError, match="no pair of different items"):
        MetaPairs(sessions, 5, (1, 2, 3))


@pytest.mark.parametrize("orders", [(), (0,), (1, -2)])
def test_orders_are_positive(orders: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="orders"):
        MetaPairs([[0, 1]], 2, orders)


def test_contexts_are_what_came_before_the_anchor() -> None:
    sessions = random_sessions(11)
    pairs = MetaPairs(sessions, ITEMS, (1, 2))
    contexts, targets = pairs.sample_contexts(400, torch.Generator().manual_seed(3), 4)
    plain = pairs.sample(400, torch.Generator().manual_seed(3))
    assert torch.equal(contexts[:, 0], plain[:, 0])
    assert torch.equal(targets, plain[:, 1])
    possible = set()
    for s in sessions:
        for t in range(len(s)):
            back = [s[t - k] if k <= t else -1 for k in range(4)]
            for o in (1, 2):
                if t + o < len(s) and s[t] != s[t + o]:
                    possible.add((*back, s[t + o]))
    drawn = {(*c, t) for c, t in zip(contexts.tolist(), targets.tolist(), strict=True)}
    assert drawn <= possible
    assert len(drawn) > 0.8 * len(possible)


def test_popularity_balance_draws_rare_pairs_more_often() -> None:
    sessions = [[0, 1]] * 90 + [[2, 3]] * 10
    shares = []
    for balance in (0.0, 0.5, 1.0):
        pairs = MetaPairs(sessions, 4, (1,), popularity_balance=balance)
        found = Counter(p for seed in range(400) for p in draws(pairs, 8, seed))
        shares.append(found[2, 3] / sum(found.values()))
    # As they occur: 10 of 100. With weights ∝ popularity^−β both items: 10·10^−β of 90·90^−β + it.
    assert shares[0] == pytest.approx(0.1, abs=0.02)
    assert shares[0] < shares[1] < shares[2]
    assert shares[1] == pytest.approx(0.25, abs=0.06)


def test_many_blocks_of_positions() -> None:
    rng = random.Random(5)
    sessions = [rng.choices(range(50), k=rng.randint(1, 9)) for _ in range(1500)]
    pairs = MetaPairs(iter(sessions), 50, (1, 2, 3))
    every = sum((by_definition(sessions, o) for o in (1, 2, 3)), Counter())
    assert len(pairs) == sum(every.values())
    assert set(draws(pairs, 4000)) <= set(every)
    rows = np.array([3, 40, 17, 0, 49])
    expected = [[(a, b) in every or (b, a) in every for b in rows.tolist()] for a in rows.tolist()]
    assert pairs.known(rows).tolist() == expected


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pairs() -> None:
    import tracemalloc

    sessions = [list(range(k % 500, k % 500 + 40)) for k in range(4000)]
    peaks = []
    for orders in ((1,), tuple(range(1, 31))):
        tracemalloc.start()
        pairs = MetaPairs(iter(sessions), 600, orders)
        pairs.sample(256, torch.Generator().manual_seed(0))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        del pairs
    assert peaks[1] < 1.2 * peaks[0]
