"""What asking costs: prices, estimates before the first answer, and a purse with a limit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from recbole_tpad.errors import InputError
from recbole_tpad.keywords.questions import Question

# Assumptions, replaced by measured means as soon as there are answers: four letters a token, one
# token for 28 x 28 pixels (Qwen-VL's merged patches), and the frame of a chat.
_LETTERS = 4
_PATCH = 28
_FRAME = 20
_ANSWER_TOKENS = 50


@dataclass(frozen=True, slots=True)
class Prices:
    """Per million tokens, in any currency; the budget is in the same."""

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        for price in (self.prompt, self.completion):
            if not 0 <= price < math.inf:
                raise InputError(f"A price must be a number of at least 0, not {price}.")

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Cost of so many tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


def prompt_tokens(question: Question) -> int:
    """Estimated tokens of a question, its image included."""
    patches = math.ceil(question.width / _PATCH) * math.ceil(question.height / _PATCH)
    return patches + math.ceil(len(question.text) / _LETTERS) + _FRAME


@dataclass(slots=True)
class Estimate:
    """What a job would take.

    Attributes:
        ask: questions without an answer (items of equal content count once).
        answered: items with an answer.
        problems: items that cannot be asked, by status.
        prompt_tokens, completion_tokens: of all questions to ask.
        measured: answers whose token counts the estimate rests on; 0: on assumptions.
        cost: at the given prices; None without prices.
        spent: cost of what is recorded already.
    """

    ask: int = 0
    answered: int = 0
    problems: dict[str, int] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    measured: int = 0
    cost: float | None = None
    spent: float = 0.0

    def __str__(self) -> str:
        basis = f"the mean of {self.measured:,} answers" if self.measured else "assumed sizes"
        lines = [
            f"{self.ask:,} questions to ask, {self.answered:,} items answered before",
            *(f"{count:,} items: {status}" for status, count in (self.problems or {}).items()),
            f"about {self.prompt_tokens:,} prompt and {self.completion_tokens:,} completion "
            f"tokens, by {basis}",
        ]
        if self.cost is None:
            lines.append("no cost: give --price_input and --price_output (per million tokens)")
        else:
            lines.append(f"about {self.cost:,.4f} at these prices; {self.spent:,.4f} spent before")
        return "\n".join(lines)


def estimate(
    to_ask: list[Question], measured: list[tuple[int, int]], prices: Prices | None
) -> tuple[int, int, float | None]:
    """Tokens and cost of questions.

    Args:
        to_ask: the questions, with the sizes of their images.
        measured: (prompt, completion) tokens of answers to questions of this kind.
        prices: None gives no cost.
    """
    if measured:
        count = len(measured)
        prompt = round(sum(p for p, _ in measured) / count * len(to_ask))
        completion = round(sum(c for _, c in measured) / count * len(to_ask))
    else:
        prompt = sum(prompt_tokens(question) for question in to_ask)
        completion = _ANSWER_TOKENS * len(to_ask)
    return prompt, completion, None if prices is None else prices.of(prompt, completion)


class Purse:
    """Lets requests through while the budget covers the most that those under way can cost.

    A request is taken to cost as much as the largest one so far; until there is an answer, one
    request at a time is let through.

    Args:
        prices: None: nothing is counted and everything is let through.
        budget: of all that is recorded in the cache; None: no limit.
        longest_answer: most completion tokens of one answer.
    """

    def __init__(self, prices: Prices | None, budget: float | None, longest_answer: int) -> None:
        if budget is not None and prices is None:
            raise InputError(
                "A budget needs prices: give --price_input and --price_output, per million tokens."
            )
        if budget is not None and not budget > 0:
            raise InputError(f"The budget must be above 0, not {budget}.")
        self._prices = prices
        self._budget = budget
        self._longest_answer = longest_answer
        self.reserved = 0.0

    def reserve(self, question: Question, spent: float, largest: int) -> float | None:
        """Set aside the most one request can cost; None where the budget does not cover it.

        Args:
            question: what is to be asked.
            spent: cost of everything recorded so far.
            largest: most prompt tokens of any recorded request; 0 before the first.
        """
        if self._prices is None:
            return 0.0
        if self._budget is not None and not largest and self.reserved:
            return None
        prompt = max(prompt_tokens(question), largest)
        most = self._prices.of(prompt, self._longest_answer)
        if self._budget is not None and spent + self.reserved + most > self._budget:
            return None
        self.reserved += most
        return most

    def settle(self, reserved: float, used_prompt: int, used_completion: int) -> float | None:
        """Give a reservation back; return what the request did cost, None without prices."""
        self.reserved -= reserved
        if self._prices is None:
            return None
        return self._prices.of(used_prompt, used_completion)
