"""Writes raw Amazon files of the 2018 format, as large as asked, for measurements.

Usage: raw_reviews.py FOLDER REVIEWS [USERS ITEMS UNREVIEWED]
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

REVIEWS_A_USER = 8
REVIEWS_AN_ITEM = 40
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FIRST_DAY = 14_000  # days since 1970
_DAYS = 3_000


def _id(number: int, length: int, prefix: str) -> str:
    text = ""
    number = number * 2_654_435_761 % 36**length  # spread out: neighbours do not look alike
    for _ in range(length):
        number, digit = divmod(number, 36)
        text += _DIGITS[digit]
    return prefix + text


def _texts(rng: np.random.Generator, count: int) -> list[str]:
    """Return review texts as JSON strings: words of a Zipf distribution, 40 words on average."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(8_000)]
    texts = []
    for length in rng.lognormal(3.2, 1.0, count).astype(int) + 1:
        picked = [words[k] for k in np.minimum(rng.zipf(1.4, min(length, 900)), 8_000) - 1]
        text = " ".join(picked).capitalize() + "."
        texts.append(json.dumps(text.replace(". ", '. "So"\n') if length % 7 == 0 else text))
    return texts


def write_raw_files(
    folder: Path,
    reviews: int,
    users: int | None = None,
    items: int | None = None,
    unreviewed: int = 0,
    *,
    seed: int = 0,
) -> tuple[Path, Path]:
    """Write ``reviews.json.gz`` and ``meta.json.gz``; return their paths.

    The metadata have `unreviewed` records of items without reviews, between the others.

    Users visit on days and review one or a few items then; reviews are ordered by item, as in the
    published files. 1 item in 20 has no brand, 1 in 10 no image.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    users = users or reviews // REVIEWS_A_USER
    items = items or max(reviews // REVIEWS_AN_ITEM, 10)
    lengths = np.minimum(rng.geometric(0.6, reviews), 30)
    visits = int(np.searchsorted(np.cumsum(lengths), reviews)) + 1
    lengths = lengths[:visits]
    user = np.repeat(rng.integers(0, users, visits), lengths)[:reviews]
    day = np.repeat(rng.integers(_FIRST_DAY, _FIRST_DAY + _DAYS, visits), lengths)[:reviews]
    # Popularity falls slowly: the first tenth of the items has a third of the reviews.
    item = (items * rng.random(reviews) ** 2).astype(np.int64)
    order = np.argsort(item, kind="stable")
    user, day, item = user[order], day[order], item[order]
    user_ids = [_id(number, 13, "A") for number in range(users)]
    item_ids = [_id(number, 8, "B0") for number in range(items)]
    texts = _texts(rng, 20_000)
    source = folder / "reviews.json.gz"
    with gzip.open(source, "wb", compresslevel=1) as out:
        for start in range(0, reviews, 100_000):
            stop = min(start + 100_000, reviews)
            picked = rng.integers(0, len(texts), stop - start)
            columns = (user[start:stop], item[start:stop], day[start:stop], picked)
            lines = [
                '{"overall": 5.0, "verified": true, "reviewTime": "06 17, 2018", "reviewerID": "'
                f'{user_ids[u]}", "asin": "{item_ids[i]}", "style": {{"Size:": " Large"}}, '
                f'"reviewerName": "Customer {u % 9973}", "reviewText": {texts[t]}, '
                f'"summary": "Five Stars", "unixReviewTime": {d * 86_400}}}\n'
                for u, i, d, t in zip(*(column.tolist() for column in columns), strict=True)
            ]
            out.write("".join(lines).encode())
            print(f"{stop:,} reviews written", end="\r", file=sys.stderr)
    return source, _write_metadata(folder / "meta.json.gz", item_ids, unreviewed, rng)


def _write_metadata(
    path: Path, item_ids: list[str], unreviewed: int, rng: np.random.Generator
) -> Path:
    others = [json.dumps(_metadata(k, "%%", rng)).split("%%") for k in range(1000)]
    written = 0
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as out:
        for number, item_id in enumerate(item_ids, start=1):
            out.write(json.dumps(_metadata(number - 1, item_id, rng)) + "\n")
            while written < unreviewed * number // len(item_ids):
                out.write(_id(written, 8, "C0").join(others[written % 1000]) + "\n")
                written += 1
    return path


def _metadata(number: int, item_id: str, rng: np.random.Generator) -> dict[str, Any]:
    image = f"https://images.example.com/I/{item_id}"
    return {
        "category": ["Sports &amp; Outdoors", "Exercise", f"Kind {number % 400}"],
        "tech1": "",
        "description": [f"A thing for sport number {number}, made to last and easy to clean."],
        "fit": "",
        "title": f"Thing {number} of Quality &amp; Comfort",
        "also_buy": [f"B0{k:08d}" for k in rng.integers(0, 10**8, 12)],
        "brand": "" if number % 20 == 0 else f"Brand {number % 3000}",
        "feature": ["Strong", "Light & soft", "Washable"],
        "rank": [">#12,345 in Sports (See Top 100)"],
        "also_view": [f"B0{k:08d}" for k in rng.integers(0, 10**8, 12)],
        "details": {"Shipping Weight:": "3 ounces"},
        "main_cat": "Sports",
        "date": "",
        "price": f"${number % 90 + 9}.99",
        "asin": item_id,
        "imageURL": [] if number % 10 == 0 else [f"{image}._SX38_.jpg"],
        "imageURLHighRes": [] if number % 10 == 0 else [f"{image}.jpg"],
    }


if __name__ == "__main__":
    write_raw_files(Path(sys.argv[1]), *map(int, sys.argv[2:]))
