"""The item-modality reasoning prompt as token ids (TPAD §2; wording is an assumption).

A prompt is a list of ids in which negative values mark places that are not vocabulary tokens:
the visual tokens and the two summary tokens. The answer (visual keywords, category) comes after
the summary tokens, so by causality nothing in it can reach the exported states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby

import torch
from transformers import PreTrainedTokenizerBase

from recbole_tpad.data import Item
from recbole_tpad.data.item_text import check_item_text, item_text
from recbole_tpad.errors import InputError, nearest

VISUAL_TOKEN = -1
IMAGE_SUMMARY = -2
TEXT_SUMMARY = -3
IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """Named parts of the prompt, each tokenised by itself.

    `item_text` may use {title}, {brand}, {description}; never the category, which is an answer.
    """

    before_image: str = "Item image:"
    before_image_summary: str = ". Summarise the visual preference:"
    before_text: str = ". Item text:"
    item_text: str = "{title}, {brand}"
    before_text_summary: str = ". Summarise the textual preference:"
    before_answer: str = ". Visual keywords:"
    between_answers: str = ". Category:"

    @classmethod
    def from_config(cls, parts: dict[str, str]) -> PromptTemplate:
        """Build a template from a YAML mapping.

        Raises:
            InputError: an unknown part, or a placeholder that is not an item field (the category
                in particular: it is an answer).
        """
        known = [f.name for f in fields(cls)]
        for key in parts:
            if key not in known:
                raise InputError(
                    f"Unknown prompt part '{key}'.{nearest(key, known)} Known: {', '.join(known)}."
                )
            if not isinstance(parts[key], str):
                raise InputError(f"Prompt part '{key}' must be text, not {parts[key]!r}.")
        template = cls(**parts)
        check_item_text(
            template.item_text,
            ("title", "brand", "description"),
            why="The category is an answer, never a part of the prompt.",
        )
        return template

    def scaffold(self) -> str:
        """The fixed wording, for a tokenizer that is trained on the catalogue."""
        return " ".join(getattr(self, f.name) for f in fields(self) if f.name != "item_text")

    def text_of(self, item: Item) -> str:
        """Return the item's text with absent fields left out."""
        return item_text(item, self.item_text)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of one item: `ids`, then `answer`; `asks`: `ids` ends in the answer lead."""

    ids: list[int]
    answer: list[int]
    asks: bool = True


class PromptEncoder:
    """Tokenises items; the budget cuts the item's text, never a summary token.

    Args:
        tokenizer: the language model's tokenizer.
        template: the prompt's parts.
        visual_tokens: number of visual tokens an image takes.
        max_text_tokens: budget of the item's own text.

    Attributes:
        max_text_tokens: the same; may be raised for texts of several items.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
        visual_tokens: int,
        max_text_tokens: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._visual_tokens = visual_tokens
        self.max_text_tokens = max_text_tokens
        self._lead = self._ids(template.before_image)
        if tokenizer.bos_token_id is not None:
            self._lead = [tokenizer.bos_token_id, *self._lead]
        self._to_image_summary = self._ids(template.before_image_summary)
        self._to_text = self._ids(template.before_text)
        self._to_text_summary = self._ids(template.before_text_summary)
        self._to_answer = self._ids(template.before_answer)
        if tokenizer.eos_token_id is None:
            raise InputError("The tokenizer has no end-of-sequence token; answers could not end.")
        self._end: int = tokenizer.eos_token_id

    def _ids(self, text: str, *, from_catalogue: bool = False) -> list[int]:
        # A title that spells a control token, such as </s>, is text and must not act as one.
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=from_catalogue
        )["input_ids"]
        return ids

    @property
    def lead(self) -> list[int]:
        """Ids before the image."""
        return self._lead

    @property
    def answer_lead(self) -> list[int]:
        """Ids between the text summary token and the answer."""
        return self._to_answer

    def after_image(self, item: Item) -> list[int]:
        """Ids between the image and the text summary token, with both summary tokens."""
        return self._around(self._ids(" " + self._template.text_of(item), from_catalogue=True))

    def _around(self, text: list[int]) -> list[int]:
        return [
            *self._to_image_summary,
            IMAGE_SUMMARY,
            *self._to_text,
            *text[: self.max_text_tokens],
            *self._to_text_summary,
            TEXT_SUMMARY,
        ]

    def states_prompt(self, item: Item) -> list[int]:
        """Ids up to and including the text summary token: all that the exported states need."""
        return [*self._lead, *[VISUAL_TOKEN] * self._visual_tokens, *self.after_image(item)]

    def states_prompts(self, items: Sequence[Item]) -> list[list[int]]:
        """`states_prompt` of many items, tokenised in one call."""
        if not items:
            return []
        texts = [" " + self._template.text_of(item) for item in items]
        found = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
        before = [*self._lead, *[VISUAL_TOKEN] * self._visual_tokens]
        return [before + self._around(text) for text in found["input_ids"]]

    def answer(self, item: Item) -> list[int]:
        """The gold answer with the end-of-sequence token; empty where there is none."""
        text = self.answer_text(item)
        ids = self._ids(text, from_catalogue=True)
        return [*ids, self._end] if text else []

    def answer_text(self, item: Item) -> str:
        """The gold answer; empty when the item has neither keywords nor a category."""
        if not item.keywords and not item.category:
            return ""
        keywords = " " + ", ".join(item.keywords) if item.keywords else ""
        category = f"{self._template.between_answers} {item.category}" if item.category else ""
        return keywords + category

    def prompt(self, item: Item) -> Prompt:
        """Prompt with its gold answer, ended by the end-of-sequence token."""
        return Prompt(self.states_prompt(item) + self._to_answer, self.answer(item))

    def shown(self, ids: Sequence[int]) -> str:
        """A prompt as text, markers in angle brackets."""
        pieces: list[str] = []
        for marker, run in groupby(ids, key=lambda i: min(i, 0)):
            found = list(run)
            if marker == VISUAL_TOKEN:
                pieces.append(f"<image x {len(found)}>")
            elif marker < 0:
                pieces.append("<IMG_SUM>" if marker == IMAGE_SUMMARY else "<TEXT_SUM>")
            else:
                pieces.append(self._tokenizer.decode(found))
        return "".join(pieces)

    def parse_answer(self, ids: Sequence[int]) -> tuple[list[str], str]:
        """Split generated ids into (keywords, category), both as text."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        keywords, _, category = text.partition(self._template.between_answers)
        return [k.strip() for k in keywords.split(",") if k.strip()], category.strip()


@dataclass(slots=True)
class PromptBatch:
    """Padded prompts.

    Attributes:
        ids: (B, L) int64, markers kept, padding 0.
        mask: (B, L) int64, 1 = real token.
        labels: (B, L) int64, answer ids where a loss is due, IGNORED_LABEL elsewhere.
        answer_start: (B,) int64, column of the first answer token (or where it would be); beyond
            the last column where nothing is asked.
        plain: nothing is asked and padding is on the right.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    answer_start: torch.Tensor
    plain: bool = False

    def summary_positions(self, marker: int) -> torch.Tensor:
        """Column of the marker in each row, shape (B,)."""
        return (self.ids == marker).int().argmax(dim=1)

    def to(self, device: torch.device) -> PromptBatch:
        """Copy to a device."""
        tensors = [t.to(device) for t in (self.ids, self.mask, self.labels, self.answer_start)]
        return PromptBatch(tensors[0], tensors[1], tensors[2], tensors[3], self.plain)


def collate(prompts: Sequence[Prompt], *, left: bool = False) -> PromptBatch:
    """Pad prompts to the longest, on the right (training, encoding) or left (generation)."""
    length = max(len(p.ids) + len(p.answer) for p in prompts)
    ids = torch.zeros(len(prompts), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED_LABEL)
    if not left and not any(p.asks or p.answer for p in prompts):
        # Nothing but states is asked for, of every item of a catalogue: all rows in one go.
        lengths = torch.tensor([len(p.ids) for p in prompts])
        real = torch.arange(length) < lengths[:, None]
        ids[real] = torch.tensor([token for p in prompts for token in p.ids])
        return PromptBatch(ids, real.long(), labels, torch.full_like(lengths, length + 1), True)
    answer_start = torch.empty(len(prompts), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens = prompt.ids + prompt.answer
        start = length - len(tokens) if left else 0
        ids[row, start : start + len(tokens)] = torch.tensor(tokens)
        mask[row, start : start + len(tokens)] = 1
        first = start + len(prompt.ids)
        answer_start[row] = first if prompt.asks else length + 1
        if prompt.answer:
            labels[row, first : first + len(prompt.answer)] = torch.tensor(prompt.answer)
    return PromptBatch(ids, mask, labels, answer_start)


class GreedyAnswers:
    """Answers of a batch while they are generated, a token a row at a time.

    Args:
        rows: size of the batch.
        end: the end-of-sequence token.

    Attributes:
        ids: one list of token ids a row, without the end-of-sequence token.
        longest: tokens asked for so far.
    """

    def __init__(self, rows: int, end: int) -> None:
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.longest = 0
        self._end = end
        self._open = set(range(rows))

    def add(self, tokens: torch.Tensor) -> bool:
        """Take the next token of every row, shape (B,); whether any answer is still open."""
        self.longest += 1
        for row, token in enumerate(tokens.tolist()):
            if row in self._open:
                if token == self._end:
                    self._open.discard(row)
                else:
                    self.ids[row].append(token)
        return bool(self._open)
