"""Small data set folders for tests, with sessions given by hand or drawn from a planted world."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset_converters.split import split_sha256

Sessions = Sequence[tuple[str, Sequence[str]]]


def write_data_set(
    data_path: Path,
    name: str,
    train: Sessions,
    valid: Sessions,
    test: Sessions,
    *,
    augment: bool = True,
    max_len: int = 50,
) -> Path:
    """Write the benchmark files and ``split.json`` of a data set folder; return the folder."""
    folder = data_path / name
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": train, "valid": valid, "test": test}
    for part, sessions in parts.items():
        lines = ["session_id:token\titem_id_list:token_seq\titem_id:token"]
        for session, items in sessions:
            first = 1 if augment and part == "train" else len(items) - 1
            for end in range(first, len(items)):
                lines.append(
                    f"{session}\t{' '.join(items[max(0, end - max_len) : end])}\t{items[end]}"
                )
        (folder / f"{name}.{part}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    split = {
        "format": 1,
        "rule": "temporal",
        "sessions": "user",
        "augmented": augment,
        "max_len": max_len,
        "parts": {
            part: {
                "sessions": len(sessions),
                "interactions": sum(len(items) for _, items in sessions),
                "sha256": split_sha256([(s, list(items)) for s, items in sessions]),
            }
            for part, sessions in parts.items()
        },
    }
    (folder / "split.json").write_text(json.dumps(split), encoding="utf-8")
    return folder


def planted_sessions(
    n_items: int = 30, n_sessions: int = 150, seed: int = 0
) -> tuple[list[tuple[str, list[str]]], ...]:
    """Return train, valid and test sessions in which item k is mostly followed by k + 1."""
    rng = np.random.default_rng(seed)
    sessions = []
    for s in range(n_sessions):
        item = int(rng.integers(n_items))
        items = [item]
        for _ in range(int(rng.integers(1, 6))):
            step = 1 if rng.random() < 0.8 else int(rng.integers(2, n_items))
            item = (item + step) % n_items
            items.append(item)
        sessions.append((f"s{s:04d}", [f"i{k:02d}" for k in items]))
    first, second = int(n_sessions * 0.7), int(n_sessions * 0.85)
    return sessions[:first], sessions[first:second], sessions[second:]
