"""What a prompt holds and what it must not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from recbole_tpad.backbones.prompts import (
    IMAGE_SUMMARY,
    TEXT_SUMMARY,
    VISUAL_TOKEN,
    Prompt,
    PromptEncoder,
    PromptTemplate,
    collate,
)
from recbole_tpad.backbones.tiny import train_tokenizer
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError

ITEM = Item("i1", "Rustic mug", "Acme", "Mugs", "For every day", 3.5, None, ("red", "round rim"))
VISUAL = 3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["Rustic mug Acme Mugs red round rim"] * 3, 400)


def encoder(tokenizer: PreTrainedTokenizerFast, budget: int = 64, **parts: str) -> PromptEncoder:
    return PromptEncoder(tokenizer, PromptTemplate.from_config(parts), VISUAL, budget)


def test_the_answer_is_not_in_the_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = encoder(tokenizer, item_text="{title}, {brand}, {description}")
    for changed in (
        replace(ITEM, category="Something else"),
        replace(ITEM, category=""),
        replace(ITEM, keywords=("blue", "square")),
        replace(ITEM, keywords=()),
    ):
        assert prompts.states_prompt(changed) == prompts.states_prompt(ITEM)
        assert prompts.prompt(changed).ids == prompts.prompt(ITEM).ids
        assert prompts.prompt(changed).answer != prompts.prompt(ITEM).answer


def test_the_prompt_continues_the_states_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = encoder(tokenizer)
    states, prompt = prompts.states_prompt(ITEM), prompts.prompt(ITEM)
    assert prompt.ids[: len(states)] == states
    assert states[-1] == TEXT_SUMMARY
    assert prompt.answer[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("budget", [1, 5, 64, 1000])
def test_the_budget_cuts_the_text_and_nothing_else(
    tokenizer: PreTrainedTokenizerFast, budget: int
) -> None:
    long = replace(ITEM, title="many different words " * 40)
    empty = replace(ITEM, title="", brand="")
    prompts = encoder(tokenizer, budget, item_text="{title}")
    cut, bare = prompts.states_prompt(long), prompts.states_prompt(empty)
    own = tokenizer(" " + long.title.strip(), add_special_tokens=False)["input_ids"]
    nothing = len(tokenizer(" ", add_special_tokens=False)["input_ids"])
    assert len(cut) == len(bare) - nothing + min(budget, len(own))
    for ids in (cut, bare):
        assert ids.count(VISUAL_TOKEN) == VISUAL
        assert ids.count(IMAGE_SUMMARY) == ids.count(TEXT_SUMMARY) == 1
        assert ids.index(VISUAL_TOKEN) < ids.index(IMAGE_SUMMARY) < ids.index(TEXT_SUMMARY)


@pytest.mark.parametrize("text", ["{title} {category}", "{keywords}", "{price}", "{}", "{title"])
def test_a_template_that_gives_the_answer_away_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="item_text") as error:
        PromptTemplate.from_config({"item_text": text})
    assert "category is an answer" in str(error.value)


def test_the_category_is_named_when_refused() -> None:
    with pytest.raises(InputError, match=r"'\{category\}'"):
        PromptTemplate.from_config({"item_text": "{category}"})


@pytest.mark.parametrize("text", ["{title.real}", "{title!r} {brand[0]}", "{title:{category}}"])
def test_only_plain_fields_are_filled_in(text: str) -> None:
    with pytest.raises(InputError, match="item_text"):
        PromptTemplate.from_config({"item_text": text})


def test_unknown_parts_and_wrong_types_are_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'before_image'"):
        PromptTemplate.from_config({"befor_image": "x"})
    with pytest.raises(InputError, match="before_image"):
        PromptTemplate.from_config({"before_image": 3})  # type: ignore[dict-item]  # the point


def test_absent_fields_leave_no_punctuation() -> None:
    template = PromptTemplate()
    assert template.text_of(ITEM) == "Rustic mug, Acme"
    assert template.text_of(replace(ITEM, brand="")) == "Rustic mug"
    assert template.text_of(replace(ITEM, title="", brand="")) == ""


@pytest.mark.parametrize(
    "text",
    [
        "Zażółć gęślą jaźń",
        "日本語の急須",
        "чайник",
        "إبريق شاي",
        "चाय का प्याला",
        "☕🫖 «mug»",
        "tab\there",
    ],
)
def test_any_script_round_trips(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("keywords", "category"),
    [
        (("red", "round rim"), "Mugs"),
        (("red",), ""),
        ((), "Mugs & Cups"),
        (("赤い", "丸い"), "急須"),
        ((), ""),
    ],
)
def test_parsing_inverts_answering(
    tokenizer: PreTrainedTokenizerFast, keywords: tuple[str, ...], category: str
) -> None:
    prompts = encoder(tokenizer)
    answer = prompts.prompt(replace(ITEM, keywords=keywords, category=category)).answer
    assert prompts.parse_answer(answer) == (list(keywords), category)


def test_no_answer_is_no_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = encoder(tokenizer)
    assert prompts.prompt(replace(ITEM, keywords=(), category="")).answer == []


def test_control_tokens_in_a_catalogue_are_only_text(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = encoder(tokenizer)
    hostile = replace(ITEM, title="mug </s> <pad> <s>", category="a</s>b", keywords=("x</s>",))
    special = set(tokenizer.all_special_ids)
    assert special.isdisjoint(prompts.states_prompt(hostile)[1:])  # the first is <s> itself
    assert special.isdisjoint(prompts.prompt(hostile).answer[:-1])


def test_padding_on_either_side() -> None:
    prompts = [Prompt([5, 6, 7], [8, 9]), Prompt([4], []), Prompt([3, 3], [], asks=False)]
    right, left = collate(prompts), collate(prompts, left=True)
    assert right.ids.tolist() == [[5, 6, 7, 8, 9], [4, 0, 0, 0, 0], [3, 3, 0, 0, 0]]
    assert left.ids.tolist() == [[5, 6, 7, 8, 9], [0, 0, 0, 0, 4], [0, 0, 0, 3, 3]]
    assert right.mask.tolist() == [[1] * 5, [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert left.mask.tolist() == [[1] * 5, [0, 0, 0, 0, 1], [0, 0, 0, 1, 1]]
    assert right.labels.tolist()[0] == [-100, -100, -100, 8, 9]
    assert (right.labels[1:] == -100).all()
    assert right.answer_start.tolist() == [3, 1, 6]
    assert left.answer_start.tolist() == [3, 5, 6]


def test_padding_where_only_states_are_asked_for() -> None:
    batch = collate([Prompt([5, -1, 7], [], asks=False), Prompt([4], [], asks=False)])
    assert batch.plain
    assert batch.ids.tolist() == [[5, -1, 7], [4, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert (batch.labels == -100).all()
    assert batch.answer_start.tolist() == [4, 4]
    assert not collate([Prompt([5, -1, 7], [], asks=False), Prompt([4], [])]).plain
