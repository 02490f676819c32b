"""The Generation Rate: does the knowledge tower say what is in the picture? (TPAD; methods §2)"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from recbole_tpad.backbones.base import Backbone, Inputs

LENGTH_CAP = 1.5


def words(phrases: Sequence[str]) -> list[str]:
    """Lower-cased words of keyword phrases, in order, without repeats.

    Lemmatisation is left to the annotator's normalisation: gold and generated words come from the
    same vocabulary here.
    """
    found = re.findall(r"\w+", " ".join(phrases).lower())
    return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class GenerationRate:
    """Means over held-out items; `recall` is the Generation Rate."""

    items: int
    recall: float
    f1: float
    exact: float
    category_accuracy: float | None
    empty: float


def score(
    generated: Sequence[tuple[Sequence[str], str]], gold: Sequence[tuple[Sequence[str], str]]
) -> GenerationRate:
    """Compare generated with gold answers, each (keywords, category).

    At most 1.5·|gold| generated words count, because plain recall is won by printing the
    vocabulary. Items without gold keywords count for the category only, and the reverse.
    """
    recalls, f1s, exacts, categories, empty = [], [], [], [], 0
    for (said, said_category), (true, true_category) in zip(generated, gold, strict=True):
        gold_words = set(words(true))
        if gold_words:
            said_words = set(words(said)[: int(LENGTH_CAP * len(gold_words))])
            hits = len(said_words & gold_words)
            recalls.append(hits / len(gold_words))
            f1s.append(2 * hits / (len(said_words) + len(gold_words)))
            exacts.append(float(said_words == gold_words))
            empty += not said_words
        if true_category:
            categories.append(float(said_category.lower() == true_category.lower()))

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else 0.0

    return GenerationRate(
        items=len(recalls),
        recall=mean(recalls),
        f1=mean(f1s),
        exact=mean(exacts),
        category_accuracy=mean(categories) if categories else None,
        empty=empty / len(recalls) if recalls else 0.0,
    )


def measure(
    backbone: Backbone,
    inputs: Inputs,
    rows: Sequence[int],
    *,
    seed: int,
    batch: int = 64,
    max_new_tokens: int = 32,
) -> dict[str, float | None]:
    """Generate answers for held-out items and score them beside two controls.

    `chance`: the generated answers against gold permuted across items. `shuffled_images`: answers
    generated while each item is shown another item's image; near `chance` means the tower looks,
    near `recall` means that it reads the text instead.

    Returns:
        recall, f1, exact, category_accuracy, empty, items, chance, shuffled_images.
    """
    backbone.use("knowledge")
    backbone.eval()
    own = torch.tensor(list(rows))
    generator = torch.Generator().manual_seed(seed)
    # A cyclic shift of a random order: nobody keeps their own.
    order = torch.randperm(len(own), generator=generator)
    other = torch.empty_like(own)
    other[order] = own[order.roll(1)]

    def answers(seen: torch.Tensor) -> list[tuple[list[str], str]]:
        found = []
        for part, images in zip(own.split(batch), seen.split(batch), strict=True):
            found += backbone.predict(
                inputs, part, visual_rows=images, max_new_tokens=max_new_tokens
            )
        return [(said.keywords, said.category or "") for said in found]

    def gold(these: torch.Tensor) -> list[tuple[Sequence[str], str]]:
        items = [inputs.items[r] for r in these.tolist()]
        return [(item.keywords, item.category) for item in items]

    said = answers(own)
    result: dict[str, float | None] = asdict(score(said, gold(own)))
    result["chance"] = score(said, gold(other)).recall
    result["shuffled_images"] = score(answers(other), gold(own)).recall
    return result
