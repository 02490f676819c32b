"""Frozen BLIP-2: mean query token beside mean language-model state of the text, then PCA."""

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
from sklearn.decomposition import PCA
from transformers import AutoConfig, AutoModelForCausalLM, Blip2ForConditionalGeneration

import recbole_tpad
from recbole_tpad.backbones.checkpoints import (
    folder_files,
    require_safetensors,
    resolve,
    revision_of,
)
from recbole_tpad.backbones.loading import load_tokenizer
from recbole_tpad.backbones.prompts import Prompt, collate
from recbole_tpad.backbones.settings import DTYPES
from recbole_tpad.backbones.vision_cache import VisionCache
from recbole_tpad.backbones.vision_loading import load_image_processor, load_vision
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
    training_rows,
)
from recbole_tpad.generators.frozen_images import image_vectors
from recbole_tpad.progress import progress
from recbole_tpad.settings import at_least

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Blip2Settings:
    """Attributes:
    model: BLIP-2 checkpoint: local folder or hub id.
    model_revision: commit to pin a hub id to.
    language_model: causal LM that reads the texts; empty: the one inside `model`.
    language_model_revision: commit to pin a hub id to.
    item_text: with {title}, {brand}, {category}, {description}.
    max_text_tokens: longer texts are cut.
    dimension: of the PCA; fewer where there are fewer training items or columns.
    dtype: of the weights.
    batch_size: items at a time.
    """

    model: str
    model_revision: str | None = None
    language_model: str = ""
    language_model_revision: str | None = None
    item_text: str = "{title}, {brand}"
    max_text_tokens: int = 96
    dimension: int = 256
    dtype: str = "float32"
    batch_size: int = 32

    def __post_init__(self) -> None:
        at_least("blip2", 1, max_text_tokens=self.max_text_tokens, dimension=self.dimension)
        at_least("blip2", 1, batch_size=self.batch_size)
        check_item_text(self.item_text)
        if self.dtype not in DTYPES:
            raise InputError(
                f"blip2: unknown dtype '{self.dtype}'.{nearest(self.dtype, DTYPES)} "
                f"Known: {', '.join(DTYPES)}."
            )

    def checkpoints(self) -> dict[str, tuple[str, str | None]]:
        """Name → (folder or hub id, revision)."""
        found = {"model": (self.model, self.model_revision)}
        if self.language_model:
            found["language_model"] = (self.language_model, self.language_model_revision)
        return found


class Blip2Generator:
    """Nothing trains but a PCA, and that is fitted on items of training sessions only.

    Args:
        settings: see `Blip2Settings`.
        device: None picks CUDA where there is one.
    """

    def __init__(self, settings: Blip2Settings, device: torch.device | None = None) -> None:
        self._settings = settings
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def _read(self, dataset: DatasetFolder) -> tuple[list[Item], list[str]]:
        items = items_as_read(dataset.items)
        require_images(dataset, items, instead="take a generator of texts (sentence_transformer)")
        return items, texts_of(dataset, items, self._settings.item_text)

    def fingerprint(self, dataset: DatasetFolder) -> dict[str, str]:
        """Depends on the models' files, the settings, texts, images and the training part.

        Raises:
            InputError: no item has an image, or none has a text.
        """
        settings = self._settings
        items, _ = self._read(dataset)
        parts = settings.checkpoints()
        files = {part: folder_files(resolve(*where)) for part, where in parts.items()}
        chosen = {k: v for k, v in asdict(settings).items() if k != "batch_size"}
        own = {"code": recbole_tpad.__version__, "settings": chosen, "files": files}
        found = {
            "model": sha256_json(own),
            "items": items_sha256(items, images=True, keywords=False),
            "split": dataset.split_fingerprint,
        }
        for where in parts.values():
            found |= revision_of(*where)
        return found

    def plan(self, dataset: DatasetFolder) -> list[str]:
        """Lines that say what a run would read."""
        items, _ = self._read(dataset)
        parts = self._settings.checkpoints().values()
        return reading_plan(items, parts, "each image and each text once, then a PCA")

    def generate(self, dataset: DatasetFolder, work: Path, record: RunRecord) -> Encoded:
        """Encode every image and text, and reduce them together.

        Raises:
            InputError: no item has an image or none a text, a checkpoint of another kind, or
                fewer than two items in training sessions.
        """
        started = time.perf_counter()
        items, texts = self._read(dataset)
        inputs = self.fingerprint(dataset)
        cache = VisionCache(work / f"blip2-{inputs['model'][:16]}")
        visual, has_image = self._images(items, cache, record)
        text, has_text = self._texts(texts)
        blocks = [fill_absent(visual, has_image), fill_absent(text, has_text)]
        table, explained = joint_pca(blocks, training_rows(dataset), self._settings.dimension)
        seconds = time.perf_counter() - started
        summary = {
            "items_without_image": int((~has_image).sum()),
            "items_without_text": int((~has_text).sum()),
            "explained_variance": explained,
            "items_per_second": len(items) / seconds,
        }
        record.stages.append(
            {"name": "encoding", "seconds": seconds, "history": [], "summary": summary}
        )
        return Encoded({"multimodal": table}, "other", True, inputs)

    def _images(
        self, items: Sequence[Item], cache: VisionCache, record: RunRecord
    ) -> tuple[Vectors, npt.NDArray[np.bool_]]:
        settings = self._settings
        folder = resolve(settings.model, settings.model_revision)
        processor = load_image_processor(folder)
        vision = load_vision(folder, dtype=DTYPES[settings.dtype]).to(self._device).eval()

        def encode(images: list[Image.Image]) -> torch.Tensor:
            pixels = processor(images=images, return_tensors="pt")["pixel_values"]
            queries: torch.Tensor = vision(pixels.to(self._device))
            return queries.mean(dim=1)

        return image_vectors(items, cache, encode, settings.batch_size, record)

    @torch.no_grad()
    def _texts(self, texts: Sequence[str]) -> tuple[Vectors, npt.NDArray[np.bool_]]:
        """Mean last-layer state over the text's own tokens; (N,): which items have a text."""
        settings = self._settings
        model, folder = _language_model(settings)
        model = model.to(self._device).eval()
        tokenizer = load_tokenizer(folder)
        tokens = tokenizer(
            list(texts),
            truncation=True,
            max_length=settings.max_text_tokens,
            add_special_tokens=False,
            split_special_tokens=True,
        )["input_ids"]
        lead = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        present = np.array([bool(t) for t in tokens])
        rows = sorted(np.flatnonzero(present).tolist(), key=lambda row: len(tokens[row]))
        table = np.zeros((len(texts), int(model.config.hidden_size)), dtype=np.float32)
        size = settings.batch_size
        for start in progress(range(0, len(rows), size), desc="texts"):
            part = rows[start : start + size]
            batch = collate([Prompt(lead + tokens[row], []) for row in part]).to(self._device)
            states = model(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
            # The first token's state is an attention sink, hundreds of times larger.
            own = batch.mask.clone()
            own[:, : len(lead)] = 0
            weights = own[:, :, None].float()
            table[part] = ((states.float() * weights).sum(1) / weights.sum(1)).cpu().numpy()
        return table, present


def joint_pca(
    blocks: Sequence[Vectors], fit_rows: npt.NDArray[np.int64], dimension: int
) -> tuple[Vectors, float]:
    """PCA of blocks of columns side by side, each block scaled to the same total variance.

    Args:
        blocks: (N, width) each.
        fit_rows: rows that means, scales and axes are fitted on.
        dimension: wanted columns.

    Returns:
        (N, dimension or fewer), and the share of the fitted rows' variance in it.

    Raises:
        InputError: fewer than two rows to fit on.
    """
    if len(fit_rows) < 2:
        raise InputError("PCA needs at least two items that occur in training sessions.")
    parts = []
    for block in blocks:
        seen = block[fit_rows]
        scale = float(np.sqrt(seen.var(axis=0).sum()))
        parts.append((block - seen.mean(axis=0)) / (scale or 1.0))
    joined = np.concatenate(parts, axis=1)
    pca = PCA(min(dimension, len(fit_rows) - 1, joined.shape[1]), svd_solver="full")
    pca.fit(joined[fit_rows])
    table: Vectors = pca.transform(joined).astype(np.float32)
    return table, float(pca.explained_variance_ratio_.sum())


def _language_model(settings: Blip2Settings) -> tuple[Any, Path]:
    """The stack of layers that reads texts, and the folder of its tokenizer.

    Raises:
        InputError: it cannot be loaded, or BLIP-2 comes without one.
    """
    dtype = DTYPES[settings.dtype]
    if settings.language_model:
        folder = resolve(settings.language_model, settings.language_model_revision)
        require_safetensors(folder)
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} cannot be loaded as a causal LM: {error}") from error
        return model.get_decoder(), folder
    folder = resolve(settings.model, settings.model_revision)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if "Blip2ForConditionalGeneration" not in (getattr(config, "architectures", None) or ()):
        raise InputError(
            f"{folder} is a BLIP-2 without a language model; give one as language_model."
        )
    whole = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    inner = whole.language_model
    decoder_only = whole.config.use_decoder_only_language_model
    return (inner.get_decoder() if decoder_only else inner.get_encoder()), folder
