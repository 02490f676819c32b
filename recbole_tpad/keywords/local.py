"""Annotator `local`: a vision-language model on this machine, loaded through transformers."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.files import sha256_file, sha256_json
from recbole_tpad.keywords.annotator import Answer, Outcome
from recbole_tpad.keywords.cache import AnswerCache
from recbole_tpad.keywords.prompt import KeywordPrompt, Unusable
from recbole_tpad.keywords.questions import ImageLimits, Question, QuestionMaker, Round
from recbole_tpad.progress import progress

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LOOK_AGAIN = 0.3  # seconds
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """Which model and how to run it.

    Attributes:
        model: local folder or hub id of an image-text-to-text model with its processor.
        revision: commit to pin a hub id to.
        device: torch device; None: the first GPU, else the CPU.
        dtype: of the weights; None: bfloat16 on a GPU, float32 elsewhere.
        batch_size: images at a time.
        max_tokens: of one answer.
    """

    model: str
    revision: str | None = None
    device: str | None = None
    dtype: str | None = None
    batch_size: int = 8
    max_tokens: int = 120

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("The annotator 'local' needs a model: --model FOLDER or hub id.")
        for name in ("batch_size", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise InputError(f"Unknown dtype '{self.dtype}'. Known: {', '.join(_DTYPES)}.")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, its processor and what identifies them.

    Attributes:
        identity: recorded with every answer; answers of equal identity are not asked for again.
    """

    model: Any
    processor: Any
    identity: dict[str, str]


def load_model(settings: LocalSettings) -> LoadedModel:
    """Load a model and its processor: safetensors only, no remote code.

    Raises:
        InputError: absent, not to be fetched, or of another kind.
    """
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = settings.dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    try:
        processor = AutoProcessor.from_pretrained(settings.model, revision=settings.revision)
        model = AutoModelForImageTextToText.from_pretrained(
            settings.model,
            revision=settings.revision,
            dtype=_DTYPES[dtype],
            use_safetensors=True,
        )
        model = model.to(device).eval()
    except ImportError as error:
        # Video-capable processors (Qwen2-VL and later) ask for torchvision.
        needed = " ".join(str(error).split())
        raise InputError(f"'{settings.model}' needs another package: {needed}") from error
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        # AssertionError: a CUDA device, and torch without CUDA.
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"'{settings.model}' cannot be loaded as an image-text-to-text model: {first[0]} Give "
            "a local folder or a hub id, and check --device."
        ) from error
    if getattr(processor, "tokenizer", None) is None:
        raise InputError(
            f"'{settings.model}' has no processor for images and text, only "
            f"{type(processor).__name__}."
        )
    identity = {
        "annotator": LocalAnnotator.name,
        "model": Path(settings.model).name if Path(settings.model).is_dir() else settings.model,
        "version": _version(settings, model),
        "dtype": dtype,
    }
    return LoadedModel(model, processor, identity)


def _version(settings: LocalSettings, model: Any) -> str:
    """The hub's commit, or a hash of a local folder's files."""
    folder = Path(settings.model)
    if not folder.is_dir():
        return str(getattr(model.config, "_commit_hash", None) or settings.revision or "unknown")
    hashes = {}
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"):
            # In the hub's cache a large file is a link to a blob that is named by its hash.
            blob = file.resolve().name
            known = file.is_symlink() and _SHA256.fullmatch(blob)
            hashes[file.name] = blob if known else sha256_file(file)
    return sha256_json(hashes)[:16]


class LocalAnnotator:
    """Generates greedily for batches of items.

    Args:
        folder: the data set folder.
        cache: answers so far; new ones are added.
        loaded: from `load_model`, or made by hand.
        settings: batch size and length.
        prompt: question.
        limits: of the images.
    """

    name = "local"
    visual = True

    def __init__(
        self,
        folder: Path,
        cache: AnswerCache,
        loaded: LoadedModel,
        settings: LocalSettings,
        *,
        prompt: KeywordPrompt | None = None,
        limits: ImageLimits | None = None,
    ) -> None:
        self._cache = cache
        self._loaded = loaded
        self._settings = settings
        self._prompt = prompt or KeywordPrompt()
        self._limits = limits or ImageLimits()
        self._maker = QuestionMaker(
            folder,
            self._prompt,
            {**loaded.identity, "max_tokens": settings.max_tokens},
            self._limits,
        )

    def describe(self) -> dict[str, object]:
        """Model, prompt and what was shown."""
        return {
            **self._loaded.identity,
            "max_tokens": self._settings.max_tokens,
            "image_size": self._limits.size,
            "prompt": self._prompt.template,
            "count": self._prompt.count,
            "language": self._prompt.language,
        }

    def annotate(self, items: Sequence[Item]) -> Outcome:
        """Answer for every item that has no answer yet.

        Raises:
            InputError: the model's processor does not take an image and a text.
        """
        round_ = Round(self._cache, self._loaded.identity)
        with progress(total=len(items), desc="keywords", unit="item") as bar:
            todo: Sequence[Item] = items
            while todo:
                batch: list[Question] = []
                for item in todo:
                    made = self._maker.make(item, known=self._cache)
                    question = round_.admit(made)
                    if question is not None:
                        batch.append(question)
                    if len(batch) == self._settings.batch_size:
                        self._answer(batch, round_)
                        batch = []
                    bar.update(len(round_.outcome.answers) - bar.n)
                if batch:
                    self._answer(batch, round_)
                # Questions that another process held: by now it has answered, or ended.
                todo, round_.deferred = round_.deferred, []
                if todo:
                    time.sleep(_LOOK_AGAIN)
                self._cache.refresh()
        return round_.outcome

    def _answer(self, batch: Sequence[Question], round_: Round) -> None:
        round_.usage.asked += len(batch)
        for question, text in zip(batch, self._generate(batch), strict=True):
            try:
                round_.settle(question, self._prompt.parse(text))
            except Unusable as problem:
                # Greedy: asked again it would say the same.
                item_id = question.item.item_id
                round_.give_up(question, Answer(item_id, "malformed", reason=str(problem)))

    @torch.no_grad()
    def _generate(self, batch: Sequence[Question]) -> list[str]:
        processor, model = self._loaded.processor, self._loaded.model
        images = [[Image.open(BytesIO(question.image)).convert("RGB")] for question in batch]
        texts = [self._conversation(question.text) for question in batch]
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        try:
            inputs = processor(text=texts, images=images, return_tensors="pt", padding=True)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"The processor of '{self._settings.model}' does not take an image and a text: "
                f"{error}"
            ) from error
        inputs = inputs.to(model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        length = inputs["input_ids"].shape[1]
        produced = model.generate(
            **inputs,
            max_new_tokens=self._settings.max_tokens,
            do_sample=False,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
        found: list[str] = processor.batch_decode(produced[:, length:], skip_special_tokens=True)
        return found

    def _conversation(self, text: str) -> str:
        """The prompt in the model's own chat form."""
        processor = self._loaded.processor
        content = [{"type": "image"}, {"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        if getattr(processor, "chat_template", None):
            made: str = processor.apply_chat_template(messages, add_generation_prompt=True)
            return made
        mark = getattr(processor, "image_token", None) or "<image>"
        return f"{mark}\n{text}\n"
