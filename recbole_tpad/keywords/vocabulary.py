"""What the keywords of a data set look like as a vocabulary: can anything be learned from them?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from recbole_tpad.data import Item
from recbole_tpad.data.normalisation import words

_SHOWN = 15


@dataclass(frozen=True, slots=True)
class VocabularyReport:
    """Figures of a vocabulary; shares lie between 0 and 1.

    Attributes:
        items: items with keywords.
        keywords: different ones.
        words: different lemmas in them.
        per_item: mean number of keywords of an item that has any.
        used_once: share of the keywords that only one item has: nothing can be learned from them.
        in_text: mean share of an item's keyword words that its own title, brand, category,
            features or description holds: near 1, the keywords say nothing that the text does not.
        spellings: keywords that differ from another one only by case, form or order of words.
        common: the most frequent keywords and the number of items that have them.
        everywhere: keywords of more than half of the items: they tell nothing apart.
    """

    items: int
    keywords: int
    words: int
    per_item: float
    used_once: float
    in_text: float
    spellings: int
    common: tuple[tuple[str, int], ...]
    everywhere: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """The figures as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.items:
            return "no keywords"
        lines = [
            f"{self.keywords:,} different keywords of {self.words:,} words for {self.items:,} "
            f"items, {self.per_item:.1f} an item",
            f"used by one item only: {self.used_once:.0%} of the keywords",
            f"also in the item's own text: {self.in_text:.0%} of the words",
            "most frequent: " + ", ".join(f"{word} {count:,}" for word, count in self.common),
        ]
        if self.spellings:
            lines.append(f"other spellings of another keyword: {self.spellings:,}")
        if self.everywhere:
            lines.append(f"in more than half of the items: {', '.join(self.everywhere)}")
        return "\n".join(lines)


def vocabulary(
    keywords: Mapping[str, Sequence[str]], items: Sequence[Item], language: str = "en"
) -> VocabularyReport:
    """Describe keywords.

    Args:
        keywords: item id → keywords.
        items: the data set's items; those without keywords are left out.
        language: of the lemmas.
    """
    used = [(item, keywords[item.item_id]) for item in items if keywords.get(item.item_id)]
    counts = Counter(keyword for _, own in used for keyword in dict.fromkeys(own))
    forms = Counter(tuple(sorted(words([keyword], language))) for keyword in counts)
    in_text = []
    for item, own in used:
        said = words(own, language)
        text = [item.title, item.brand, item.category, item.description, *item.features]
        known = set(words([*text, *item.category_path], language))
        in_text.append(sum(word in known for word in said) / len(said) if said else 0.0)
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return VocabularyReport(
        items=len(used),
        keywords=len(counts),
        words=len({word for form in forms for word in form}),
        per_item=sum(len(own) for _, own in used) / len(used) if used else 0.0,
        used_once=sum(c == 1 for c in counts.values()) / len(counts) if counts else 0.0,
        in_text=sum(in_text) / len(in_text) if in_text else 0.0,
        spellings=sum(count - 1 for count in forms.values()),
        common=tuple(ranked[:_SHOWN]),
        everywhere=tuple(k for k, count in ranked if len(used) > 2 and count > len(used) / 2),
    )
