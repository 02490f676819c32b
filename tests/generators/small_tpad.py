"""A TPAD run of seconds: the tiny preset, made very small, a few steps a stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tiny_catalogue import TINY, read_lines, write_lines
from tiny_data import planted_sessions, write_data_set

from recbole_tpad.data import DatasetFolder
from recbole_tpad.generators.embed import embed
from recbole_tpad.generators.registry import merge
from recbole_tpad.store import ItemEmbeddings

NAME = "shop"
SMALL: dict[str, Any] = {
    "backbone": {"tiny": TINY, "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}},
    "knowledge": {"batch_size": 8, "holdout": 0.15, "loop": {"steps": 3}},
    "transition": {"pairs_per_step": 12, "loop": {"steps": 3}},
    "alignment": {"batch_size": 8, "projection": 8, "loop": {"steps": 3}},
}


def run_tpad(folder: DatasetFolder, changes: dict[str, Any] | None = None) -> ItemEmbeddings:
    """Embed with the small run and some changes to it."""
    overrides = merge(SMALL, changes or {})
    return embed(folder.path.parent, folder.name, "tpad-tiny", name="small", overrides=overrides)


def content(store: ItemEmbeddings) -> dict[str, bytes]:
    """The store's files, without the record of how long it took."""
    return {f.name: f.read_bytes() for f in store.path.iterdir() if f.name != "run.json"}


def stages(folder: DatasetFolder) -> dict[str, int]:
    """Finished stages and when they finished."""
    found = (folder.path / "stages").glob("*/stage.json")
    return {f.parent.name: f.stat().st_mtime_ns for f in found}


def kinds(names: Sequence[str] | set[str]) -> list[str]:
    """Stage kinds of stage folders."""
    return sorted(n.partition("-")[0] for n in names)


def rewrite(folder: DatasetFolder, file: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change every line of one of the data set's JSON-lines files."""
    lines = read_lines(folder.path / file)
    for line in lines:
        change(line)
    write_lines(folder.path / file, lines)


def reopened(folder: DatasetFolder) -> DatasetFolder:
    """The folder as it is on disk now."""
    return DatasetFolder.open(folder.path.parent, folder.name)


def resplit(folder: DatasetFolder, *, seed: int = 0, turn: int = 0) -> DatasetFolder:
    """Other sessions (`seed`), or the same with the targets of valid and test turned round."""
    parts = planted_sessions(len(folder.items), n_sessions=60, seed=seed)
    train, *rest = parts
    for part in rest:
        targets = [items[-1] for _, items in part]
        targets = targets[turn:] + targets[:turn]
        part[:] = [(s, [*i[:-1], t]) for (s, i), t in zip(part, targets, strict=True)]
    write_data_set(folder.path.parent, folder.name, train, *rest)
    return reopened(folder)


def run_record(store: ItemEmbeddings) -> dict[str, Any]:
    """``run.json``."""
    found: dict[str, Any] = json.loads((store.path / "run.json").read_text())
    return found


def paths(root: Path) -> set[str]:
    """Relative paths of all files below a folder."""
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
