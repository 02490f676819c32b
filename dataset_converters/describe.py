"""The report card of a data set folder: what is in it, and where results would mislead."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dataset_converters.describe_sessions import (
    WINDOW,
    Sequences,
    Vocabulary,
    edge_overlap,
    order_of_pairs,
    read_benchmark,
    read_interactions_file,
    repeated_sessions,
    target_statistics,
)
from dataset_converters.describe_warnings import find_warnings
from dataset_converters.errors import InputError
from dataset_converters.files import write_json
from dataset_converters.images import read_items, read_records
from dataset_converters.reading import read_jsonl
from dataset_converters.sessions import DAY, IntArray
from dataset_converters.split import PARTS

FORMAT = 1
_BINS = ((2, 2), (3, 3), (4, 4), (5, 5), (6, 10), (11, 20), (21, 50), (51, None))


def describe(dataset_folder: Path) -> dict[str, Any]:
    """Compute the report card and write it to ``describe.json`` in the folder.

    Shares lie between 0 and 1, None where there is nothing to count. See ``docs/data_format.md``
    for the keys.

    Raises:
        InputError: not a data set folder, or a damaged file in it.
    """
    name = dataset_folder.name
    split = _object(dataset_folder / "split.json")
    source = _object(dataset_folder / "dataset.json")
    vocabulary = Vocabulary()
    everything, times = read_interactions_file(dataset_folder / f"{name}.inter", vocabulary)
    parts = {p: read_benchmark(dataset_folder / f"{name}.{p}.inter", vocabulary) for p in PARTS}
    if not all(len(part) for part in (everything, *parts.values())):
        raise InputError(f"{dataset_folder} has a part without sessions. Convert it again.")
    counts = np.bincount(parts["train"].items, minlength=len(vocabulary.index))
    card: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "release": source.get("source", {}).get("release"),
        "split": {
            "rule": split.get("rule"),
            "sessions": split.get("sessions"),
            "fingerprint": split.get("parts", {}).get("train", {}).get("sha256"),
        },
        "counts": {
            "sessions": len(everything),
            "interactions": len(everything.items),
            "items": len(vocabulary.index),
            "items_unseen_in_train": int((counts == 0).sum()),
        },
        "session_length": _lengths(everything.lengths),
        "parts": {p: target_statistics(part, counts > 0) for p, part in parts.items()},
        "time": _times(everything, times),
        "order": order_of_pairs(everything) | {"window": WINDOW},
        "train_test_overlap": edge_overlap(parts["train"], parts["test"])
        | {"test_sessions_in_train": repeated_sessions(parts["train"], parts["test"])},
        "popularity": _popularity(counts, parts["test"]),
        "coverage": _coverage(dataset_folder, everything, vocabulary),
    }
    card["warnings"] = find_warnings(card)
    write_json(dataset_folder / "describe.json", card)
    return card


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"Cannot read {path}: {error.strerror}. Name a data set folder."
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object.")
    return content


def _lengths(lengths: IntArray) -> dict[str, Any]:
    def count(low: int, high: int | None) -> int:
        return int(((lengths >= low) & (lengths <= (high or lengths.max()))).sum())

    def label(low: int, high: int | None) -> str:
        if high is None:
            return f"{low}+"
        return f"{low}" if low == high else f"{low}-{high}"

    return {
        "mean": round(float(lengths.mean()), 4),
        "median": float(np.median(lengths)),
        "p90": float(np.percentile(lengths, 90)),
        "max": int(lengths.max()),
        "histogram": {label(*ends): count(*ends) for ends in _BINS},
    }


def _times(sessions: Sequences, times: IntArray | None) -> dict[str, Any] | None:
    """Day resolution and sessions with one time stamp; None without times."""
    if times is None:
        return None
    starts = sessions.offsets[:-1]
    one = np.minimum.reduceat(times, starts) == np.maximum.reduceat(times, starts)
    return {
        "first": int(times.min()),
        "last": int(times.max()),
        "at_midnight_utc": round(float((times % DAY == 0).mean()), 6),
        "sessions_with_one_time": round(float(one.mean()), 6),
    }


def _popularity(counts: IntArray, test: Sequences) -> dict[str, Any]:
    """How unequal the training counts are, and how far the ten most popular items get."""
    ordered = np.sort(counts)
    ranks = np.arange(1, len(ordered) + 1)
    gini = (2 * (ranks * ordered).sum() / ordered.sum() - (len(ordered) + 1)) / len(ordered)
    top = np.argsort(-counts, kind="stable")[:10]
    targets = test.items[test.offsets[1:] - 1]
    return {
        "gini": round(float(gini), 4),
        "interactions_of_top_percent": round(
            float(ordered[-max(1, len(ordered) // 100) :].sum() / ordered.sum()), 4
        ),
        "test_targets_in_top_10": round(float(np.isin(targets, top).mean()), 6),
    }


def _coverage(folder: Path, sessions: Sequences, vocabulary: Vocabulary) -> dict[str, Any]:
    """Share of items, and of interactions, whose item has each kind of content."""
    have: dict[str, set[str]] = {
        key: set() for key in ("title", "brand", "category", "description", "price", "image_url")
    }
    categories: Counter[str] = Counter()
    for item in read_items(folder):
        for key in ("title", "brand", "category", "description"):
            if item.get(key):
                have[key].add(item["item_id"])
        if item.get("price") is not None:
            have["price"].add(item["item_id"])
        if item.get("image_urls"):
            have["image_url"].add(item["item_id"])
        if item.get("category"):
            categories[item["category"]] += 1
    records = read_records(folder)
    have["image"] = {i for i, record in records.items() if record["status"] == "ok"}
    have["keywords"] = _with_keywords(folder / "keywords.jsonl")
    weights = np.bincount(sessions.items, minlength=len(vocabulary.index))
    return {
        "items": {key: _share(ids, vocabulary, np.ones_like(weights)) for key, ids in have.items()},
        "interactions": {key: _share(ids, vocabulary, weights) for key, ids in have.items()},
        "categories": len(categories),
        "image_statuses": dict(sorted(Counter(r["status"] for r in records.values()).items())),
    }


def _with_keywords(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    return {str(record.get("item_id")) for _, record in read_jsonl(path) if record.get("keywords")}


def _share(ids: Iterable[str], vocabulary: Vocabulary, weights: IntArray) -> float:
    numbers = [vocabulary.index[i] for i in ids if i in vocabulary.index]
    return round(float(weights[numbers].sum() / weights.sum()), 6)
