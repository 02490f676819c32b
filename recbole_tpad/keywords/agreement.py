"""How far two annotators agree, and what agreement chance would give."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from recbole_tpad.data.normalisation import words
from recbole_tpad.errors import InputError

_SHIFTS = 20
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement over the items that both annotated, on lemmas of the keywords' words.

    Attributes:
        items: items with keywords from both; only_a, only_b: from one of them.
        jaccard: mean of |A ∩ B| / |A ∪ B|.
        recall_of_a: mean share of A's words that B has; recall_of_b the reverse.
        exact: share of the items with equal sets.
        chance: jaccard with B's answers permuted across the items; None for a single item.
        corrected: (jaccard − chance) / (1 − chance): 0 is chance, 1 is equality.
        words_of_a, words_of_b: words that mostly one of them uses, with the items that have them
            from one and not from the other.
    """

    items: int
    only_a: int
    only_b: int
    jaccard: float
    recall_of_a: float
    recall_of_b: float
    exact: float
    chance: float | None
    corrected: float | None
    words_of_a: tuple[tuple[str, int], ...]
    words_of_b: tuple[tuple[str, int], ...]

    def to_json(self) -> dict[str, object]:
        """The figures as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        def listed(found: tuple[tuple[str, int], ...]) -> str:
            return ", ".join(f"{word} {count:,}" for word, count in found) or "none"

        lines = [
            f"{self.items:,} items have keywords from both, {self.only_a:,} only from the first, "
            f"{self.only_b:,} only from the second",
            f"words in common (Jaccard): {self.jaccard:.3f}; equal sets: {self.exact:.1%}",
            f"of the first one's words the second has {self.recall_of_a:.1%}; the reverse "
            f"{self.recall_of_b:.1%}",
        ]
        if self.chance is not None and self.corrected is not None:
            lines.append(
                f"by chance (answers permuted across items): {self.chance:.3f}; corrected for "
                f"chance: {self.corrected:.3f}"
            )
        lines.append(f"said by the first only: {listed(self.words_of_a)}")
        lines.append(f"said by the second only: {listed(self.words_of_b)}")
        return "\n".join(lines)


def agreement(
    a: Mapping[str, Sequence[str]],
    b: Mapping[str, Sequence[str]],
    *,
    language: str = "en",
    seed: int = 0,
) -> Agreement:
    """Compare two annotations, each item id → keywords.

    The chance line is the mean over up to 20 cyclic shifts of a random order of the items, so
    nobody keeps their own answer.

    Raises:
        InputError: no item has keywords from both.
    """
    first = {i: frozenset(words(k, language)) for i, k in a.items()}
    second = {i: frozenset(words(k, language)) for i, k in b.items()}
    first, second = ({i: w for i, w in side.items() if w} for side in (first, second))
    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise InputError(
            f"No item has keywords from both ({len(first)} from the first, {len(second)} from the "
            "second). Are they of one data set?"
        )
    pairs = [(first[i], second[i]) for i in shared]
    by_chance = _chance(pairs, seed)
    jaccard = _mean([_jaccard(x, y) for x, y in pairs])
    corrected = None
    if by_chance is not None:
        corrected = (jaccard - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0
    return Agreement(
        items=len(shared),
        only_a=len(first) - len(shared),
        only_b=len(second) - len(shared),
        jaccard=jaccard,
        recall_of_a=_mean([len(x & y) / len(x) for x, y in pairs]),
        recall_of_b=_mean([len(x & y) / len(y) for x, y in pairs]),
        exact=_mean([float(x == y) for x, y in pairs]),
        chance=by_chance,
        corrected=corrected,
        words_of_a=_most([x - y for x, y in pairs]),
        words_of_b=_most([y - x for x, y in pairs]),
    )


def _jaccard(x: frozenset[str], y: frozenset[str]) -> float:
    return len(x & y) / len(x | y)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _most(found: Sequence[frozenset[str]]) -> tuple[tuple[str, int], ...]:
    counts = Counter(word for words_ in found for word in words_)
    return tuple(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:_SHOWN])


def _chance(pairs: Sequence[tuple[frozenset[str], frozenset[str]]], seed: int) -> float | None:
    count = len(pairs)
    if count < 2:
        return None
    rng = random.Random(seed)
    order = list(range(count))
    rng.shuffle(order)
    shifts = rng.sample(range(1, count), min(_SHIFTS, count - 1))
    return _mean(
        [
            _jaccard(pairs[order[at]][0], pairs[order[(at + shift) % count]][1])
            for shift in shifts
            for at in range(count)
        ]
    )
