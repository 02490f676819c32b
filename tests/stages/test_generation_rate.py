"""The Generation Rate by hand, and its controls against backbones that look or read."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from recbole_tpad.backbones.base import Prediction
from recbole_tpad.data import Item
from recbole_tpad.stages.generation_rate import measure, score, words


def test_words() -> None:
    assert words(["Red  rim", "red", "T-shirt"]) == ["red", "rim", "t", "shirt"]
    assert words(["赤い 急須"]) == ["赤い", "急須"]
    assert words([]) == words([" , "]) == []


def test_by_hand() -> None:
    gold = [(["red", "round rim"], "Mugs"), (["blue"], "Bowls"), (["green"], "Jugs")]
    said = [(["Red", "round"], "mugs"), (["yellow"], "Mugs"), ([], "Jugs")]
    found = score(said, gold)
    assert found.items == 3
    assert found.recall == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert found.f1 == pytest.approx((2 * 2 / (2 + 3) + 0 + 0) / 3)
    assert found.exact == 0
    assert found.empty == pytest.approx(1 / 3)
    assert found.category_accuracy == pytest.approx(2 / 3)


def test_perfect_answers_in_any_order_and_case() -> None:
    gold = [(["red", "round"], "Mugs"), (["blue"], "")]
    found = score([(["ROUND", "red"], "MUGS"), (["blue"], "anything")], gold)
    assert (found.recall, found.f1, found.exact, found.category_accuracy) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("gold_words", "counted"), [(1, 1), (2, 3), (3, 4), (4, 6)], ids=lambda n: str(n)
)
def test_at_most_half_as_many_words_again_count(gold_words: int, counted: int) -> None:
    gold = [f"gold{k}" for k in range(gold_words)]
    for wrong_first in range(counted + 2):
        said = [f"wrong{k}" for k in range(wrong_first)] + gold
        hits = max(0, min(gold_words, counted - wrong_first))
        found = score([(said, "")], [(gold, "")])
        assert found.recall == pytest.approx(hits / gold_words)
        assert found.f1 == pytest.approx(2 * hits / (min(len(said), counted) + gold_words))


def test_printing_the_vocabulary_does_not_win() -> None:
    rng = random.Random(0)
    vocabulary = [f"w{k}" for k in range(100)]
    gold = [(rng.sample(vocabulary, 4), "") for _ in range(400)]
    printed = score([(vocabulary, "")] * len(gold), gold)
    assert printed.recall == pytest.approx(6 / 100, abs=0.02)  # its 6 first words, no more
    half = score([(words_[:2], "") for words_, _ in gold], gold)
    assert half.recall == 0.5


def test_items_without_gold() -> None:
    found = score([(["red"], "Mugs"), (["red"], "")], [([], "Mugs"), ([], "")])
    assert (found.items, found.recall, found.category_accuracy) == (0, 0.0, 1.0)
    assert score([(["red"], "x")], [(["red"], "")]).category_accuracy is None
    assert score([], []).items == 0


ITEMS = [
    Item(f"i{k}", f"t{k}", "", f"c{k}", "", None, None, (f"colour{k}", f"shape{k}"))
    for k in range(9)
]


@dataclass
class Inputs:
    """All that `measure` reads of a backbone's inputs."""

    items: list[Item]


class Answers:
    """Says the keywords of the image it sees, or of the text it reads."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.shown: list[tuple[int, int]] = []

    def use(self, tower: str) -> None:
        assert tower == "knowledge"

    def eval(self) -> None: ...

    def predict(
        self, inputs: Inputs, rows: torch.Tensor, *, visual_rows: torch.Tensor, max_new_tokens: int
    ) -> list[Prediction]:
        assert max_new_tokens > 0
        self.shown += list(zip(rows.tolist(), visual_rows.tolist(), strict=True))
        read = visual_rows if self.source == "image" else rows
        items = [inputs.items[r] for r in read.tolist()]
        return [Prediction(list(item.keywords), item.category) for item in items]


def measured(source: str, rows: list[int], seed: int = 0) -> tuple[dict[str, Any], Answers]:
    answers = Answers(source)
    found = measure(answers, Inputs(ITEMS), rows, seed=seed, batch=4)  # type: ignore[arg-type]
    return found, answers


def test_the_controls_tell_looking_from_reading() -> None:
    rows = [0, 2, 3, 5, 7, 8]
    looks, _ = measured("image", rows)
    reads, _ = measured("text", rows)
    assert looks["recall"] == reads["recall"] == 1
    assert looks["category_accuracy"] == 1
    assert looks["shuffled_images"] == looks["chance"] == 0
    assert reads["shuffled_images"] == 1
    assert reads["chance"] == 0


@pytest.mark.parametrize("count", [2, 3, 9])
@pytest.mark.parametrize("seed", range(5))
def test_nobody_is_shown_their_own_image(count: int, seed: int) -> None:
    rows = list(range(count))
    _, answers = measured("image", rows, seed)
    own, shuffled = answers.shown[:count], answers.shown[count:]
    assert own == [(r, r) for r in rows]
    assert [text for text, _ in shuffled] == rows
    assert sorted(image for _, image in shuffled) == rows
    assert all(text != image for text, image in shuffled)
