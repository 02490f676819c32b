"""NoteLLM-2 (arXiv 2405.16789) over our backbones: compression prompts, late fusion, meta pairs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import recbole_tpad
from recbole_tpad.backbones.base import Backbone, Inputs
from recbole_tpad.backbones.checkpoints import checkpoint_files, revisions
from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.backbones.loading import load_backbone
from recbole_tpad.backbones.native import NativeBackbone
from recbole_tpad.backbones.native_images import pooled_features
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.backbones.tiny import TinySettings, create_tiny
from recbole_tpad.backbones.towers import load_tower, put
from recbole_tpad.backbones.vision_cache import VisionCache
from recbole_tpad.data import DatasetFolder, Item
from recbole_tpad.errors import InputError
from recbole_tpad.files import atomic_folder, sha256_json, write_json
from recbole_tpad.generators.base import Encoded, RunRecord, items_sha256
from recbole_tpad.generators.content import (
    items_as_read,
    reading_plan,
    require_images,
    session_rows,
    texts_of,
    training_rows,
)
from recbole_tpad.generators.frozen_images import image_vectors
from recbole_tpad.settings import from_mapping
from recbole_tpad.stages.compression import (
    CompressionSettings,
    ImageSummaries,
    LateFusion,
    compressed,
    new_fusion,
    train_compression,
)
from recbole_tpad.stages.inputs import encode_states
from recbole_tpad.stages.pairs import MetaPairs
from recbole_tpad.stages.processes import place, processes

EXPORTS = ("multimodal", "visual")
Parameters = dict[str, Any]


@dataclass(frozen=True, slots=True)
class NoteLlm2Settings:
    """Attributes:
    backbone: of kind 'composed', 'native' or 'tiny', with `readout: before`.
    compression: the training stage.
    export: which of 'multimodal' (e_m) and 'visual' (e_v) go into the store.
    seed: of everything random.
    """

    backbone: BackboneSettings
    compression: CompressionSettings
    export: tuple[str, ...] = ("multimodal",)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.backbone.kind == "encoder":
            raise InputError(
                "notellm2: a backbone of kind 'encoder' has no places for <IMG_EMB> and the last "
                "word; take kind 'composed', 'native' or 'tiny'."
            )
        if self.backbone.readout != "before":
            raise InputError(
                "notellm2 reads the states before <IMG_EMB> and at the last word: set "
                "backbone.readout to 'before'."
            )
        if not self.export or set(self.export) - set(EXPORTS):
            raise InputError(
                f"notellm2: export is a list of {', '.join(EXPORTS)}, not {list(self.export)}."
            )


@dataclass(slots=True)
class TrainedNoteLlm2:
    """What a finished run encodes with: the encoder, its items, the fusion, CLS of the images."""

    backbone: Backbone
    inputs: Inputs
    fusion: LateFusion
    images: ImageSummaries


class NoteLlm2Generator:
    """A shared encoder trained on the meta pairs of T-MLLM, and e_m of every item.

    Args:
        settings: see `NoteLlm2Settings`.
        device: None picks CUDA where there is one.
    """

    divides_base = True

    def __init__(self, settings: NoteLlm2Settings, device: torch.device | None = None) -> None:
        self._settings = settings
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def _read(self, dataset: DatasetFolder) -> list[Item]:
        items = items_as_read(dataset.items)
        require_images(dataset, items, instead="take a generator of texts (sentence_transformer)")
        texts_of(dataset, items, "{title}{brand}{description}")
        return items

    def fingerprint(self, dataset: DatasetFolder) -> dict[str, str]:
        """Fingerprints of backbone, items, split and the stage.

        Raises:
            InputError: no item has an image, or none has a text.
        """
        settings = self._settings
        items = self._read(dataset)
        tiny = settings.backbone.kind == "tiny"
        files = {} if tiny else checkpoint_files(settings.backbone)
        common = {"code": recbole_tpad.__version__, "seed": settings.seed}
        asked = dataclasses.asdict(settings.backbone)
        backbone = sha256_json({**common, "backbone": asked, "files": files})
        content = items_sha256(items, images=True, keywords=False)
        split = dataset.split_fingerprint
        values = dataclasses.asdict(settings.compression)
        values["loop"].pop("checkpoint_seconds")
        found = {
            "backbone": backbone,
            "items": content,
            "split": split,
            "notellm2": sha256_json({"settings": values, "from": [backbone, content, split]}),
            "export": sha256_json(list(settings.export)),
        }
        return found if tiny else found | revisions(settings.backbone)

    def plan(self, dataset: DatasetFolder) -> list[str]:
        """Lines that say what a run would read."""
        settings, stage = self._settings.backbone, self._settings.compression
        parts = [] if settings.kind == "tiny" else settings.parts().values()
        passes = (
            f"compression {stage.loop.steps:,} x {stage.pairs_per_step} pairs, then each item once"
        )
        return reading_plan(self._read(dataset), parts, passes)

    def generate(self, dataset: DatasetFolder, work: Path, record: RunRecord) -> Encoded:
        """Train, unless that was done, and encode all items.

        Raises:
            InputError: no item has an image or none a text, no meta pair, a loss that diverges.
        """
        inputs = self.fingerprint(dataset)
        trained = self.restore(dataset, work, record, inputs)
        started = time.perf_counter()
        states = encode_states(trained.backbone, trained.inputs, "knowledge")
        arrays = self.vectors(trained, states, torch.arange(len(dataset.items)))
        seconds = time.perf_counter() - started
        rate = {"items": len(dataset.items), "items_per_second": len(dataset.items) / seconds}
        record.stages.append(
            {"name": "encoding", "seconds": seconds, "history": [], "summary": rate}
        )
        chosen = {n: arrays[n].cpu().numpy() for n in self._settings.export}
        return Encoded(chosen, "other", True, inputs)

    @torch.no_grad()
    def vectors(
        self, trained: TrainedNoteLlm2, states: dict[str, torch.Tensor], rows: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """e_m and e_v of some items, (B, dimension) each, from their states (B, width)."""
        moved = {n: s.to(self.device) for n, s in states.items()}
        return compressed(moved, trained.fusion, *trained.images.of(rows, self.device))

    def restore(
        self,
        dataset: DatasetFolder,
        work: Path,
        record: RunRecord,
        fingerprints: dict[str, str],
        *,
        train: bool = True,
    ) -> TrainedNoteLlm2:
        """The trained encoder: read back, or trained and then read back.

        Args:
            dataset: items and training sessions.
            work: folder of cached stages.
            record: filled with the stage and warnings.
            fingerprints: of `fingerprint`.
            train: False refuses where there is no trained stage.

        Raises:
            InputError: see `generate`; with `train=False`, nothing was trained for these inputs.
        """
        settings = self._settings
        folder = work / f"notellm2-{fingerprints['notellm2'][:16]}"
        done = (folder / "stage.json").is_file()
        processes().wait()
        if not done and not train:
            raise InputError(
                f"There is no trained NoteLLM-2 for data set '{dataset.name}' with these settings "
                f"in {work}. Run 'recbole-tpad embed --dataset {dataset.name} --generator "
                "notellm2' with the same settings first."
            )
        items = self._read(dataset)
        torch.manual_seed(settings.seed)
        full = settings.compression.train_base
        backbone = self._backbone(items, work, fingerprints)
        backbone = place(backbone, self.device, train_base=full)
        inputs = backbone.inputs(items, self.device)
        inputs.prepare(train_base=full)
        images = self._image_summaries(dataset, backbone, inputs, work, fingerprints, record)
        if not done:
            self._train(dataset, backbone, inputs, images, folder, fingerprints)
        processes().wait()
        # Read back even when just trained: a resumed run sees the same.
        weights = load_tower(folder / "weights.safetensors", fingerprints["backbone"])
        fusion = new_fusion(backbone, images, settings.compression).to(self.device).eval()
        own = {f"fusion.{n}": p for n, p in fusion.named_parameters()}
        put(self._parameters(backbone) | own, weights)
        backbone.use("knowledge")
        inputs.freeze()
        stage = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        record.stages.append(stage)
        if inputs.unreadable:
            record.warnings.append(
                f"{len(inputs.unreadable):,} images cannot be read and count as absent."
            )
        return TrainedNoteLlm2(backbone, inputs, fusion, images)

    def _parameters(self, backbone: Backbone) -> Parameters:
        """Name → tensor of all that training changes in a backbone."""
        if not self._settings.compression.train_base:
            return dict(backbone.tower_parameters("knowledge"))
        return backbone.full_training_parameters() | backbone.fitted_buffers()

    def _train(
        self,
        dataset: DatasetFolder,
        backbone: Backbone,
        inputs: Inputs,
        images: ImageSummaries,
        folder: Path,
        fingerprints: dict[str, str],
    ) -> None:
        settings = self._settings.compression
        checkpoint = folder.with_name(f"{folder.name}.checkpoint")
        started = time.perf_counter()
        pairs = MetaPairs(session_rows(dataset), len(dataset.items), settings.orders)
        history, fusion, log_scale = train_compression(
            backbone, inputs, pairs, images, settings, checkpoint, self._settings.seed
        )
        seconds = time.perf_counter() - started
        if not processes().first:
            return
        own = {f"fusion.{n}": p for n, p in fusion.named_parameters()}
        weights = {
            n: t.detach().cpu().clone().contiguous()
            for n, t in (self._parameters(backbone) | own).items()
        }
        summary = {"pairs": len(pairs), "scale": float(log_scale.exp())}
        base = {"base": fingerprints["backbone"]}
        with atomic_folder(folder) as made:
            save_file(weights, made / "weights.safetensors", metadata=base)
            write_json(
                made / "stage.json",
                {"name": "compression", "history": history, "summary": summary, "seconds": seconds},
            )
        shutil.rmtree(checkpoint, ignore_errors=True)

    # -- parts ---------------------------------------------------------------------------------

    def _backbone(
        self, items: Sequence[Item], work: Path, fingerprints: dict[str, str]
    ) -> Backbone:
        settings = self._settings.backbone
        if settings.kind == "tiny":
            sizes = from_mapping(TinySettings, settings.tiny, "backbone.tiny")
            texts = [" ".join([i.title, i.brand, i.description]) for i in items]
            texts += list(settings.prompt.values())
            key = sha256_json([fingerprints["backbone"], texts])
            folder = work / f"tiny-{key[:16]}"
            if processes().first and not (folder / "tiny.json").is_file():
                with atomic_folder(folder) as made:
                    create_tiny(made, texts, sizes, self._settings.seed)
            processes().wait()
            settings = dataclasses.replace(
                settings,
                kind="composed",
                vision=str(folder / "vision"),
                language_model=str(folder / "language_model"),
            )
        features = None if self._settings.compression.train_base else work
        return load_backbone(settings, items, features)

    def _image_summaries(
        self,
        dataset: DatasetFolder,
        backbone: Backbone,
        inputs: Inputs,
        work: Path,
        fingerprints: dict[str, str],
        record: RunRecord,
    ) -> ImageSummaries:
        """CLS of every image, columns standardised over the training items that have one.

        A composed backbone's vision encoder has a summary of its own; for a native one it is the
        mean of the image's tokens (assumption).
        """
        if isinstance(backbone, NativeBackbone):
            table, present = self._native_summaries(inputs)
        else:
            assert isinstance(backbone, ComposedBackbone)  # by its kind

            def encode(images: list[Image.Image]) -> torch.Tensor:
                return backbone.vision.summary(backbone.pixels(images).to(self.device))

            cache = VisionCache(work / f"summary-{fingerprints['backbone'][:16]}")
            found, shown = image_vectors(inputs.items, cache, encode, 64, RunRecord())
            table, present = torch.from_numpy(found), torch.from_numpy(shown)
        fit = torch.zeros(len(table), dtype=torch.bool)
        fit[torch.from_numpy(training_rows(dataset))] = True
        seen = table[fit & present] if bool((fit & present).any()) else table[present]
        scale = seen.std(0, unbiased=False)
        # A constant column carries nothing and must not be blown up.
        scale = torch.where(scale > 1e-6, scale, torch.ones_like(scale))
        return ImageSummaries((table - seen.mean(0)) / scale, present)

    def _native_summaries(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        from recbole_tpad.backbones.native import NativeInputs

        assert isinstance(inputs, NativeInputs)
        inputs.images.compute_all()
        rows = [inputs.images.features(row) for row in range(len(inputs.items))]
        known = {r: pooled_features(f).float().mean(0) for r, f in enumerate(rows) if f is not None}
        if not known:
            raise InputError("None of the images can be read.")
        table = torch.zeros(len(rows), len(next(iter(known.values()))))
        for row, vector in known.items():
            table[row] = vector
        return table, torch.from_numpy(np.isin(np.arange(len(rows)), list(known)))
