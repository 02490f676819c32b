"""Items as questions for a model that looks: image bytes, prompt, and the key of the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from dataset_converters.download_image import ImageProblem, prepare_image
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.files import sha256_json
from recbole_tpad.keywords.annotator import Answer, Outcome, Status, Usage
from recbole_tpad.keywords.cache import AnswerCache
from recbole_tpad.keywords.prompt import KeywordPrompt, Parsed


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is sent of an image.

    Attributes:
        size: longest side in pixels; larger images are scaled down.
        max_bytes: larger files are not read.
        max_pixels: larger images are not decoded.
    """

    size: int = 512
    max_bytes: int = 50_000_000
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        for name in ("size", "max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True, slots=True)
class Question:
    """One item, ready to be asked.

    Attributes:
        key: SHA-256 (hex) of the image bytes, the prompt text and what identifies the model.
        image: encoded image within the limits; empty where only the key was wanted.
        media_type: of the image.
        width, height: in pixels.
    """

    item: Item
    key: str
    text: str
    image: bytes = b""
    media_type: str = ""
    width: int = 0
    height: int = 0


class QuestionMaker:
    """Turns items into questions, or into the reason why they cannot be asked.

    Args:
        folder: the data set folder; an image outside it (and its images folder) is not read.
        prompt: the question's wording.
        model: what identifies the answering model, part of every key.
        limits: of the images.
    """

    def __init__(
        self,
        folder: Path,
        prompt: KeywordPrompt,
        model: Mapping[str, Any],
        limits: ImageLimits,
    ) -> None:
        self._roots = (folder.resolve(), (folder / "images").resolve())
        self._folders: dict[Path, Path] = {}
        self._prompt = prompt
        self._limits = limits
        self._model = sha256_json({**model, "image_size": limits.size})

    def make(
        self, item: Item, *, known: AnswerCache | None = None, measure_only: bool = False
    ) -> Question | Answer:
        """Read an item's image and phrase the question.

        Args:
            item: the item.
            known: with it, a question whose answer is there comes without its image.
            measure_only: leave the image out, only give its size.
        """
        data = self._read(item)
        if isinstance(data, Answer):
            return data
        text = self._prompt.text(item)
        parts = (self._model.encode(), text.encode(), hashlib.sha256(data).digest())
        key = hashlib.sha256(b"\x1f".join(parts)).hexdigest()
        if known is not None and known.get(key) is not None:
            return Question(item, key, text)
        limits = self._limits
        try:
            if measure_only:
                return Question(item, key, text, b"", "", *fitted_size(data, limits.size))
            image = prepare_image(data, size=limits.size, max_pixels=limits.max_pixels, min_side=1)
        except ImageProblem as problem:
            return Answer(item.item_id, "unreadable", reason=str(problem))
        kind = "jpeg" if image.extension == "jpg" else image.extension
        return Question(item, key, text, image.data, f"image/{kind}", image.width, image.height)

    def _read(self, item: Item) -> bytes | Answer:
        if item.image is None:
            return Answer(item.item_id, "no image", reason="no image file is recorded")
        try:
            path = self._resolved(item.image)
            if not any(path.is_relative_to(root) for root in self._roots):
                return Answer(item.item_id, "outside", reason=f"{item.image} leads to {path}")
            size = path.stat().st_size
            if size > self._limits.max_bytes:
                allowed = self._limits.max_bytes
                reason = f"{size:,} bytes, more than {allowed:,}"
                return Answer(item.item_id, "too large", reason=reason)
            if not path.is_file():
                return Answer(item.item_id, "unreadable", reason=f"{item.image} is not a file")
            return path.read_bytes()
        except (OSError, ValueError, RuntimeError) as error:
            # ValueError: a NUL in the path; RuntimeError: links in a circle.
            told = getattr(error, "strerror", None) or str(error)
            status: Status = "no image" if isinstance(error, FileNotFoundError) else "unreadable"
            return Answer(item.item_id, status, reason=f"{item.image}: {told}")

    def _resolved(self, path: Path) -> Path:
        """The path without links; a folder's own is looked at once."""
        folder = self._folders.get(path.parent)
        if folder is None:
            folder = self._folders[path.parent] = path.parent.resolve()
        found = folder / path.name
        return found.resolve() if path.name == ".." or found.is_symlink() else found


def fitted_size(data: bytes, size: int) -> tuple[int, int]:
    """Width and height of an image scaled down to a longest side, from its header only.

    Raises:
        ImageProblem: the header is not that of an image.
    """
    try:
        with Image.open(BytesIO(data), formats=("JPEG", "PNG", "WEBP", "GIF", "BMP")) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageProblem("unreadable", f"not an image ({type(error).__name__})") from error
    scale = min(1.0, size / max(width, height, 1))
    return round(width * scale), round(height * scale)


@dataclass
class Round:
    """One run's questions: who waits for which answer, and what came of it.

    Every key is asked at most once, also where several items share image and text or another
    process works on the same folder.

    Attributes:
        cache: where answers are kept.
        model: what identifies the answering model, noted in every record.
        outcome: the run's result so far.
        deferred: items whose question another process holds.
    """

    cache: AnswerCache
    model: Mapping[str, Any]
    outcome: Outcome = field(default_factory=lambda: Outcome(usage=Usage()))
    deferred: list[Item] = field(default_factory=list)
    _waiting: dict[str, list[str]] = field(default_factory=dict)

    @property
    def usage(self) -> Usage:
        """The outcome's usage."""
        assert self.outcome.usage is not None
        return self.outcome.usage

    def admit(self, made: Question | Answer) -> Question | None:
        """Return a question that is to be asked now; None where there is nothing to ask."""
        if isinstance(made, Answer):
            self.outcome.answers.append(made)
            return None
        if made.key in self._waiting:
            self._waiting[made.key].append(made.item.item_id)
            return None
        if self._from_cache(made):
            return None
        if not self.cache.claim(made.key):
            if not self._from_cache(made):
                self.deferred.append(made.item)
            return None
        self._waiting[made.key] = [made.item.item_id]
        return made

    def look_up(self, made: Question | Answer, why_not: str) -> None:
        """Take an answer of an earlier run; without one the item is not asked."""
        if isinstance(made, Answer):
            self.outcome.answers.append(made)
        elif not self._from_cache(made):
            self.outcome.answers.append(Answer(made.item.item_id, "not asked", reason=why_not))

    def _from_cache(self, made: Question) -> bool:
        record = self.cache.get(made.key)
        if record is None:
            return False
        self.usage.reused += 1
        self._tell([made.item.item_id], record["keywords"])
        return True

    def _tell(self, item_ids: list[str], keywords: list[str]) -> None:
        texts = tuple(str(keyword) for keyword in keywords)
        for item_id in item_ids:
            if texts:
                self.outcome.answers.append(Answer(item_id, "ok", texts))
            else:
                self.outcome.answers.append(Answer(item_id, "empty", reason="an empty list"))

    def settle(self, question: Question, parsed: Parsed, **spent: Any) -> None:
        """Record a usable answer and hand it to every item that waits for it."""
        record = {
            "key": question.key,
            "item_id": question.item.item_id,
            "keywords": list(parsed.keywords),
            **self.model,
            **spent,
        }
        if parsed.repaired:
            record["repaired"] = parsed.repaired
        self.cache.add(record)
        self.cache.release(question.key)
        self._tell(self._waiting.pop(question.key), record["keywords"])

    def rejected(self, question: Question, reason: str, **spent: Any) -> None:
        """Record what an unusable answer cost."""
        self.cache.add({"asked": question.key, "rejected": reason, **self.model, **spent})

    def give_up(self, question: Question, answer: Answer) -> None:
        """Give every item that waits the same status; another run may ask again."""
        self.cache.release(question.key)
        for item_id in self._waiting.pop(question.key):
            self.outcome.answers.append(Answer(item_id, answer.status, reason=answer.reason))
