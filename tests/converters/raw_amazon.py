"""Writes small raw Amazon 2018 files, and a slow independent reading of the conversion rules."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
START = 1_500_000_000  # 2017-07-14 02:40:00 UTC
Review = tuple[str, str, int]


def review(user: str, item: str, time: int, **more: Any) -> dict[str, Any]:
    return {
        "overall": 5.0,
        "verified": True,
        "reviewTime": "01 1, 2017",
        "reviewerID": user,
        "asin": item,
        "reviewText": "Fine.",
        "unixReviewTime": time,
        **more,
    }


def meta(item: str, **more: Any) -> dict[str, Any]:
    return {
        "category": ["Home", "Mugs"],
        "description": ["A mug."],
        "title": f"Mug {item}",
        "brand": "Acme",
        "feature": [],
        "price": "$12.99",
        "asin": item,
        "imageURL": [f"https://example.com/I/{item}._SX38_.jpg"],
        "imageURLHighRes": [f"https://example.com/I/{item}.jpg"],
        **more,
    }


def write_lines(path: Path, records: Iterable[Any], *, gz: bool = True) -> Path:
    text = "".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if gz else text)
    return path


def raw_files(folder: Path, reviews: Sequence[Review], **more: Any) -> tuple[Path, Path]:
    """Write reviews, and metadata of every item in them."""
    folder.mkdir(exist_ok=True)
    items = sorted({item for _, item, _ in reviews})
    return (
        write_lines(folder / "reviews.json.gz", (review(*r) for r in reviews)),
        write_lines(folder / "meta.json.gz", (meta(i, **more) for i in items)),
    )


def random_reviews(
    seed: int, *, users: int = 60, items: int = 25, n: int = 500, hours: int = 240
) -> list[Review]:
    """Reviews in whole hours, in random file order, with equal time stamps."""
    rng = random.Random(seed)
    return [
        (
            f"U{rng.randrange(users)}",
            f"I{rng.randrange(items)}",
            START + 3600 * rng.randrange(hours),
        )
        for _ in range(n)
    ]


def sessions_by_hand(
    reviews: Sequence[Review], rule: str, gap: int = 0
) -> dict[str, list[tuple[int, str]]]:
    """Session id → (time, item) in order, by the words of the rules; `gap` in seconds."""
    found: dict[str, list[tuple[int, str]]] = {}
    for user in sorted({r[0] for r in reviews}):
        mine = sorted(((t, k, i) for k, (u, i, t) in enumerate(reviews) if u == user))
        first = mine[0][0]
        start = last = first
        for time, _, item in mine:
            if rule == "first-day" and time >= first + 86_400:
                continue
            start = time if time - last > gap else start
            last = time
            day = {"gap": f"_{start}", "timestamp": f"_{time}"}.get(rule, "")
            if rule == "day":
                day = "_" + datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d")
            found.setdefault(user + day, []).append((time, item))
    return found


def dimo_by_hand(
    reviews: Sequence[Review],
    min_item_count: int,
    valid_share: float = 0.1,
    *,
    number_last: bool = False,
) -> dict[str, dict[str, list[str]]]:
    """The published recipe step by step, on plain lists; all items have content.

    `number_last` numbers the sessions after the filters, which is not the recipe.
    """
    table = sessions_by_hand(reviews, "first-day")
    numbered = [(n, s, [i for _, i in table[s]]) for n, s in enumerate(sorted(table))]
    border = int(0.9 * numbered[-1][0])
    numbered = [row for row in numbered if len(row[2]) >= 2]
    counts = Counter(i for _, _, items in numbered for i in items)
    numbered = [(n, s, [i for i in it if counts[i] >= min_item_count]) for n, s, it in numbered]
    numbered = [(n, s, it[:20]) for n, s, it in numbered if len(it) >= 2]
    if number_last:
        numbered = [(n, s, items) for n, (_, s, items) in enumerate(numbered)]
        border = int(0.9 * numbered[-1][0])
    train = [row for row in numbered if row[0] < border]
    seen = {i for _, _, items in train for i in items}
    test = [(n, s, [i for i in it if i in seen]) for n, s, it in numbered if n >= border]
    held = int(len(train) * valid_share)
    return {
        "train": {s: it for _, s, it in train[: len(train) - held]},
        "valid": {s: it for _, s, it in train[len(train) - held :]},
        "test": {s: it for _, s, it in test if len(it) >= 2},
    }


def benchmark_lines(sessions: dict[str, list[str]]) -> list[str]:
    """The lines of a benchmark file with one row a session, header left out."""
    return [f"{s}\t{' '.join(items[:-1])}\t{items[-1]}" for s, items in sessions.items()]


def rows(path: Path) -> list[list[str]]:
    """The cells of a RecBole file, header left out."""
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
