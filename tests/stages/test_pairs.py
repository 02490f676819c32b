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
