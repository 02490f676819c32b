"""The report: every section from a results file, and nothing hostile or broken gets through."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from recbole_tpad.errors import InputError
from recbole_tpad.report import write_report
from recbole_tpad.report.finding import find
from recbole_tpad.report.page import STYLE
from recbole_tpad.report.sections import Colours, protocol_line
from recbole_tpad.results import Spread, read_results

Save = Callable[[Any], Path]
VOID = {"meta", "br", "hr", "img", "line", "circle", "rect", "path"}
HOSTILE = "<script>alert(1)</script>\"' onload=x <img src=https://evil.example/x>"


class Outline(HTMLParser):
    """Checks nesting and keeps what the tests ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            assert not key.startswith("on"), key
            if key == "id":
                self.ids.append(value or "")
            if key in ("href", "src", "srcset", "action", "data", "xlink:href"):
                self.links.append(value or "")
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def report(path: Path) -> tuple[str, Outline]:
    page = write_report(path).read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert outline.open == []
    return page, outline


def test_all_sections_and_no_way_out(content: Any, save: Save) -> None:
    page, outline = report(save(content))
    sections = ["results", "slices", "examples", "curves", "embeddings", "cost", "data"]
    assert outline.ids == [*sections, "environment"]
    # Links lead to the page's own sections, pictures are in the page; nothing is fetched or runs.
    assert [link for link in outline.links if not link.startswith("data:image/jpeg;base64,")] == [
        f"#{anchor}" for anchor in outline.ids
    ]
    assert outline.tags.count("img") == 5
    assert "script" not in outline.tags
    assert "link" not in outline.tags
    assert "url(" not in page
    assert "@import" not in page
    for words in (
        "tpad-tiny raises NDCG@10 for 2 of 3 models",
        "full, over all items",
        "Generation rate on held-out items",
        "mutual information, nats",
        "Map of the items (t-SNE), by category",
        "Rare targets",
        "recbole-tpad evaluate --dataset demo-shop --suite demo --seeds 3",
        "DIMO with tpad-tiny: rank 2",
        "bought together with “Tea no. 0”, 3 times",
        "similar to “Tea no. 1” by content",
        "7.3% of the test sessions occur in training.",
        "DIMO: HR@10 by training interactions of the target",
        "ms a request",
    ):
        assert words in page
    assert outline.tags.count("svg") >= 14


def test_equal_results_give_equal_bytes(content: Any, save: Save, tmp_path: Path) -> None:
    path = save(content)
    first = write_report(path, tmp_path / "a" / "one.html").read_bytes()
    code = f"from recbole_tpad.report import write_report; write_report({str(path)!r})"
    root = Path(__file__).resolve().parents[2]
    # Another process has another hash seed: no set's order may show.
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
    assert (tmp_path / "report.html").read_bytes() == first


def test_the_report_imports_nothing_above_the_results() -> None:
    code = (
        "import sys, recbole_tpad.report;"
        "bad = [m for m in sys.modules if m in ('torch', 'recbole', 'numpy')"
        " or m.startswith(('recbole_tpad.evaluation', 'recbole_tpad.store'))];"
        "assert not bad, bad"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_untrusted_texts_are_shown_as_texts(content: Any, save: Save) -> None:
    plain = report(save(content))[1]
    hostile = copy.deepcopy(content)
    hostile["dataset"]["name"] = HOSTILE
    hostile["protocol"]["ranking"] = HOSTILE
    hostile["commands"] = [HOSTILE]
    for item in hostile["examples"]["items"].values():
        item["title"] = HOSTILE
    hostile["examples"]["items"]["B1"]["image"] = f"data:image/jpeg;base64,AAAA{HOSTILE}"
    hostile["examples"]["items"]["B2"]["image"] = "https://evil.example/x.jpg"
    hostile["examples"]["rows"][0]["model"] = HOSTILE
    hostile["data"]["warnings"][0]["text"] = HOSTILE
    hostile["data"]["session_length"]["histogram"] = {HOSTILE: 3}
    hostile["environment"][HOSTILE] = HOSTILE
    entry = hostile["generators"].pop("tpad-tiny")
    entry["generator"] = HOSTILE
    entry["stages"][0]["name"] = HOSTILE
    entry["stages"][0]["summary"] = {HOSTILE: HOSTILE}
    entry["map"]["method"] = entry["map"]["label"] = HOSTILE
    for point in entry["map"]["points"]:
        point["title"] = point["label"] = HOSTILE
    hostile["generators"][HOSTILE] = entry
    for row in hostile["rows"]:
        row["model"] = f"{row['model']}{HOSTILE}"
        row["loss"] = HOSTILE
        row["item_embeddings"] = HOSTILE if row["item_embeddings"] else None
    hostile["rows"][0]["error"] = HOSTILE
    page, outline = report(save(hostile))
    assert set(outline.tags) <= set(plain.tags)
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "evil.example/x.jpg" not in page


def test_failed_runs_are_listed_and_left_out(content: Any, save: Save) -> None:
    content["rows"][0] |= {"error": "out of memory", "metrics": None, "curve": None}
    page, outline = report(save(content))
    assert "failed" in outline.ids
    assert "out of memory" in page
    assert "1 run of 24 failed" in page


def test_a_file_without_a_finished_run(content: Any, save: Save) -> None:
    for row in content["rows"]:
        row.update(error="broken", metrics=None, valid=None, slices=None, curve=None, seconds=None)
    page, outline = report(save(content))
    assert "No run finished" in page
    assert outline.ids == ["examples", "embeddings", "data", "failed", "environment"]


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"generator": "imported", "seconds": None, "stages": [], "map": None},
        {"stages": [{"name": "knowledge", "history": [{"step": 0, "loss_generation": None}]}]},
        {"map": {"points": [{"x": 0.5, "y": 0.5}]}, "generation_rate": {"recall": 0.1}},
        {"stages": None, "generation_rate": {"recall": None}, "map": {"points": []}},
    ],
)
def test_incomplete_generators(entry: Any, content: Any, save: Save) -> None:
    content["generators"] = {"s": entry}
    assert "embeddings" in report(save(content))[1].ids


def test_without_generators_slices_and_curves(content: Any, save: Save) -> None:
    content["generators"] = {}
    for row in content["rows"]:
        row.update(slices={}, curve=[], parameters=None, peak_mb=None)
    del content["examples"], content["data"]
    assert report(save(content))[1].ids == ["results", "cost", "environment"]


def test_the_generator_s_warnings_are_shown(content: Any, save: Save) -> None:
    content["generators"]["tpad-tiny"]["warnings"] = ["The knowledge tower <looks> away."]
    assert "The knowledge tower &lt;looks&gt; away." in report(save(content))[0]


def headline(content: Any, save: Save) -> str:
    return find(read_results(save(content))).headline


def with_metric(content: Any, values: dict[tuple[str, str | None], list[float]]) -> Any:
    """The results with only these (model, embeddings) pairs, NDCG@10 as given by seed."""
    rows = []
    for (model, store), scores in values.items():
        for seed, score in enumerate(scores):
            row = {**content["rows"][0], "model": model, "item_embeddings": store, "seed": seed}
            rows.append({**row, "metrics": {"NDCG@10": score, "HR@10": score}, "slices": {}})
    return {**content, "rows": rows}


@pytest.mark.parametrize(
    ("plain", "with_store", "expected"),
    [
        ([0.10, 0.11], [0.20, 0.21], "t raises NDCG@10 for 1 of 1 model."),
        ([0.20, 0.21], [0.10, 0.11], "t lowers NDCG@10 for 1 of 1 model."),
        ([0.10, 0.20], [0.15, 0.25], "With t, no change of NDCG@10 is separable"),
        ([0.10], [0.30], "on a single seed"),
        ([0.10, 0.10], [0.11, 0.11], "With t, no change of NDCG@10 is separable"),
    ],
)
def test_headline(
    plain: list[float], with_store: list[float], expected: str, content: Any, save: Save
) -> None:
    made = with_metric(content, {("A", None): plain, ("A", "t"): with_store})
    assert expected in headline(made, save)


@pytest.mark.parametrize(
    ("loss", "shown"), [("none", "none, nothing is trained"), ("CE", "CE"), (None, "unknown")]
)
def test_the_loss_is_named(loss: str | None, shown: str, content: Any, save: Save) -> None:
    made = with_metric(content, {("A", None): [0.2]})
    made["rows"][0] |= {"loss": loss, "epochs": 0 if loss == "none" else 3}
    results = read_results(save(made))
    assert f"Loss </span><b>{shown}</b>" in str(protocol_line(results, results.groups()))


def test_headline_says_once_what_holds_for_several(content: Any, save: Save) -> None:
    values: dict[tuple[str, str | None], list[float]] = {("A", None): [0.20, 0.21]}
    values |= {("A", "t"): [0.30, 0.31], ("A", "u"): [0.40, 0.41]}
    values |= {("A", "v"): [0.10, 0.11], ("A", "w"): [0.50, 0.51]}
    assert headline(with_metric(content, values), save) == (
        "Each of t, u and w raises NDCG@10 for 1 of 1 model. v lowers NDCG@10 for 1 of 1 model."
    )
    one_seed = {key: scores[:1] for key, scores in values.items()}
    text = headline(with_metric(content, one_seed), save)
    assert text.startswith("With each of t, u and w, NDCG@10 is higher for 1 of 1 model, on a ")
    assert text.count("no evidence") == 2


def test_every_kind_of_item_embeddings_has_a_colour_of_its_own(content: Any, save: Save) -> None:
    """Fourteen of them; each with a colour in the style sheet, light, dark and on paper."""
    names = [f"store{k}" for k in range(14)]
    values: dict[tuple[str, str | None], list[float]] = {("A", name): [0.2] for name in names}
    colours = Colours(read_results(save(with_metric(content, values))).groups())
    classes = {colours[name] for name in names}
    assert len(classes) == 14
    for name in classes:
        assert len(re.findall(rf"--{name}:(#[0-9a-f]{{6}})", STYLE)) == 3
        assert f".{name}{{color:var(--{name})}}" in STYLE
    for theme in range(3):
        shades = {re.findall(rf"--{name}:(#[0-9a-f]{{6}})", STYLE)[theme] for name in classes}
        assert len(shades) == 14


def test_headline_without_embeddings_names_the_best_and_its_rivals(
    content: Any, save: Save
) -> None:
    values = {("A", None): [0.30, 0.32], ("B", None): [0.29, 0.32], ("C", None): [0.1, 0.1]}
    text = headline(with_metric(content, values), save)
    assert text.startswith("Highest NDCG@10: A, 0.3100")
    assert text.endswith("not separable from B.")


def remove(content: Any, *keys: Any) -> None:
    for key in keys[:-1]:
        content = content[key]
    del content[keys[-1]]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (("rows",), "'rows'"),
        (("protocol",), "'protocol'"),
        (("dataset", "name"), "'dataset.name'"),
        (("rows", 3, "model"), "'rows[3].model'"),
        (("rows", 3, "metrics"), "'rows[3].metrics'"),
        (("rows", 0, "seed"), "'rows[0].seed'"),
        (("generators",), "'generators'"),
    ],
)
def test_a_missing_key_is_named(
    keys: tuple[Any, ...], named: str, content: Any, save: Save
) -> None:
    remove(content, *keys)
    path = save(content)
    with pytest.raises(InputError) as caught:
        write_report(path)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)


def test_wrong_values_are_named(content: Any, save: Save) -> None:
    content["rows"][2]["metrics"]["HR@5"] = float("nan")
    with pytest.raises(InputError, match=r"rows\[2\]\.metrics\.HR@5.*finite"):
        write_report(save(content))
    content["rows"][2]["metrics"]["HR@5"] = "high"
    with pytest.raises(InputError, match=r"must be a number, not str"):
        write_report(save(content))
    with pytest.raises(InputError, match=r"top level.*not list"):
        write_report(save([]))
    with pytest.raises(InputError, match=r"'format' is 2"):
        write_report(save({**content, "format": 2}))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Cannot read the results file .*none\.json"):
        write_report(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"format": 1, "rows": [')
    with pytest.raises(InputError, match="not valid JSON"):
        write_report(tmp_path / "half.json")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (Spread(0.10, 0.01, 3), Spread(0.13, 0.01, 3), True),
        (Spread(0.10, 0.01, 3), Spread(0.11, 0.01, 3), False),
        (Spread(0.10, None, 1), Spread(0.90, None, 1), False),
        # No spread over seeds: the test sessions' sampling error, about .013 and .017 here.
        (Spread(0.10, 0.0, 3, 500), Spread(0.11, 0.0, 3, 500), False),
        (Spread(0.10, 0.0, 3, 500), Spread(0.20, 0.0, 3, 500), True),
        (Spread(0.00, 0.0, 3), Spread(0.20, 0.0, 3), False),
        # Too few test sessions to say anything.
        (Spread(0.00, 0.0, 3, 60), Spread(0.90, 0.0, 3, 60), False),
    ],
)
def test_separable(before: Spread, after: Spread, expected: bool) -> None:
    assert after.separable_from(before) is expected
    assert before.separable_from(after) is expected


def test_differences_are_shown_with_their_certainty(content: dict[str, Any], save: Save) -> None:
    entry = {
        "kind": "without embeddings",
        "targets": "all",
        "metric": "NDCG@10",
        "model": "SASRec",
        "item_embeddings": "tpad",
        "against": {"model": "SASRec", "item_embeddings": None},
        "difference": 0.0123,
        "low": 0.004,
        "high": 0.02,
        "p": 0.001,
        "p_holm": 0.002,
        "seeds": [3, 3],
        "sessions": 874,
    }
    unsure = {**entry, "model": "GRU4Rec", "difference": -0.0071, "low": -0.02, "p_holm": 0.4}
    path = save({**content, "comparisons": [entry, unsure]})
    page = write_report(path).read_text()
    assert "Against the same model without embeddings: all targets, 874 sessions" in page
    assert '<span class="change good">+0.0123</span>' in page
    assert "<span>-0.0071</span>" in page
    assert "+0.0040 to +0.0200" in page
    assert "rows have a single seed" not in page
    path = save({**content, "comparisons": [{**entry, "seeds": [1, 3]}]})
    assert "rows have a single seed" in write_report(path).read_text()
    path = save({**content, "comparisons": [{**entry, "low": None}]})
    with pytest.raises(InputError, match=r"comparisons\[0\]\.low"):
        write_report(path)


def test_changes_of_the_reference_are_a_chart(content: dict[str, Any], save: Save) -> None:
    entry = {
        "kind": "reference",
        "targets": "all",
        "metric": "NDCG@10",
        "model": "SASRec",
        "item_embeddings": "no-text",
        "against": {"model": "SASRec", "item_embeddings": "full"},
        "difference": -0.02,
        "low": -0.03,
        "high": -0.01,
        "p": 0.001,
        "p_holm": 0.002,
        "seeds": [3, 3],
        "sessions": 874,
    }
    unsure = {**entry, "item_embeddings": "no-image", "p_holm": 0.4}
    page, outline = report(save({**content, "comparisons": [entry, unsure]}))
    assert "reference" in outline.ids
    assert "What becomes of full when it is changed" in page
    assert "SASRec, no-text: -0.0200 ± 0.0100" in page
    colours = [
        re.search(rf"dot (c\d)[^>]*><title>SASRec, {n}:", page) for n in ("no-text", "no-image")
    ]
    assert [c and c[1] for c in colours] == ["c7", "c8"]
    assert "reference" not in report(save(content))[1].ids


def test_id_space_and_embedding_space(content: dict[str, Any], save: Save) -> None:
    changed = copy.deepcopy(content)
    spaces = {"items": 2, "gap": 0.5, "separability": 0.9, "overlap": 0.25, "chance": 0.1}
    points = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]]
    rows = [r for r in changed["rows"] if r["item_embeddings"] is not None][:2]
    for row, gap in zip(rows, (0.5, 0.7), strict=True):
        row["item_spaces"] = {**spaces, "gap": gap, "points": points}
    page, outline = report(save(changed))
    assert "spaces" in outline.ids
    assert "0.600" in page or ("0.500" in page and "0.700" in page)
    assert page.count("<title>ID</title>") >= 2
    assert page.count("<title>ID</title>") == page.count("<title>content</title>")
    assert "spaces" not in report(save(content))[1].ids
    rows[0]["item_spaces"]["points"] = [[0.1]]
    with pytest.raises(InputError, match=r"item_spaces\.points\[0\]. must be two numbers"):
        write_report(save(changed))


def test_accuracy_against_cost(content: dict[str, Any], save: Save) -> None:
    page, _ = report(save(content))
    assert "NDCG@10 against seconds a run" in page
    row = content["rows"][0]
    assert f"{row['model']}, no item embeddings: NDCG@10" in page
