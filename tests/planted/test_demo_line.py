"""Proof that the line is not hollow: break one thing at a time, and the embeddings lose.

Three seeds of generator and recommender each, the demo's own settings. "More than the spread": the
means differ by more than the two standard deviations over seeds added together.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from planted.line import (
    Line,
    adopt,
    embed_variant,
    make_line,
    permuted_sessions,
    shuffled_map,
)
from recbole_tpad.demo.line import NAME
from recbole_tpad.demo.shop import load_truth, oracle_scores
from recbole_tpad.evaluation import evaluate
from recbole_tpad.presets import read_preset
from recbole_tpad.store import open_store

SEEDS = (1, 2, 3)
MODELS = ("DIMO", "GRU4Rec", "SASRec")
Scores = dict[tuple[str, str], list[dict[str, float]]]

# One fixture makes every store and run.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def _embed_task(task: tuple[Path, str, str, int, dict[str, Any]]) -> None:
    root, name, variant, seed, changes = task
    torch.set_num_threads(1)
    line = Line(root)
    if variant == "permuted":
        other = permuted_sessions(line, root / f"permuted-{seed}", seed)
        embed_variant(other, "permuted", seed)
        adopt(line, other, "permuted", name)
    else:
        embed_variant(line, name, seed, **changes)


def _embed_all(line: Line) -> None:
    """Make every store; the knowledge stage is shared by 'full' and 'permuted', so full first."""
    first = [(line.root, f"full-{s}", "full", s, {}) for s in SEEDS]
    first += [(line.root, f"no-image-{s}", "full", s, {"use_images": False}) for s in SEEDS]
    first += [(line.root, f"no-text-{s}", "full", s, {"use_text": False}) for s in SEEDS]
    second = [(line.root, f"permuted-{s}", "permuted", s, {}) for s in SEEDS]
    context = multiprocessing.get_context("spawn")
    with context.Pool(os.cpu_count()) as pool:
        pool.map(_embed_task, first, chunksize=1)
        pool.map(_embed_task, second, chunksize=1)
    for seed in SEEDS:
        full = open_store(line.folder.path / "embeddings" / f"full-{seed}")
        shuffled_map(line, full, f"shuffled-{seed}", seed)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """(model, variant) → one entry a seed: HR@10 over all test rows and over rare and unseen."""
    from recbole_tpad.generators.embed import embed

    line = make_line(tmp_path_factory.mktemp("planted line"))
    _embed_all(line)
    for seed in SEEDS:
        overrides = {"seed": seed}
        embed(line.data_path, NAME, "random", name=f"random-{seed}", overrides=overrides)
    suite = read_preset("evaluation", "demo")
    variants = ("full", "shuffled", "no-image", "no-text", "permuted", "random")
    found: Scores = {}
    for seed in SEEDS:
        stores = [None, *(f"{variant}-{seed}" for variant in variants)]
        results = evaluate(
            line.data_path,
            NAME,
            {**suite, "models": list(MODELS), "item_embeddings": stores, "seeds": [seed]},
            jobs=os.cpu_count() or 1,
            output_dir=line.root / f"results-{seed}",
        )
        for row in json.loads(results.read_text())["rows"]:
            assert row["error"] is None, row["error"]
            variant = (row["item_embeddings"] or "none-").rsplit("-", 1)[0]
            found.setdefault((row["model"], variant), []).append(
                {"all": row["metrics"]["HR@10"], "cold": _rare_and_unseen(row["slices"])}
            )
    _print(found)
    return found


def _rare_and_unseen(slices: dict[str, dict[str, float]]) -> float:
    parts = [slices[name] for name in ("rare", "unseen") if slices[name]["rows"]]
    rows = sum(part["rows"] for part in parts)
    return sum(part["rows"] * part["HR@10"] for part in parts) / rows


def _print(found: Scores) -> None:
    print()
    for (model, variant), seeds in sorted(found.items()):
        line = "  ".join(
            f"{part} {statistics.mean(v):.3f} ±{statistics.stdev(v):.3f}"
            for part in ("all", "cold")
            for v in [[seed[part] for seed in seeds]]
        )
        print(f"{model:8} {variant:9} {line}")


def _gap(scores: Scores, model: str, better: str, worse: str, part: str) -> tuple[float, float]:
    """Difference of the means over seeds, and the two standard deviations added together."""
    values = [[seed[part] for seed in scores[model, variant]] for variant in (better, worse)]
    means, spreads = map(statistics.mean, values), [statistics.stdev(v) for v in values]
    first, second = means
    return first - second, sum(spreads)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("broken", ["shuffled", "no-image", "no-text", "random", "none"])
def test_broken_embeddings_lose(scores: Scores, model: str, broken: str) -> None:
    gap, spread = _gap(scores, model, "full", broken, "all")
    assert gap > spread


@pytest.mark.parametrize("model", MODELS)
def test_transitions_from_permuted_sessions_lose_on_rare_and_unseen(
    scores: Scores, model: str
) -> None:
    gap, spread = _gap(scores, model, "full", "permuted", "cold")
    assert gap > spread


@pytest.mark.parametrize("model", MODELS)
def test_random_embeddings_do_not_beat_none(scores: Scores, model: str) -> None:
    gap, spread = _gap(scores, model, "random", "none", "all")
    assert gap <= spread


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("content", ["full", "no-image", "no-text", "permuted"])
def test_random_embeddings_lose_to_any_content(scores: Scores, model: str, content: str) -> None:
    gap, spread = _gap(scores, model, content, "random", "all")
    assert gap > spread


def test_nobody_beats_the_law_that_made_the_sessions(
    scores: Scores, tmp_path_factory: pytest.TempPathFactory
) -> None:
    line = make_line(tmp_path_factory.mktemp("oracle"))
    truth = load_truth(line.root / "raw" / "truth.json")
    sessions = [items for _, items in line.folder.sessions("test")]
    best = oracle_scores(truth, [items[:-1] for items in sessions])
    hits = [
        (best[row] > best[row, truth.position[items[-1]]]).sum() < 10
        for row, items in enumerate(sessions)
    ]
    assert max(v["all"] for seeds in scores.values() for v in seeds) < sum(hits) / len(hits)
