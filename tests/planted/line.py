"""The demo's line with its controls: same shop, same settings, one thing broken at a time."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset_converters.amazon import convert_amazon
from dataset_converters.images import attach_images
from dataset_converters.split import split_sha256
from recbole_tpad.data import DatasetFolder
from recbole_tpad.demo.line import GENERATOR, NAME
from recbole_tpad.demo.shop import make_shop
from recbole_tpad.generators.embed import embed
from recbole_tpad.keywords.annotate import annotate_from_file
from recbole_tpad.store import ItemEmbeddings, open_store, write_store


@dataclass(frozen=True)
class Line:
    """A converted shop under ``root/dataset/shop``."""

    root: Path

    @property
    def data_path(self) -> Path:
        return self.root / "dataset"

    @property
    def folder(self) -> DatasetFolder:
        return DatasetFolder.open(self.data_path, NAME)


def make_line(root: Path, shop_seed: int = 7, **sizes: int) -> Line:
    """Make the demo's shop, or a smaller one, and convert it as the demo does."""
    shop = make_shop(root / "raw", seed=shop_seed, **sizes)
    line = Line(root)
    convert_amazon(NAME, shop.reviews, shop.meta, line.data_path, sessions="day")
    attach_images(line.data_path / NAME, shop.images)
    annotate_from_file(line.data_path, NAME, shop.keywords)
    return line


def embed_variant(line: Line, name: str, seed: int, **changes: object) -> ItemEmbeddings:
    """Embed with the demo's generator and changed settings, stored as `name`."""
    return embed(line.data_path, NAME, GENERATOR, name=name, overrides={"seed": seed, **changes})


def relabelled(line: Line, source: ItemEmbeddings, name: str, rows: np.ndarray) -> ItemEmbeddings:
    """Store `source` again with row i holding the vectors of row rows[i], for this line's split."""
    return write_store(
        line.folder.path / "embeddings" / name,
        source.item_ids,
        {m: np.asarray(source.array(m))[rows] for m in source.manifest.modalities},
        role=source.manifest.role,
        generator=source.manifest.generator,
        dataset=NAME,
        split_fingerprint=line.folder.split_fingerprint,
        inputs=source.manifest.inputs,
    )


def shuffled_map(line: Line, source: ItemEmbeddings, name: str, seed: int) -> ItemEmbeddings:
    """Control (a): every item gets another item's vectors (a random cycle: nobody keeps theirs)."""
    order = np.random.default_rng(seed).permutation(len(source.item_ids))
    rows = np.empty_like(order)
    rows[order] = np.roll(order, 1)
    return relabelled(line, source, name, rows)


def permuted_sessions(line: Line, root: Path, seed: int) -> Line:
    """Control (d): a copy of the line whose training sessions hold permuted items.

    All item occurrences are shuffled across sessions: popularity and session lengths stay, what
    follows what is gone.
    """
    other = Line(root)
    target = other.data_path / NAME
    ignored = shutil.ignore_patterns("embeddings", "runs", "transition-*", "alignment-*")
    shutil.copytree(line.folder.path, target, ignore=ignored)
    sessions = list(line.folder.train_sessions())
    flat = np.array([item for _, items in sessions for item in items])
    np.random.default_rng(seed).shuffle(flat)
    train = target / f"{NAME}.train.inter"
    header = train.read_text().splitlines()[0]
    permuted, rows, start = [], [header], 0
    for session_id, items in sessions:
        drawn = flat[start : start + len(items)].tolist()
        start += len(items)
        permuted.append((session_id, drawn))
        rows += [
            f"{session_id}\t{' '.join(drawn[:end])}\t{drawn[end]}" for end in range(1, len(drawn))
        ]
    train.write_text("\n".join(rows) + "\n")
    split = json.loads((target / "split.json").read_text())
    split["parts"]["train"]["sha256"] = split_sha256(permuted)
    (target / "split.json").write_text(json.dumps(split))
    return other


def adopt(line: Line, other: Line, store: str, name: str) -> ItemEmbeddings:
    """Take over a store made on another line, as if it had been made for this line's split."""
    source = open_store(other.folder.path / "embeddings" / store)
    return relabelled(line, source, name, np.arange(len(source.item_ids)))
