"""Any model of the sentence-transformers library, with the prompts and pooling it comes with."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import recbole_tpad
from recbole_tpad.backbones.checkpoints import (
    folder_files,
    require_safetensors,
    resolve,
    revision_of,
)
from recbole_tpad.data import DatasetFolder
from recbole_tpad.data.item_text import check_item_text
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.files import sha256_json
from recbole_tpad.generators.base import Encoded, RunRecord, items_sha256
from recbole_tpad.generators.content import fill_absent, reading_plan, texts_of
from recbole_tpad.settings import at_least


@dataclass(frozen=True, slots=True)
class SentenceTransformerSettings:
    """Attributes:
    model: local folder or hub id.
    model_revision: commit to pin a hub id to.
    item_text: with {title}, {brand}, {category}, {description}.
    prompt: put before every text; empty: the model's own default prompt.
    prompt_name: instead, one of the prompts that the model comes with.
    batch_size: texts at a time.
    max_text_tokens: longer texts are cut; 0: the model's own limit.
    """

    model: str
    model_revision: str | None = None
    item_text: str = "{title}, {brand}"
    prompt: str = ""
    prompt_name: str = ""
    batch_size: int = 64
    max_text_tokens: int = 0

    def __post_init__(self) -> None:
        at_least("sentence_transformer", 1, batch_size=self.batch_size)
        at_least("sentence_transformer", 0, max_text_tokens=self.max_text_tokens)
        check_item_text(self.item_text)
        if self.prompt and self.prompt_name:
            raise InputError("sentence_transformer: give prompt or prompt_name, not both.")


class SentenceTransformerGenerator:
    """Frozen sentence embeddings of the items' texts.

    Args:
        settings: see `SentenceTransformerSettings`.
        device: None picks CUDA where there is one.
    """

    def __init__(
        self, settings: SentenceTransformerSettings, device: torch.device | None = None
    ) -> None:
        self._settings = settings
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def fingerprint(self, dataset: DatasetFolder) -> dict[str, str]:
        """Depends on the model's files, the settings and the items' text."""
        settings = self._settings
        library = _library()
        texts_of(dataset, dataset.items, settings.item_text)
        files = folder_files(resolve(settings.model, settings.model_revision), below=True)
        versions = [recbole_tpad.__version__, library.__version__]
        own = {"code": versions, "settings": _determining(settings), "files": files}
        return {
            "model": sha256_json(own),
            "items": items_sha256(dataset.items, images=False, keywords=False),
        } | revision_of(settings.model, settings.model_revision)

    def plan(self, dataset: DatasetFolder) -> list[str]:
        """Lines that say what a run would read."""
        texts_of(dataset, dataset.items, self._settings.item_text)
        model = (self._settings.model, self._settings.model_revision)
        return reading_plan(dataset.items, [model], "each text once, without training")

    def generate(self, dataset: DatasetFolder, work: Path, record: RunRecord) -> Encoded:
        """Encode every text.

        Raises:
            InputError: the library is not installed, no item has a text, or the model does not
                load or has no such prompt.
        """
        settings = self._settings
        library = _library()
        texts = texts_of(dataset, dataset.items, settings.item_text)
        model = self._load(library)
        started = time.perf_counter()
        # Sorted by length inside the library; prompts are put before the text there too.
        table = model.encode(
            texts,
            batch_size=settings.batch_size,
            prompt=settings.prompt or None,
            prompt_name=settings.prompt_name or None,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        vectors = np.asarray(table, dtype=np.float32)
        seconds = time.perf_counter() - started
        present = np.array([bool(text) for text in texts])
        summary = {
            "items_without_text": int((~present).sum()),
            "items_per_second": len(texts) / seconds,
        }
        record.stages.append(
            {"name": "encoding", "seconds": seconds, "history": [], "summary": summary}
        )
        arrays = {"text": fill_absent(vectors, present)}
        return Encoded(arrays, "other", False, self.fingerprint(dataset))

    def _load(self, library: Any) -> Any:
        settings = self._settings
        folder = resolve(settings.model, settings.model_revision)
        require_safetensors(folder)
        try:
            model = library.SentenceTransformer(
                str(folder),
                device=str(self._device),
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"{folder} cannot be loaded by sentence-transformers: {error}") from (
                error
            )
        if settings.prompt_name and settings.prompt_name not in model.prompts:
            known = sorted(model.prompts)
            raise InputError(
                f"{settings.model} has no prompt '{settings.prompt_name}'."
                f"{nearest(settings.prompt_name, known)} Known: {', '.join(known) or 'none'}."
            )
        if settings.max_text_tokens:
            model.max_seq_length = settings.max_text_tokens
        return model


def _determining(settings: SentenceTransformerSettings) -> dict[str, Any]:
    return {k: v for k, v in asdict(settings).items() if k != "batch_size"}


def _library() -> Any:
    """The sentence-transformers library.

    Raises:
        InputError: it is not installed; the message names the extra.
    """
    try:
        import sentence_transformers
    except ImportError as error:
        raise InputError(
            "The generator 'sentence_transformer' needs the sentence-transformers library. Run "
            "pip install 'recbole-tpad[sentence-transformers]'."
        ) from error
    return sentence_transformers
