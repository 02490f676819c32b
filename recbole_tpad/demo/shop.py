"""Writes a made shop as raw Amazon 2018 files: reviews, metadata, photographs, keywords."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from recbole_tpad.demo.photographs import photograph, visual_keywords
from recbole_tpad.demo.world import (
    MadeSession,
    ShopConfig,
    Truth,
    make_sessions,
    make_truth,
    oracle_scores,
    truth_from_json,
    truth_to_json,
)
from recbole_tpad.errors import InputError
from recbole_tpad.files import atomic_path, write_json

__all__ = ["ShopConfig", "ShopFiles", "Truth", "load_truth", "make_shop", "oracle_scores"]

_DEPARTMENT = "Home & Kitchen"
_URL = "https://images.example.com/images/I/"
_MATERIALS = ("Ceramic", "Glass", "Steel", "Bamboo", "Enamel", "Stoneware")
_DESCRIPTIONS = (
    "A {kind} for every day, easy to clean and safely packed.",
    "This {kind} makes a fine gift for a new home.",
    "Our best-selling {kind}, tested in daily use.",
    "A sturdy {kind} that will last for years.",
)
_FEATURES = ("Easy to clean", "Safely packed", "Two-year warranty", "Gift box included")
_REVIEWS = (
    ("Good value", "Does what it should. Would buy again."),
    ("Five Stars", "Arrived on time and well packed."),
    ("Nice", "Bought it for my kitchen and I am happy with it."),
    ("As described", "No complaints so far."),
)
_NAMES = ("A. Reader", "Kindle Customer", "Amazon Customer", "J. Smith", "M. Jones")


@dataclass(frozen=True, slots=True)
class ShopFiles:
    """Where a made shop's files are.

    Attributes:
        reviews, meta: gzipped JSON lines as in Amazon's 2018 release.
        images: folder of PNG files, named as in the metadata's image URLs.
        keywords: CSV of item_id and keywords separated by ";".
        truth: JSON with the attributes and transitions; for tests, never an input.
    """

    folder: Path
    reviews: Path
    meta: Path
    images: Path
    keywords: Path
    truth: Path


def make_shop(
    folder: Path,
    config: ShopConfig | None = None,
    *,
    seed: int | None = None,
    items: int | None = None,
    users: int | None = None,
    sessions: int | None = None,
) -> ShopFiles:
    """Make a shop and write its files to `folder`; equal arguments give equal bytes.

    Colour and shape of a product are in its photograph only; brand and style in its text only; the
    kind of product is in title and category. Some items go on sale late in the year, so that a
    temporal split's training part has never seen them.

    Args:
        config: all settings; the keywords that follow replace single ones.

    Raises:
        InputError: settings that cannot be met, or a folder that cannot be written.
    """
    given = {"seed": seed, "items": items, "users": users, "sessions": sessions}
    config = replace(config or ShopConfig(), **{k: v for k, v in given.items() if v is not None})
    files = shop_files(folder)
    try:
        files.images.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot write to {folder}: {error.strerror}.") from error
    truth = make_truth(config)
    made = make_sessions(config, truth)
    names = _image_names(config)
    _write_gzip(files.meta, _meta_records(config, truth, names))
    _write_gzip(files.reviews, _review_records(config, truth, made))
    _write_images(files.images, config, truth, names)
    _write_keywords(files.keywords, truth)
    write_json(files.truth, {"config": asdict(config), **truth_to_json(truth)})
    return files


def shop_files(folder: Path) -> ShopFiles:
    """Where `make_shop` writes."""
    return ShopFiles(
        folder=folder,
        reviews=folder / "reviews.json.gz",
        meta=folder / "meta.json.gz",
        images=folder / "images",
        keywords=folder / "keywords.csv",
        truth=folder / "truth.json",
    )


def load_truth(path: Path) -> Truth:
    """Read ``truth.json``.

    Raises:
        InputError: unreadable, or not the truth of a made shop.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {path}: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object.")
    return truth_from_json(content)


def _image_names(config: ShopConfig) -> list[str]:
    """Different base names that say nothing about the item, as a shop's image server has."""
    rng = np.random.default_rng([config.seed, 2])
    numbers = rng.permutation(9_000 * max(1, config.items))[: config.items] + 10_000
    return [f"7{number}L.png" for number in numbers.tolist()]


def _meta_records(
    config: ShopConfig, truth: Truth, names: list[str]
) -> Iterable[Mapping[str, Any]]:
    rng = np.random.default_rng([config.seed, 3])
    for index, item_id in enumerate(truth.item_ids):
        kind = truth.value(index, "kind")
        style = truth.value(index, "style").capitalize()
        material = _MATERIALS[rng.integers(len(_MATERIALS))]
        model = f"{chr(ord('A') + rng.integers(26))}{rng.integers(100, 1000)}"
        price = float(np.exp(rng.normal(3.0, 0.6)))
        chosen = rng.permutation(len(_FEATURES))[:2]
        small = names[index].replace(".png", "._SX38_SY50_CR,0,0,38,50_.png")
        yield {
            "category": [_DEPARTMENT, f"{kind.capitalize()}s"],
            "tech1": "",
            "description": [_DESCRIPTIONS[rng.integers(len(_DESCRIPTIONS))].format(kind=kind)],
            "fit": "",
            "title": f"{style} {material} {kind.capitalize()} {model}",
            "also_buy": [],
            "tech2": "",
            "brand": truth.value(index, "brand"),
            "feature": [_FEATURES[i] for i in sorted(chosen.tolist())],
            "rank": f"{rng.integers(1_000, 900_000):,} in {_DEPARTMENT} (",
            "also_view": [],
            "details": {"ASIN: ": item_id},
            "main_cat": _DEPARTMENT,
            "similar_item": "",
            "date": "",
            "price": f"${price:,.2f}",
            "asin": item_id,
            "imageURL": [_URL + small],
            "imageURLHighRes": [_URL + names[index]],
        }


def _review_records(
    config: ShopConfig, truth: Truth, made: list[MadeSession]
) -> Iterable[Mapping[str, Any]]:
    rng = np.random.default_rng([config.seed, 4])
    rows = [
        (truth.item_ids[item], -time, session.user)
        for session in made
        for item, time in zip(session.items, session.times, strict=True)
    ]
    # As published: item by item, the latest review first; order in time is left to the reader.
    for item_id, minus_time, user in sorted(rows):
        date = datetime.fromtimestamp(-minus_time, tz=UTC)
        summary, text = _REVIEWS[rng.integers(len(_REVIEWS))]
        yield {
            "overall": float(rng.integers(3, 6)),
            "verified": bool(rng.random() < 0.9),
            "reviewTime": f"{date:%m} {date.day}, {date.year}",
            "reviewerID": user,
            "asin": item_id,
            "reviewerName": _NAMES[rng.integers(len(_NAMES))],
            "reviewText": text,
            "summary": summary,
            "unixReviewTime": -minus_time,
        }


def _write_gzip(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        # No name and no time in the header, so that equal shops are equal files.
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as out,
    ):
        for record in records:
            out.write(json.dumps(record).encode() + b"\n")


def _write_images(folder: Path, config: ShopConfig, truth: Truth, names: list[str]) -> None:
    rng = np.random.default_rng([config.seed, 5])
    for index, name in enumerate(names):
        image = photograph(
            rng,
            truth.value(index, "colour"),
            truth.value(index, "shape"),
            size=config.image_size,
            noise=config.noise,
        )
        encoded = io.BytesIO()
        image.save(encoded, format="PNG")
        (folder / name).write_bytes(encoded.getvalue())


def _write_keywords(path: Path, truth: Truth) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(("item_id", "keywords"))
        for index, item_id in enumerate(truth.item_ids):
            words = visual_keywords(truth.value(index, "colour"), truth.value(index, "shape"))
            rows.writerow((item_id, ";".join(words)))
