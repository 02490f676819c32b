"""The annotators without a model, the report, agreement, and the command around them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from chat_server import reread
from tiny_catalogue import read_lines, write_catalogue

from dataset_converters.files import sha256_file
from recbole_tpad.cli import main
from recbole_tpad.data import DatasetFolder, Item
from recbole_tpad.errors import InputError
from recbole_tpad.keywords.agreement import agreement
from recbole_tpad.keywords.annotate import annotate
from recbole_tpad.keywords.annotator import Answer, Outcome
from recbole_tpad.keywords.metadata import MetadataAnnotator, MetadataSettings
from recbole_tpad.keywords.vocabulary import vocabulary


@pytest.fixture
def shop(tmp_path: Path) -> DatasetFolder:
    return write_catalogue(tmp_path, n_items=12)


class Said:
    """Answers as given."""

    name = "said"
    visual = True

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def describe(self) -> dict[str, object]:
        return {"who": "a test"}

    def annotate(self, items: Sequence[Item]) -> Outcome:
        return self.outcome


def test_what_is_written(shop: DatasetFolder) -> None:
    answers = [
        Answer("i03", "ok", ("Red Mugs", "red mug", "image")),
        Answer("i01", "ok", ("Product",)),
        Answer("i00", "failed", reason="no answer"),
        Answer("i02", "ok", ("blue",)),
    ]
    report = annotate(shop, Said(Outcome(answers, stopped="It ended.")))
    assert dict(report.statuses) == {"ok": 2, "empty": 1, "failed": 1, "not asked": 8}
    lines = read_lines(shop.path / "keywords.jsonl")
    assert [(line["item_id"], line["keywords"], line["annotator"]) for line in lines] == [
        ("i01", [], "said"),
        ("i02", ["blue"], "said"),
        ("i03", ["red mug"], "said"),
    ]
    record = json.loads((shop.path / "keywords.json").read_text())
    assert record["who"] == "a test"
    assert (record["annotator"], record["visual"], record["stopped"]) == ("said", True, "It ended.")
    assert record["statuses"] == dict(report.statuses)
    assert record["sha256"] == sha256_file(shop.path / "keywords.jsonl")
    kept = shop.path / "keywords"
    assert (kept / "said.jsonl").read_bytes() == (shop.path / "keywords.jsonl").read_bytes()
    assert (kept / "said.json").read_bytes() == (shop.path / "keywords.json").read_bytes()
    problems = read_lines(kept / "said.problems.jsonl")
    assert problems[0] == {"item_id": "i00", "status": "failed", "reason": "no answer"}
    assert problems[2] == {"item_id": "i04", "status": "not asked", "reason": "It ended."}
    assert "i00: no answer" in str(report)


def test_keywords_stay_where_nothing_came(shop: DatasetFolder) -> None:
    before = (shop.path / "keywords.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"No item got keywords\. It ended\.\n.*\n  not asked +12"):
        annotate(shop, Said(Outcome(stopped="It ended.")))
    with pytest.raises(InputError, match="No item got keywords"):
        annotate(shop, Said(Outcome([Answer("i00", "empty")])))
    assert (shop.path / "keywords.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["answers", "../x", "a/b", "", "x.problems", ".x"])
def test_names_that_cannot_be_kept(shop: DatasetFolder, name: str) -> None:
    with pytest.raises(InputError, match="cannot be kept as"):
        annotate(shop, Said(Outcome([Answer("i00", "ok", ("red",))])), name=name)


def made(number: int, title: str, **more: object) -> Item:
    fields = {"brand": "", "category": "", "description": "", "price": None, "image": None}
    return Item(f"i{number}", title, **{**fields, "keywords": (), **more})  # type: ignore[arg-type]


def said(annotator: MetadataAnnotator, items: Sequence[Item]) -> dict[str, tuple[str, ...]]:
    return {a.item_id: a.keywords for a in annotator.annotate(items).answers}


def test_metadata_by_hand() -> None:
    items = [
        made(0, "Acme striped mugs 350ml X200", brand="Acme", category_path=("Kitchen", "Mugs")),
        made(1, "Red mug for you", category_path=("Kitchen", "Mugs"), features=("striped",)),
        made(2, "Red plate", features=("new", "red", "unique")),
        made(3, "Jug"),
        made(4, "Bowl"),
        made(5, "Acme vase"),
        made(6, "Acme lamp"),
    ]
    found = said(MetadataAnnotator(), items)
    # Weights: title 3, categories 2, features 1, each word once in each; all of equal rarity.
    assert found["i0"] == ("mug", "stripe", "kitchen")
    assert found["i1"] == ("mug", "red", "kitchen", "stripe")
    assert found["i2"] == ("red",)
    assert found["i3"] == found["i4"] == ()
    assert found["i5"] == ("acme",)  # its brand is not known to be Acme
    assert said(MetadataAnnotator(MetadataSettings(count=1)), items)["i1"] == ("mug",)
    rare = said(MetadataAnnotator(MetadataSettings(min_items=1)), items)
    assert "unique" in rare["i2"]
    assert rare["i3"] == ("jug",)


def test_metadata_leaves_out_what_most_items_have() -> None:
    items = [made(k, f"gift card {'red' if k % 3 else 'blue'}") for k in range(30)]
    found = said(MetadataAnnotator(), items)
    assert found["i0"] == ("blue",)
    assert found["i1"] == ()  # "red", too, is on two thirds


def test_metadata_does_not_depend_on_the_order(shop: DatasetFolder) -> None:
    items = list(shop.items)
    found = said(MetadataAnnotator(), items)
    random.Random(1).shuffle(items)
    assert said(MetadataAnnotator(), items) == found
    for bad in ({"count": 0}, {"min_items": 0}, {"language": "xx"}):
        with pytest.raises(InputError):
            MetadataSettings(**bad)  # type: ignore[arg-type]


def test_vocabulary_by_hand() -> None:
    items = [made(0, "Red mug"), made(1, "Jug"), made(2, "Bowl"), made(3, "none")]
    keywords = {"i0": ["red", "round"], "i1": ["red", "mug red"], "i2": ["red mug"], "x": ["y"]}
    found = vocabulary(keywords, items)
    assert (found.items, found.keywords, found.words) == (3, 4, 3)
    assert found.per_item == pytest.approx(5 / 3)
    assert found.used_once == 3 / 4
    assert found.in_text == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert found.spellings == 1
    assert found.common[0] == ("red", 2)
    assert found.everywhere == ("red",)
    assert str(vocabulary({}, items)) == "no keywords"


def test_agreement_by_hand() -> None:
    a = {"1": ["red mug"], "2": ["blue"], "3": ["green"], "4": ["x"], "5": []}
    b = {"1": ["Red", "cup"], "2": ["blue"], "3": ["flat"], "6": ["y"]}
    found = agreement(a, b)
    assert (found.items, found.only_a, found.only_b) == (3, 1, 1)
    assert found.jaccard == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert found.recall_of_a == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found.recall_of_b == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found.exact == pytest.approx(1 / 3)
    assert found.chance == 0
    assert found.words_of_a == (("green", 1), ("mug", 1))
    assert found.words_of_b == (("cup", 1), ("flat", 1))
    swapped = agreement(b, a)
    assert swapped.jaccard == found.jaccard
    assert swapped.words_of_a == found.words_of_b


def test_agreement_is_corrected_for_chance() -> None:
    rng = random.Random(0)
    words = [f"w{k}" for k in range(6)]
    one = {str(k): rng.sample(words, 3) for k in range(300)}
    two = {str(k): rng.sample(words, 3) for k in range(300)}
    by_chance = agreement(one, two)
    assert by_chance.chance == pytest.approx(by_chance.jaccard, abs=0.03)
    assert by_chance.corrected == pytest.approx(0, abs=0.05)
    assert agreement(one, one).corrected == 1
    alike = {k: ["red"] for k in one}
    assert agreement(alike, alike).corrected == 0  # everybody says the same of everything
    assert agreement({"1": ["red"]}, {"1": ["red"]}).chance is None
    with pytest.raises(InputError, match="No item has keywords from both"):
        agreement({"1": ["red"]}, {"2": ["red"]})


def test_the_command(
    shop: DatasetFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["keywords", "--dataset", "shop", "--data_path", str(tmp_path)]
    assert main([*base, "--annotator", "metadata", "--count", "1"]) == 0
    said = capsys.readouterr().out
    assert "keywords from 'metadata':" in said
    assert "not visual: they repeat the text" in said
    assert "also in the item's own text: 100% of the words" in said
    assert json.loads((shop.path / "keywords.json").read_text())["visual"] is False
    assert {len(item.keywords) for item in reread(shop).items} == {1}
    (tmp_path / "k.csv").write_text("item_id,keywords\ni00,Rustic Mugs\ni01,blue\n")
    assert main([*base, "--file", str(tmp_path / "k.csv"), "--normalise", "--name", "mine"]) == 0
    assert reread(shop).items[0].keywords == ("rustic mug",)
    capsys.readouterr()
    assert main([*base, "--compare", "mine", "metadata"]) == 0
    said = capsys.readouterr().out
    assert "2 items have keywords from both, 0 only from the first, 10 only from the second" in said
    assert main([*base, "--compare", str(tmp_path / "k.csv"), "mine"]) == 0
    assert "(Jaccard): 1.000; equal sets: 100.0%" in capsys.readouterr().out
    assert main([*base, "--report"]) == 0
    assert "2 different keywords of 3 words for 2 items" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs --file PATH"),
        (
            ["--annotator", "metadata", "--model", "x"],
            "does not read --model; 'openai' and 'local'",
        ),
        (["--file", "k.csv", "--base-url", "x"], "does not read --base-url; 'openai' does"),
        (["--annotator", "local", "--dry-run"], "does not read --dry-run"),
        (["--annotator", "openai"], "needs a model"),
        (["--annotator", "openai", "--model", "m", "--price_input", "1"], "both prices"),
        (["--annotator", "local"], "needs a model"),
        (["--annotator", "openai", "--model", "m", "--concurrency", "0"], "concurrency must be"),
        (["--annotator", "openai", "--model", "m", "--image_size", "0"], "size must be at least"),
        (["--annotator", "metadata", "--limit", "0"], "--limit must be at least 1"),
        (["--annotator", "metadata", "--language", "xx"], "Unknown language 'xx'"),
        (["--compare", "fil", "metadata"], "'fil' is neither a kept result"),
        (["--report", "--annotator", "metadata"], "give no annotator"),
        (["--report", "--language", "xx"], "Unknown language 'xx'"),
        (["--report", "--file=x", "--annotatr", "x"], "Unknown"),
    ],
)
def test_bad_commands(
    shop: DatasetFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert main(["keywords", "--dataset", "shop", "--data_path", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
