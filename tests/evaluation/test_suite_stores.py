"""Suites that make their item embeddings, plan before they run, and say what they cost."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
import pytest
import stand_in_runner
from test_grid import go, trace

from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.evaluation import plan
from recbole_tpad.evaluation.statistics import gains
from recbole_tpad.store import open_store

CONTROLS: dict[str, Any] = {
    "models": ["A", "Popularity"],
    "item_embeddings": ["none", "tiny", "shuffled", "noise"],
    "generators": {
        "shuffled": {"generator": "shuffled", "store": "tiny", "seed": 3},
        "noise": {"generator": "random", "dimension": 5},
    },
    "seeds": 1,
}


def plan_of(folder: DatasetFolder, suite: Any, **options: Any) -> str:
    return plan(folder.path.parent, folder.name, suite, runner=stand_in_runner.run, **options)


def test_a_suite_makes_its_stores_once(folder: DatasetFolder, tmp_path: Any) -> None:
    overrides = {"trace": str(tmp_path / "trace")}
    content = go(folder, CONTROLS, overrides=overrides)
    assert [row["item_embeddings"] for row in content["rows"]] == [
        None,
        "tiny",
        "shuffled",
        "noise",
        None,
    ]
    assert set(content["generators"]) == {"tiny", "shuffled", "noise"}
    stores = folder.path / "embeddings"
    tiny, shuffled = open_store(stores / "tiny"), open_store(stores / "shuffled")
    before, after = tiny.rows(tiny.item_ids), shuffled.rows(tiny.item_ids)
    assert sorted(map(tuple, before)) == sorted(map(tuple, after))
    assert (before != after).any(axis=1).mean() > 0.5
    assert open_store(stores / "noise").manifest.modalities == {"random": 5}

    # Nothing is made or run again; another source is shuffled anew, and only its runs are repeated.
    first = len(trace(tmp_path))
    go(folder, CONTROLS, overrides=overrides)
    assert len(trace(tmp_path)) == first
    changed = {**CONTROLS, "generators": {**CONTROLS["generators"]}}
    changed["generators"]["shuffled"] = {"generator": "shuffled", "store": "tiny", "seed": 4}
    go(folder, changed, overrides=overrides)
    assert [line.split()[2] for line in trace(tmp_path)[first:]] == ["shuffled"]


def test_a_generator_that_fails_fails_its_rows_only(folder: DatasetFolder) -> None:
    suite = {
        "models": ["A"],
        "item_embeddings": ["none", "broken", "tiny"],
        "generators": {"broken": {"generator": "shuffled", "store": "absent"}},
        "seeds": 1,
    }
    lines: list[str] = []
    rows = go(folder, suite, progress=lines.append)["rows"]
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert "Item embeddings 'broken' could not be made" in rows[1]["error"]
    assert any("FAILED" in line and "absent" in line for line in lines)


@pytest.mark.parametrize(
    ("generator", "complaint"),
    [
        ({"generator": "tfdif"}, "Did you mean 'tfidf'"),
        ({"generator": "random", "dimensions": 3}, "Did you mean 'dimension'"),
    ],
)
def test_impossible_generators_are_refused_before_anything_runs(
    folder: DatasetFolder, generator: dict[str, Any], complaint: str
) -> None:
    suite = {"models": ["A"], "item_embeddings": ["none", "x"], "generators": {"x": generator}}
    with pytest.raises(InputError, match=complaint):
        go(folder, suite)
    with pytest.raises(InputError, match=complaint):
        plan_of(folder, suite)
    assert not (folder.path / "runs").exists()


def test_stores_side_by_side(folder: DatasetFolder, tmp_path: Any) -> None:
    suite = {"models": ["A"], "item_embeddings": ["none", "tiny+other"], "seeds": 1}
    content = go(folder, suite, overrides={"trace": str(tmp_path / "trace")})
    assert content["rows"][1]["item_embeddings"] == "tiny+other"
    assert set(content["generators"]) == {"tiny", "other"}
    assert trace(tmp_path)[1].split()[2] == "tiny+other"


def test_the_plan_says_what_is_left_and_runs_nothing(folder: DatasetFolder) -> None:
    before = plan_of(folder, CONTROLS)
    assert "item embeddings shuffled: to make" in before
    assert "5 runs, 0 done, 5 to run" in before
    assert "unknown, nothing has run" in before
    assert not (folder.path / "runs").exists()
    assert not (folder.path / "embeddings" / "noise").exists()
    go(folder, CONTROLS)
    after = plan_of(folder, CONTROLS, seeds=3, jobs=2)
    assert "item embeddings noise: there" in after
    assert "A + tiny: 1 of 3 runs done" in after
    assert "15 runs, 5 done, 10 to run" in after
    # The stand-in says that a run takes .5 s; ten of them, two at a time.
    assert "Expected time: 2 s with 2 at a time" in after
    assert "Popularity + none: done" in plan_of(folder, CONTROLS)


def test_variants_are_compared_with_the_plain_model(folder: DatasetFolder) -> None:
    suite = {
        "models": ["A"],
        "item_embeddings": ["none"],
        "variants": {"wide": {"item_embeddings": ["tiny"], "config": {"width": 3}}},
        "seeds": 2,
    }
    content = go(folder, suite)
    assert [(r["model"], r["variant"]) for r in content["rows"][::2]] == [
        ("A", None),
        ("A, wide", "wide"),
    ]
    found = [c for c in content["comparisons"] if c["kind"] == "without embeddings"]
    assert {(c["model"], c["against"]["model"]) for c in found} == {("A, wide", "A")}


def test_rows_are_compared_with_the_reference(folder: DatasetFolder) -> None:
    suite = {"models": ["A", "B"], "item_embeddings": ["none", "tiny", "other"], "seeds": 2}
    content = go(folder, {**suite, "reference": "tiny"})
    assert content["reference"] == "tiny"
    found = [c for c in content["comparisons"] if c["kind"] == "reference"]
    assert {(c["model"], c["item_embeddings"], c["against"]["model"]) for c in found} == {
        ("A", "other", "A"),
        ("B", "other", "B"),
    }
    assert {c["against"]["item_embeddings"] for c in found} == {"tiny"}
    table = (folder.path / "evaluation" / "table.md").read_text(encoding="utf-8")
    _, *parts = table.split("\n\nDifference to ")
    (part,) = (p for p in parts if p.startswith("the reference (same row of models), all targets"))
    assert "| A | other | A + tiny | " in part
    assert "| B | other | B + tiny | " in part
    for other in parts:
        if other.startswith("the same model without embeddings, all targets"):
            assert other.count("| A | other | A | ") == 1
            assert "+ tiny" not in other
    assert not [c for c in go(folder, suite)["comparisons"] if c["kind"] == "reference"]


def test_metrics_by_frequency_and_csv(folder: DatasetFolder) -> None:
    suite = {"models": ["A"], "item_embeddings": ["none", "tiny"], "seeds": 2}
    content = go(folder, suite)
    row = content["rows"][0]
    outcome = stand_in_runner.run({"model": "A", "item_embeddings": None, "seed": 1})
    ranks, counts = np.array(outcome["ranks"]), np.array(outcome["target_counts"])
    bins = row["by_frequency"]
    assert [(b["from"], b["to"], b["rows"]) for b in bins] == [(0, 0, 1), (1, 2, 3), (5, 9, 30)]
    for part in bins:
        inside = (counts >= part["from"]) & (counts <= part["to"])
        assert part["HR@10"] == pytest.approx((ranks[inside] <= 10).mean())
        assert part["NDCG@10"] == pytest.approx(gains(ranks[inside], "NDCG@10").mean())

    text = (folder.path / "evaluation" / "table.csv").read_text()
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["item_embeddings"], second["item_embeddings"]) == ("none", "tiny")
    scores = [r["metrics"]["HR@10"] for r in content["rows"][:2]]
    assert float(first["HR@10"]) == pytest.approx(np.mean(scores))
    assert float(first["HR@10 sd"]) == pytest.approx(np.std(scores, ddof=1))
    assert (first["loss"], first["latency_ms"]) == ("CE", "")
    assert json.dumps(content).count("NaN") == 0
