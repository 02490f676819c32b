"""What a generator is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from recbole_tpad.data import DatasetFolder, Item
from recbole_tpad.data.image_hashes import image_sha256
from recbole_tpad.store.item_embeddings import Hashes
from recbole_tpad.store.shards import SHARD_ITEMS, Rows


@dataclass(frozen=True, slots=True)
class Encoded:
    """Item vectors with what determined them.

    Attributes:
        arrays: modality → (N, dim) array, or rows on disk, in the data set's item order.
        role: the store's role (K0, K1, other).
        uses_sessions: whether training sessions had any influence.
        inputs: name → SHA-256 of everything that determined the vectors.
        content: hash of what was read of each item, (N, 16), where items can be encoded one by one.
        scratch: folder of the rows, to be removed once they are in a store.
        shard_items: rows a file.
    """

    arrays: Mapping[str, Rows]
    role: str
    uses_sessions: bool
    inputs: dict[str, str]
    content: Hashes | None = None
    scratch: Path | None = None
    shard_items: int = SHARD_ITEMS


@dataclass(slots=True)
class RunRecord:
    """What happened while making embeddings; becomes ``run.json`` beside the manifest."""

    stages: list[dict[str, Any]] = field(default_factory=list)
    generation_rate: dict[str, float | None] | None = None
    warnings: list[str] = field(default_factory=list)


class Generator(Protocol):
    """A way to make item embeddings.

    A new one is a Python file with one class of this shape, whose first argument is a dataclass of
    settings, and a YAML file that names it. One that shares a base out among processes, where the
    launcher asks for FSDP, says so by an attribute ``divides_base = True``.
    """

    def fingerprint(self, dataset: DatasetFolder) -> dict[str, str]:
        """Name → SHA-256 of everything that will determine the vectors, before any work."""
        ...

    def generate(self, dataset: DatasetFolder, work: Path, record: RunRecord) -> Encoded:
        """Fit on the data set and encode all its items.

        Args:
            dataset: items and training sessions.
            work: folder for cached stages.
            record: filled with stages, histories and warnings.
        """
        ...


def items_sha256(items: Iterable[Item], *, images: bool, keywords: bool) -> str:
    """SHA-256 of item contents: id, title, brand, description, category, and if asked the image
    bytes and keywords."""
    digest = hashlib.sha256()
    for item in items:
        parts = [item.item_id, item.title, item.brand, item.description, item.category]
        if keywords:
            parts.append("\x1e".join(item.keywords))
        if images:
            parts.append(image_sha256(item.image) if item.image else "")
        digest.update("\x1f".join(parts).encode() + b"\n")
    return digest.hexdigest()
