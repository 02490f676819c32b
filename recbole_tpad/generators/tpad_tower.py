"""A finished knowledge tower on disk: what is needed to encode further items with it.

Beside its weights it keeps what it was trained on, so that an update can say how far the
catalogue has moved since (`recbole_tpad.generators.drift`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from recbole_tpad.backbones.base import Backbone
from recbole_tpad.backbones.loading import load_backbone
from recbole_tpad.backbones.prompts import PromptTemplate
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.backbones.towers import load_tower, put
from recbole_tpad.data import Item
from recbole_tpad.data.image_hashes import image_sha256
from recbole_tpad.errors import InputError
from recbole_tpad.files import atomic_folder, sha256_json, write_json
from recbole_tpad.settings import from_mapping
from recbole_tpad.stages.encoding import EncodingRecord, EncodingSettings, encode_shards
from recbole_tpad.stages.processes import place
from recbole_tpad.store.item_embeddings import CONTENT_BYTES, Hashes
from recbole_tpad.store.shards import ShardFolder

FORMAT = 1
_PARTS = ("vision", "language_model")  # of a tiny backbone, beside the tower


@dataclass(frozen=True, slots=True)
class TowerSettings:
    """What reads an item.

    Attributes:
        backbone: with the paths of its parts.
        key: fingerprint of everything that determined the weights.
        base: fingerprint of the backbone without what was trained.
        train_base: the base was trained too, so its weights lie with the tower's.
        use_images, use_text: whether items are read with them.
        encoding: how.
        trained_on: split fingerprint of the sessions that were read; None: none.
    """

    backbone: BackboneSettings
    key: str
    base: str
    train_base: bool
    use_images: bool
    use_text: bool
    encoding: EncodingSettings
    trained_on: str | None

    def folder(self, work: Path) -> Path:
        """Where it lies."""
        return tower_folder(work, self.key)

    def as_read(self, items: Sequence[Item]) -> list[Item]:
        """Items without what is not used, and without images whose file is gone."""
        changes: dict[str, Any] = {}
        if not self.use_images:
            changes["image"] = None
        if not self.use_text:
            changes |= {"title": "", "brand": "", "description": ""}
        found = []
        for item in items:
            gone = item.image is not None and not item.image.is_file()
            own: dict[str, Any] = {"image": None} if gone else {}
            found.append(dataclasses.replace(item, **(own | changes)))
        return found

    def content_hashes(self, items: Sequence[Item]) -> Hashes:
        """Hash of what is read of each item, (N, 16): its text as in the prompt, its image's bytes.

        Args:
            items: of `as_read`.
        """
        template = PromptTemplate.from_config(self.backbone.prompt)
        found = np.empty((len(items), CONTENT_BYTES), dtype=np.uint8)
        for row, item in enumerate(items):
            image = image_sha256(item.image) if item.image else ""
            digest = hashlib.sha256(f"{image}\x1f{template.text_of(item)}".encode()).digest()
            found[row] = np.frombuffer(digest[:CONTENT_BYTES], dtype=np.uint8)
        return found


def tower_folder(work: Path, key: str) -> Path:
    """Folder of a tower of this fingerprint."""
    return work / f"tower-{key[:16]}"


def encode(
    backbone: Backbone,
    settings: TowerSettings,
    items: Sequence[Item],
    content: Hashes,
    work: Path,
    device: torch.device,
) -> tuple[ShardFolder, EncodingRecord]:
    """Encode items with the knowledge tower into a folder of shards named after all of it.

    Args:
        backbone: with the tower's weights.
        settings: of the tower.
        items, content: of `as_read` and `content_hashes`.
        work: where the folder is made; a killed run's is gone on with.
        device: of the backbone.
    """
    ids = [item.item_id for item in items]
    manner = encoding_sha256(settings.encoding, device)
    name = sha256_json([settings.key, manner, ids, content.tobytes().hex()])
    folder = ShardFolder(
        work / f"encoding-{name[:16]}", ids, backbone.widths, settings.encoding.shard_items
    )
    return folder, encode_shards(backbone, items, folder, settings.encoding, device)


def encoding_sha256(settings: EncodingSettings, device: torch.device) -> str:
    """Hash of how a catalogue is cut into shards and batches."""
    return sha256_json(settings.manner(device))


def encoding_stage(done: EncodingRecord, seconds: float) -> dict[str, Any]:
    """The record of an encoding, as of a stage; of the first of several processes."""
    summary = {
        "items": done.items,
        "items_per_second": done.items / done.seconds if done.items else 0.0,
        "tokens": done.tokens,
        "padding": 1 - done.tokens / done.padded_tokens if done.padded_tokens else 0.0,
        "waiting": done.waited / done.seconds if done.items else 0.0,
        "smaller_batches": done.smaller_batches,
    }
    return {"name": "encoding", "seconds": seconds, "history": [], "summary": summary}


# -- on disk -------------------------------------------------------------------------------------


def save_tower(work: Path, backbone: Backbone, settings: TowerSettings) -> None:
    """Write the knowledge tower, unless it is there."""
    folder = settings.folder(work)
    if (folder / "tower.json").is_file():
        return
    values = dataclasses.asdict(settings)
    if settings.backbone.kind == "tiny":  # made beside it: the whole can be moved
        for part in _PARTS:
            path = Path(values["backbone"][part])
            values["backbone"][part] = str(path.relative_to(work))
    weights = {n: t.detach().cpu().contiguous() for n, t in _weights(backbone, settings).items()}
    with atomic_folder(folder) as made:
        save_file(weights, made / "weights.safetensors", metadata={"base": settings.base})
        write_json(made / "tower.json", {"format": FORMAT, **values})


def read_tower(work: Path, key: str) -> TowerSettings:
    """Read a tower's settings.

    Raises:
        InputError: there is none, or its file is damaged or of another version.
    """
    file = tower_folder(work, key) / "tower.json"
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise InputError(f"{file} is of another version. Run 'recbole-tpad embed' again.")
        backbone = values.pop("backbone")
        if backbone["kind"] == "tiny":
            backbone |= {part: str(work / backbone[part]) for part in _PARTS}
        encoding = from_mapping(EncodingSettings, values.pop("encoding"), f"{file}: encoding")
        return TowerSettings(
            backbone=from_mapping(BackboneSettings, backbone, f"{file}: backbone"),
            encoding=encoding,
            **values,
        )
    except FileNotFoundError as error:
        raise InputError(
            f"{file} is not there: the tower that made this store was deleted with its stages. "
            "Run 'recbole-tpad embed' without --update to train one."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}). Run 'recbole-tpad embed' again.") from error


def load_for_encoding(work: Path, settings: TowerSettings, device: torch.device) -> Backbone:
    """Load the backbone with a tower's weights; it encodes, heads that answer are not loaded.

    Raises:
        InputError: absent or damaged weights, or a base that is not the one it was trained on.
    """
    features = None if settings.backbone.kind == "tiny" or settings.train_base else work
    backbone = load_backbone(settings.backbone, [], features)
    weights = load_tower(settings.folder(work) / "weights.safetensors", settings.base)
    put(_weights(backbone, settings), weights)
    return place(backbone, device, train_base=settings.train_base)


def _weights(backbone: Backbone, settings: TowerSettings) -> Mapping[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = dict(backbone.tower_parameters("knowledge"))
    found |= backbone.fitted_buffers()
    if settings.train_base:
        found |= backbone.base_parameters()
    # Their classes are the training catalogue's, and encoding does not ask them.
    return {n: t for n, t in found.items() if not n.startswith("tower.answers.")}
