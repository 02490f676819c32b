"""A complete results file, made from a fixed formula."""

from __future__ import annotations

import base64
import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

METRICS = ("HR@5", "HR@10", "NDCG@5", "NDCG@10")
LEVEL = {
    "DIMO": 0.062,
    "SASRec": 0.048,
    "GRU4Rec": 0.041,
    "Popularity": 0.012,
    "CoOccurrence": 0.037,
}
GAIN = {"DIMO": 1.21, "SASRec": 1.32, "GRU4Rec": 1.01}


def make_row(model: str, store: str | None, seed: int, rng: random.Random) -> dict[str, Any]:
    trained = model in GAIN
    level = LEVEL[model] * (GAIN[model] if store else 1.0) * (1 + trained * rng.gauss(0, 0.03))

    def metrics(scale: float) -> dict[str, float]:
        return dict(zip(METRICS, (level * s * scale for s in (1.3, 2.0, 0.8, 1.0)), strict=True))

    epochs = 12 if trained else 0
    return {
        "model": model,
        "item_embeddings": store,
        "seed": seed,
        "metrics": metrics(1.0),
        "valid": metrics(1.05),
        "slices": {
            "warm": {"rows": 640, **metrics(1.2)},
            "rare": {"rows": 210, **metrics(0.6 if store else 0.3)},
            "unseen": {"rows": 24, **metrics(0.3 if store else 0.0)},
        },
        "seconds": 14.0 + rng.random() * 3 if trained else 0.4 + rng.random() / 9,
        "peak_mb": 812.0 + 9 * rng.random() if trained else 640.0,
        "loss": "CE" if trained else "none",
        "parameters": 184_320 if trained else 0,
        "epochs": epochs,
        "best_epoch": 8 if trained else 0,
        "curve": [
            {
                "epoch": epoch,
                "train_loss": 4.2 + 3.4 * math.exp(-epoch / 4) + rng.gauss(0, 0.03),
                "valid": {"NDCG@10": level * (1 - math.exp(-(epoch + 1) / 3))},
            }
            for epoch in range(epochs)
        ],
        "error": None,
        "latency_ms": 3.25 if trained else 0.5,
        "by_frequency": [
            {"from": 0, "to": 0, "rows": 24, "HR@10": 0.02 if store else 0.0, "NDCG@10": 0.01},
            {"from": 1, "to": 4, "rows": 210, "HR@10": level, "NDCG@10": level / 2},
            {"from": 5, "to": None, "rows": 640, "HR@10": 2 * level, "NDCG@10": level},
        ],
    }


def make_examples() -> dict[str, Any]:
    # A real JPEG of one grey pixel.
    image = io.BytesIO()
    Image.new("RGB", (1, 1), (90, 90, 90)).save(image, "JPEG")
    uri = "data:image/jpeg;base64," + base64.b64encode(image.getvalue()).decode()
    reasons = [
        {"reason": "bought together", "item": "B0", "times": 3},
        {"reason": "similar", "item": "B1", "times": 0},
    ]
    session = {
        "session": "s1",
        "context": ["B0", "B1"],
        "target": "B2",
        "shown": [
            {"rank": 2, "top": ["B3", "B2"], "reasons": reasons},
            {"rank": 14, "top": ["B0", "B3"]},
        ],
    }
    return {
        "rows": [
            {"model": "DIMO", "item_embeddings": "tpad-tiny"},
            {"model": "DIMO", "item_embeddings": None},
        ],
        "sessions": [session],
        "items": {
            f"B{k}": {"title": f"Tea no. {k}", "image": uri if k else None} for k in range(4)
        },
    }


def make_card() -> dict[str, Any]:
    return {
        "counts": {
            "sessions": 5207,
            "interactions": 16_000,
            "items": 260,
            "items_unseen_in_train": 3,
        },
        "session_length": {"mean": 3.1, "histogram": {"2": 2900, "3": 1200, "4+": 1107}},
        "parts": {"test": {"target_repeats_last": 0.146, "target_in_context": None}},
        "train_test_overlap": {"test_sessions_in_train": 0.073},
        "popularity": {"test_targets_in_top_10": 0.02},
        "coverage": {"items": {"title": 1.0, "image": 0.93, "keywords": 0.0}},
        "warnings": [{"code": "copies", "text": "7.3% of the test sessions occur in training."}],
    }


def make_generator(rng: random.Random) -> dict[str, Any]:
    categories = [
        "Tea",
        "Coffee",
        "Pasta",
        "Olive oil",
        "Honey",
        "Spices",
        "Sweets",
        "Juice",
        "Rice",
    ]
    points = []
    for index in range(260):
        kind = index % len(categories)
        points.append(
            {
                "item_id": f"B{index:04d}",
                "title": f"{categories[kind]} no. {index}",
                "x": min(1.0, max(0.0, 0.5 + 0.36 * math.cos(kind * 0.7) + rng.gauss(0, 0.05))),
                "y": min(1.0, max(0.0, 0.5 + 0.36 * math.sin(kind * 0.7) + rng.gauss(0, 0.05))),
                "label": categories[kind],
            }
        )
    steps = range(0, 400, 5)
    return {
        "generator": "tpad",
        "seconds": 143.2,
        "stages": [
            {
                "name": "knowledge",
                "seconds": 61.0,
                "history": [
                    {
                        "step": s,
                        "loss_generation": 3.1 * math.exp(-s / 90) + 0.4,
                        "learning_rate": 1e-4,
                    }
                    for s in steps
                ],
                "summary": {"generation_rate": 0.71, "best_step": 380},
            },
            {
                "name": "transition",
                "seconds": 44.5,
                "history": [
                    {
                        "step": s,
                        "loss_contrastive_visual": 5.2 * math.exp(-s / 300),
                        "loss_contrastive_text": 4.9 * math.exp(-s / 240),
                    }
                    for s in steps
                ],
                "summary": {"pairs": 5120},
            },
            {
                "name": "alignment",
                "seconds": 30.2,
                "history": [
                    {
                        "step": s,
                        "loss_generation": 0.5 + 0.1 * math.exp(-s / 50),
                        "mi_lower": 4.0 * (1 - math.exp(-s / 80)),
                        "mi_upper": 1.6 * math.exp(-s / 120) - 0.1,
                    }
                    for s in steps
                ],
                "summary": {"overlap_with_T": 0.43},
            },
            {"name": "encoding", "seconds": 7.5, "history": [], "summary": {"items": 260}},
        ],
        "generation_rate": {
            "recall": 0.71,
            "f1": 0.66,
            "exact": 0.31,
            "category_accuracy": 0.84,
            "chance": 0.12,
            "shuffled_images": 0.19,
        },
        "map": {"method": "t-SNE", "label": "category", "points": points},
    }


def make_results(seeds: int = 3) -> dict[str, Any]:
    rng = random.Random(4)
    pairs = [(model, store) for model in LEVEL for store in (None, "tpad-tiny")]
    return {
        "format": 1,
        "dataset": {
            "name": "demo-shop",
            "counts": {
                "items": 260,
                "sessions_train": 3900,
                "sessions_valid": 433,
                "sessions_test": 874,
            },
            "split": {"rule": "temporal", "fingerprint": "5f" * 32},
        },
        "protocol": {
            "ranking": "full",
            "mask_history": False,
            "valid_metric": "NDCG@10",
            "topk": [5, 10],
        },
        "rows": [
            make_row(model, store, seed, rng)
            for model, store in pairs
            if store is None or model in GAIN
            for seed in range(1, seeds + 1)
        ],
        "examples": make_examples(),
        "data": make_card(),
        "generators": {"tpad-tiny": make_generator(rng)},
        "environment": {
            "recbole-tpad": "0.1.0",
            "python": "3.11.7",
            "torch": "2.13.0",
            "recbole": "1.2.1",
            "platform": "Linux x86_64, 2 cores",
        },
        "commands": [
            "recbole-tpad embed --dataset demo-shop --generator tpad-tiny",
            "recbole-tpad evaluate --dataset demo-shop --suite demo --seeds 3",
        ],
    }


@pytest.fixture
def content() -> dict[str, Any]:
    return make_results()


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    """Write something as results.json and return its path."""

    def write(content: Any) -> Path:
        path = tmp_path / "results.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write
