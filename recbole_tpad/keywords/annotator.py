"""What every annotator offers: items in, one answer an item out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from recbole_tpad.data import Item

Status = Literal[
    "ok",
    "empty",
    "no image",
    "unreadable",
    "too large",
    "outside",
    "refused",
    "malformed",
    "failed",
    "not asked",
]
# What a status means, in the order in which a table shows them.
STATUSES: dict[Status, str] = {
    "ok": "has keywords",
    "empty": "the annotator has none to give",
    "no image": "the item has no image file",
    "unreadable": "the image file does not decode",
    "too large": "the image file is larger than allowed",
    "outside": "the recorded image path leads out of the data set folder",
    "refused": "the endpoint refused the request",
    "malformed": "no usable answer after the repeated question",
    "failed": "no answer after the retries",
    "not asked": "the run ended before",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one item.

    Attributes:
        keywords: as the annotator gave them; empty unless `status` is ok.
        reason: why there are none.
    """

    item_id: str
    status: Status
    keywords: tuple[str, ...] = ()
    reason: str = ""


@dataclass(slots=True)
class Usage:
    """What a run asked and used.

    Attributes:
        asked: requests sent (or items generated for), repeated ones included.
        reused: items answered from the cache.
        prompt_tokens, completion_tokens: as the endpoint counts them.
        cost: at the given prices; None without prices.
        in_all: prompt_tokens, completion_tokens and cost of everything in the cache, earlier runs
            and unusable answers included.
    """

    asked: int = 0
    reused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    in_all: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    """All answers of a run.

    Attributes:
        answers: one an item, in any order; items without one count as not asked.
        usage: None for an annotator that asks nobody.
        stopped: why the run ended early; empty otherwise.
        unknown: answers in a source that are for no item of the data set.
    """

    answers: list[Answer] = field(default_factory=list)
    usage: Usage | None = None
    stopped: str = ""
    unknown: int = 0


class Annotator(Protocol):
    """One way to get keywords.

    Attributes:
        name: as on the command line.
        visual: whether it looks at the images.
    """

    name: str
    visual: bool

    def describe(self) -> dict[str, object]:
        """What the answers depend on, for the record beside them."""

    def annotate(self, items: Sequence[Item]) -> Outcome:
        """Answer for every item.

        Raises:
            InputError: nothing can be answered at all, with the remedy.
        """
