"""A complete small data set folder and a very small backbone, for tests of what reads them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_data import planted_sessions, write_data_set

from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.backbones.loading import load_composed
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.backbones.tiny import TinySettings, create_tiny
from recbole_tpad.data import DatasetFolder, Item

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}
KINDS = ("mug", "bowl", "plate", "jug")
STYLES = ("rustic", "modern", "classic")
EDGE = 16  # pixels
WITHOUT_IMAGE = ("i03", "i11")
TINY: dict[str, Any] = {
    "word_dim": 32,
    "layers": 2,
    "heads": 4,
    "vocabulary": 400,
    "image_size": EDGE,
    "patch_size": 8,
    "vision_dim": 16,
    "vision_layers": 1,
    "queries": 3,
}


def records(n_items: int = 24) -> list[dict[str, Any]]:
    """Lines of ``items.jsonl``: ids i00, i01, …; the colour is in the image and keywords only."""
    return [
        {
            "item_id": f"i{k:02d}",
            "title": f"{STYLES[k % 3]} {KINDS[k % 4]} number {k}",
            "brand": f"Brand{k % 5}",
            "category": f"{KINDS[k % 4]}s",
            "category_path": ["Home", f"{KINDS[k % 4]}s"],
            "description": f"A {KINDS[k % 4]} for every day",
            "features": [],
            "price": 5.0 + k,
            "image_urls": [],
        }
        for k in range(n_items)
    ]


def colour_of(k: int) -> str:
    """Colour of item k."""
    return list(COLOURS)[(k // 2) % len(COLOURS)]


def draw(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    """Write a noisy single-coloured PNG."""
    noise = np.random.default_rng(seed).integers(-25, 26, size=(EDGE, EDGE, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels, "RGB").save(path)


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_catalogue(data_path: Path, name: str = "shop", n_items: int = 24) -> DatasetFolder:
    """Write a data set folder with items, images, keywords and sessions; open it."""
    train, valid, test = planted_sessions(n_items, n_sessions=60)
    folder = write_data_set(data_path, name, train, valid, test)
    (folder / "dataset.json").write_text(json.dumps({"format": 1, "name": name}))
    write_lines(folder / "items.jsonl", records(n_items))
    (folder / "images").mkdir()
    images, keywords = [], []
    for k, record in enumerate(records(n_items)):
        item_id, colour = record["item_id"], colour_of(k)
        keywords.append({"item_id": item_id, "keywords": [colour, "round"], "annotator": "file"})
        if item_id in WITHOUT_IMAGE:
            images.append({"item_id": item_id, "file": None, "sha256": None, "status": "missing"})
            continue
        file = f"images/{item_id}.png"
        draw(folder / file, COLOURS[colour], k)
        digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        images.append({"item_id": item_id, "file": file, "sha256": digest, "status": "ok"})
    write_lines(folder / "images.jsonl", images)
    write_lines(folder / "keywords.jsonl", keywords)
    return DatasetFolder.open(data_path, name)


def write_backbone(folder: Path, items: list[Item], **sizes: Any) -> Path:
    """Write a very small backbone whose tokenizer knows the items' texts."""
    folder.mkdir(parents=True)
    texts = [" ".join([i.title, i.brand, i.category, *i.keywords]) for i in items]
    create_tiny(folder, texts, TinySettings(**{**TINY, **sizes}), seed=3)
    return folder


def load_backbone(folder: Path, *, stir: bool = True, **settings: Any) -> ComposedBackbone:
    """Load it; with `stir` its towers differ and LoRA does something (a new adapter's B is 0)."""
    torch.manual_seed(5)
    backbone = load_composed(
        BackboneSettings(
            vision=str(folder / "vision"),
            language_model=str(folder / "language_model"),
            lora={"rank": 4, "alpha": 8, "dropout": 0.0, **settings.pop("lora", {})},
            **settings,
        )
    ).eval()
    if stir:
        with torch.no_grad():
            for tower in ("knowledge", "transition"):
                for parameter in backbone.tower_parameters(tower).values():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone
