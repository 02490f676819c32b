"""Frozen CLIP or SigLIP: an image and a text vector of every item, in the model's shared space."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoConfig, CLIPModel, SiglipModel

import recbole_tpad
from recbole_tpad.backbones.checkpoints import (
    folder_files,
    require_safetensors,
    resolve,
    revision_of,
)
from recbole_tpad.backbones.loading import load_tokenizer
from recbole_tpad.backbones.settings import DTYPES
from recbole_tpad.backbones.vision_cache import VisionCache
from recbole_tpad.backbones.vision_loading import load_image_processor
from recbole_tpad.data import DatasetFolder, Item
from recbole_tpad.data.item_text import check_item_text
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.files import sha256_json
from recbole_tpad.generators.base import Encoded, RunRecord, items_sha256
from recbole_tpad.generators.content import (
    fill_absent,
    items_as_read,
    reading_plan,
    require_images,
    texts_of,
)
from recbole_tpad.generators.frozen_images import image_vectors
from recbole_tpad.progress import progress
from recbole_tpad.settings import at_least

_MODELS = {"clip": CLIPModel, "siglip": SiglipModel}
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ClipSettings:
    """Attributes:
    model: CLIP or SigLIP checkpoint with both sides: local folder or hub id.
    model_revision: commit to pin a hub id to.
    item_text: with {title}, {brand}, {category}, {description}.
    use_images, use_text: which of the two vectors are made.
    dtype: of the weights.
    batch_size: items at a time.
    """

    model: str
    model_revision: str | None = None
    item_text: str = "{title}, {brand}"
    use_images: bool = True
    use_text: bool = True
    dtype: str = "float32"
    batch_size: int = 64

    def __post_init__(self) -> None:
        at_least("clip", 1, batch_size=self.batch_size)
        check_item_text(self.item_text)
        if self.dtype not in DTYPES:
            raise InputError(
                f"clip: unknown dtype '{self.dtype}'.{nearest(self.dtype, DTYPES)} "
                f"Known: {', '.join(DTYPES)}."
            )
        if not (self.use_images or self.use_text):
            raise InputError("clip: use_images and use_text are both false; nothing is left.")


class ClipGenerator:
    """Projected, L2-normalised vectors of both sides, without training.

    Args:
        settings: see `ClipSettings`.
        device: None picks CUDA where there is one.
    """

    def __init__(self, settings: ClipSettings, device: torch.device | None = None) -> None:
        self._settings = settings
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def _read(self, dataset: DatasetFolder) -> tuple[list[Item], list[str]]:
        """Items and texts as they are read, or a refusal."""
        settings = self._settings
        items = items_as_read(dataset.items, use_images=settings.use_images)
        if settings.use_images:
            require_images(dataset, items, instead="set use_images: false (--use_images=false)")
        texts = texts_of(dataset, items, settings.item_text) if settings.use_text else []
        return items, texts

    def fingerprint(self, dataset: DatasetFolder) -> dict[str, str]:
        """Depends on the model's files, the settings, the texts and the images.

        Raises:
            InputError: no item has what is to be read.
        """
        settings = self._settings
        items, _ = self._read(dataset)
        files = folder_files(resolve(settings.model, settings.model_revision))
        chosen = {k: v for k, v in asdict(settings).items() if k != "batch_size"}
        own = {"code": recbole_tpad.__version__, "settings": chosen, "files": files}
        return {
            "model": sha256_json(own),
            "items": items_sha256(items, images=True, keywords=False),
        } | revision_of(settings.model, settings.model_revision)

    def plan(self, dataset: DatasetFolder) -> list[str]:
        """Lines that say what a run would read."""
        items, _ = self._read(dataset)
        model = (self._settings.model, self._settings.model_revision)
        return reading_plan(items, [model], "each image and each text once, without training")

    def generate(self, dataset: DatasetFolder, work: Path, record: RunRecord) -> Encoded:
        """Encode every image and every text.

        Raises:
            InputError: no item has what is to be read, or another kind of model.
        """
        started = time.perf_counter()
        items, texts = self._read(dataset)
        inputs = self.fingerprint(dataset)
        folder = resolve(self._settings.model, self._settings.model_revision)
        model, kind = _load(folder, DTYPES[self._settings.dtype])
        model = model.to(self._device).eval()
        arrays: dict[str, Vectors] = {}
        summary: dict[str, float] = {}
        if self._settings.use_images:
            cache = VisionCache(work / f"clip-{inputs['model'][:16]}")
            arrays["visual"], absent = self._images(model, folder, items, cache, record)
            summary["items_without_image"] = absent
        if self._settings.use_text:
            arrays["text"] = self._texts(model, kind, folder, texts)
            summary["items_without_text"] = texts.count("")
        seconds = time.perf_counter() - started
        summary["items_per_second"] = len(items) / seconds
        record.stages.append(
            {"name": "encoding", "seconds": seconds, "history": [], "summary": summary}
        )
        return Encoded(arrays, "other", False, inputs)

    def _images(
        self,
        model: Any,
        folder: Path,
        items: Sequence[Item],
        cache: VisionCache,
        record: RunRecord,
    ) -> tuple[Vectors, int]:
        """Vectors of the items' images, and how many have none."""
        processor = load_image_processor(folder)

        def encode(images: list[Image.Image]) -> torch.Tensor:
            pixels = processor(images=images, return_tensors="pt")["pixel_values"]
            pixels = pixels.to(self._device, model.dtype)
            found = model.get_image_features(pixel_values=pixels).pooler_output.float()
            return functional.normalize(found, dim=-1)

        table, present = image_vectors(items, cache, encode, self._settings.batch_size, record)
        return fill_absent(table, present), int((~present).sum())

    @torch.no_grad()
    def _texts(self, model: Any, kind: str, folder: Path, texts: Sequence[str]) -> Vectors:
        tokenizer = load_tokenizer(folder)
        longest = int(model.config.text_config.max_position_embeddings)
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        table: Vectors | None = None
        size = self._settings.batch_size
        for start in progress(range(0, len(order), size), desc="texts"):
            rows = order[start : start + size]
            # SigLIP was trained on texts padded to the end and reads the last place.
            batch = tokenizer(
                [texts[row] for row in rows],
                padding="max_length" if kind == "siglip" else True,
                truncation=True,
                max_length=longest,
                split_special_tokens=True,
                return_tensors="pt",
            ).to(self._device)
            wanted = {n: t for n, t in batch.items() if n in ("input_ids", "attention_mask")}
            if kind == "siglip":
                wanted.pop("attention_mask", None)
            found = model.get_text_features(**wanted).pooler_output.float()
            unit = functional.normalize(found, dim=-1).cpu().numpy()
            if table is None:
                table = np.zeros((len(texts), unit.shape[1]), dtype=np.float32)
            table[rows] = unit
        assert table is not None  # some item has a text
        return fill_absent(table, np.array([bool(text) for text in texts]))


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, str]:
    require_safetensors(folder)
    try:
        kind = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
        if kind not in _MODELS:
            raise ValueError(f"its model_type is '{kind}', not one of {', '.join(_MODELS)}")
        model = _MODELS[kind].from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} cannot be loaded as CLIP or SigLIP with both sides: {error}"
        ) from error
    return model, str(kind)
