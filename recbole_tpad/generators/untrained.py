"""The mean of a model's word vectors: what its vocabulary alone says of an item."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel

import recbole_tpad
from recbole_tpad.backbones.checkpoints import (
    folder_files,
    read_tensor_ending,
    require_safetensors,
    resolve,
    revision_of,
)
from recbole_tpad.backbones.loading import load_tokenizer
from recbole_tpad.data import DatasetFolder
from recbole_tpad.data.item_text import check_item_text
from recbole_tpad.errors import InputError
from recbole_tpad.files import sha256_json
from recbole_tpad.generators.base import Encoded, RunRecord, items_sha256
from recbole_tpad.generators.content import fill_absent, texts_of
from recbole_tpad.settings import at_least


@dataclass(frozen=True, slots=True)
class UntrainedSettings:
    """Attributes:
    model: any text model with a table of word vectors: local folder or hub id.
    model_revision: commit to pin a hub id to.
    item_text: with {title}, {brand}, {category}, {description}.
    max_text_tokens: longer texts are cut.
    """

    model: str
    model_revision: str | None = None
    item_text: str = "{title}, {brand}"
    max_text_tokens: int = 96

    def __post_init__(self) -> None:
        at_least("untrained", 1, max_text_tokens=self.max_text_tokens)
        check_item_text(self.item_text)


class UntrainedGenerator:
    """Each item is the mean of its tokens' word vectors; no layer of the model runs."""

    def __init__(self, settings: UntrainedSettings) -> None:
        self._settings = settings

    def fingerprint(self, dataset: DatasetFolder) -> dict[str, str]:
        """Depends on the model's files, the settings and the items' text."""
        settings = self._settings
        texts_of(dataset, dataset.items, settings.item_text)
        files = folder_files(resolve(settings.model, settings.model_revision))
        own = {"code": recbole_tpad.__version__, "settings": asdict(settings), "files": files}
        return {
            "model": sha256_json(own),
            "items": items_sha256(dataset.items, images=False, keywords=False),
        } | revision_of(settings.model, settings.model_revision)

    def generate(self, dataset: DatasetFolder, work: Path, record: RunRecord) -> Encoded:
        """Average the word vectors.

        Raises:
            InputError: no item has a text, or a model without word vectors that can be read.
        """
        started = time.perf_counter()
        settings = self._settings
        texts = texts_of(dataset, dataset.items, settings.item_text)
        folder = resolve(settings.model, settings.model_revision)
        words = word_vectors(folder)
        # A title that spells a control token is text and must not act as one.
        tokens = load_tokenizer(folder)(
            texts,
            truncation=True,
            max_length=settings.max_text_tokens,
            add_special_tokens=False,
            split_special_tokens=True,
        )["input_ids"]
        present = np.array([bool(t) for t in tokens])
        table = np.zeros((len(texts), words.shape[1]), dtype=np.float32)
        for row, ids in enumerate(tokens):
            if ids:
                table[row] = words[ids].float().mean(0).numpy()
        seconds = time.perf_counter() - started
        summary = {"items_without_text": int((~present).sum()), "width": words.shape[1]}
        record.stages.append(
            {"name": "encoding", "seconds": seconds, "history": [], "summary": summary}
        )
        arrays = {"text": fill_absent(table, present)}
        return Encoded(arrays, "other", False, self.fingerprint(dataset))


def word_vectors(folder: Path) -> torch.Tensor:
    """A model's table of word vectors, (vocabulary, width); nothing else of it is read.

    Raises:
        InputError: not a model, no safetensors, or no such table.
    """
    require_safetensors(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModel.from_config(config)
        weight = model.get_input_embeddings().weight
    except (OSError, ValueError, AttributeError, NotImplementedError) as error:
        raise InputError(f"{folder} is no model with word vectors: {error}") from error
    name = next(n for n, p in model.named_parameters() if p is weight)
    suffix = ".".join(name.split(".")[-2:])
    return read_tensor_ending(folder, suffix, tuple(weight.shape))
