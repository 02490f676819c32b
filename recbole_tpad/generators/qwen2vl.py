"""One vector an item from a frozen image-text-to-text model: its answer "in one word"."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import recbole_tpad
from recbole_tpad.backbones.checkpoints import checkpoint_files, revisions
from recbole_tpad.backbones.loading import load_backbone
from recbole_tpad.backbones.native import NativeBackbone
from recbole_tpad.backbones.one_word import OneWordInputs, OneWordTemplate
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.data import DatasetFolder, Item
from recbole_tpad.errors import InputError
from recbole_tpad.files import sha256_json
from recbole_tpad.generators.base import Encoded, RunRecord, items_sha256
from recbole_tpad.generators.content import items_as_read, reading_plan, require_images, texts_of
from recbole_tpad.progress import progress
from recbole_tpad.settings import at_least


@dataclass(frozen=True, slots=True)
class Qwen2VlSettings:
    """Attributes:
    backbone: of kind 'native': any image-text-to-text model.
    prompt: see `OneWordTemplate`.
    use_images, use_text: False removes that modality from every item.
    batch_size: items at a time.
    """

    backbone: BackboneSettings
    prompt: OneWordTemplate = field(default_factory=OneWordTemplate)
    use_images: bool = True
    use_text: bool = True
    batch_size: int = 16

    def __post_init__(self) -> None:
        at_least("qwen2vl", 1, batch_size=self.batch_size)
        if self.backbone.kind != "native":
            raise InputError(
                f"qwen2vl: the backbone is of kind '{self.backbone.kind}'; this generator reads "
                "images and texts with a model of kind 'native'."
            )
        if not (self.use_images or self.use_text):
            raise InputError("qwen2vl: use_images and use_text are both false; nothing is left.")


class Qwen2VlGenerator:
    """The last token's last-layer state of a prompt that ends in "in one word:"; no training.

    Args:
        settings: see `Qwen2VlSettings`.
        device: None picks CUDA where there is one.
    """

    def __init__(self, settings: Qwen2VlSettings, device: torch.device | None = None) -> None:
        self._settings = settings
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def _read(self, dataset: DatasetFolder) -> list[Item]:
        settings = self._settings
        items = items_as_read(
            dataset.items, use_images=settings.use_images, use_text=settings.use_text
        )
        if settings.use_images:
            require_images(dataset, items, instead="set use_images: false (--use_images=false)")
        if settings.use_text:
            texts_of(dataset, items, settings.prompt.item_text)
        return items

    def fingerprint(self, dataset: DatasetFolder) -> dict[str, str]:
        """Depends on the model's files, the prompt, the texts and the images.

        Raises:
            InputError: no item has what is to be read.
        """
        settings = self._settings
        items = self._read(dataset)
        files = checkpoint_files(settings.backbone)
        chosen = {k: v for k, v in asdict(settings).items() if k != "batch_size"}
        own = {"code": recbole_tpad.__version__, "settings": chosen, "files": files}
        return {
            "model": sha256_json(own),
            "items": items_sha256(items, images=True, keywords=False),
        } | revisions(settings.backbone)

    def plan(self, dataset: DatasetFolder) -> list[str]:
        """Lines that say what a run would read."""
        parts = self._settings.backbone.parts().values()
        return reading_plan(self._read(dataset), parts, "each item's prompt once, without training")

    def generate(self, dataset: DatasetFolder, work: Path, record: RunRecord) -> Encoded:
        """Read every item once.

        Raises:
            InputError: no item has what is to be read, or a model that is not native.
        """
        settings = self._settings
        items = self._read(dataset)
        inputs = self.fingerprint(dataset)
        backbone = load_backbone(settings.backbone, items, work).to(self._device).eval()
        assert isinstance(backbone, NativeBackbone)  # by its kind
        budget = settings.backbone.max_text_tokens
        prompts = OneWordInputs(backbone, items, settings.prompt, budget, self._device)
        started = time.perf_counter()
        prompts.images.compute_all()
        order = torch.argsort(prompts.lengths(), stable=True)
        table = torch.zeros(len(items), backbone.word_dim)
        for rows in progress(order.split(settings.batch_size), desc="encode"):
            table[rows] = prompts.states(rows.tolist()).cpu()
        seconds = time.perf_counter() - started
        unreadable = prompts.images.unreadable
        if unreadable:
            reasons = "; ".join(unreadable[i] for i in sorted(unreadable)[:5])
            record.warnings.append(
                f"{len(unreadable):,} images cannot be read and count as absent: {reasons}"
            )
        summary = {
            "items_without_image": int((~prompts.images.has_image).sum()),
            "items_per_second": len(items) / seconds,
        }
        record.stages.append(
            {"name": "encoding", "seconds": seconds, "history": [], "summary": summary}
        )
        return Encoded({"multimodal": table.numpy()}, "other", False, inputs)
