"""TPAD: knowledge tower, transition tower, alignment, encoding (arXiv 2504.10538).

Each stage's result is kept under a fingerprint of everything that determines it, so a changed
prompt or setting re-runs exactly what depends on it, and a killed run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.utils.logging import disable_progress_bar

import recbole_tpad
from recbole_tpad.backbones.answer_heads import LabelTable
from recbole_tpad.backbones.base import Backbone
from recbole_tpad.backbones.checkpoints import checkpoint_files, revisions
from recbole_tpad.backbones.loading import load_backbone
from recbole_tpad.backbones.prompts import PromptTemplate
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.backbones.tiny import TinySettings, create_tiny
from recbole_tpad.backbones.towers import load_tower, put
from recbole_tpad.data import DatasetFolder, Item
from recbole_tpad.files import atomic_folder, sha256_json, write_json
from recbole_tpad.generators.base import Encoded, RunRecord, items_sha256
from recbole_tpad.generators.drift import Baseline
from recbole_tpad.generators.tpad_inputs import ItemInputs
from recbole_tpad.generators.tpad_plan import PlannedStages, plan
from recbole_tpad.generators.tpad_tower import (
    TowerSettings,
    encode,
    encoding_sha256,
    encoding_stage,
    save_tower,
)
from recbole_tpad.settings import from_mapping
from recbole_tpad.stages.alignment import AlignmentSettings, train_alignment
from recbole_tpad.stages.alignment_summary import alignment_summary
from recbole_tpad.stages.encoding import EncodingSettings
from recbole_tpad.stages.generation_rate import measure
from recbole_tpad.stages.held_out import split_holdout
from recbole_tpad.stages.inputs import encode_states
from recbole_tpad.stages.journal import write_tensorboard
from recbole_tpad.stages.knowledge import (
    KnowledgeSettings,
    best_weights_file,
    train_knowledge,
    trained_parameters,
)
from recbole_tpad.stages.pairs import MetaPairs
from recbole_tpad.stages.probes import knowledge_warnings, probe_knowledge
from recbole_tpad.stages.processes import place, processes
from recbole_tpad.stages.signatures import alignment_warnings, balance_warnings
from recbole_tpad.stages.transition import TransitionSettings, train_transition


@dataclass(frozen=True, slots=True)
class TpadSettings:
    """A TPAD run, as in ``properties/generator/tpad*.yaml``.

    Attributes:
        backbone, knowledge, transition, alignment, encoding: settings of the parts.
        use_images, use_text: False removes that modality from every item (−Img, −Text).
        no_knowledge: without stage 1: K(0) is the tower as it is loaded (w/o K).
        no_transition: without stage 2a: K(0) is its own teacher, and no session is read (w/o T).
        no_alignment: export K(0), without stages 2a and 2b (NA).
        seed: of everything random.
    """

    backbone: BackboneSettings
    knowledge: KnowledgeSettings
    transition: TransitionSettings
    alignment: AlignmentSettings
    encoding: EncodingSettings = EncodingSettings()  # noqa: RUF009 (frozen)
    use_images: bool = True
    use_text: bool = True
    no_knowledge: bool = False
    no_transition: bool = False
    no_alignment: bool = False
    seed: int = 0

    @property
    def uses_sessions(self) -> bool:
        """Whether training sessions have any influence."""
        return not (self.no_alignment or self.no_transition)


@dataclass(slots=True)
class _Stage:
    """A finished stage: weights to load and a record of how they came about."""

    weights: dict[str, torch.Tensor]
    record: dict[str, Any]


@dataclass(slots=True)
class _Run:
    """One data set being embedded."""

    dataset: DatasetFolder
    items: list[Item]
    work: Path
    fingerprints: dict[str, str] = field(default_factory=dict)


class TpadGenerator:
    """K → T → TPA → encode.

    Args:
        settings: see `TpadSettings`.
        device: None picks CUDA where there is one.
    """

    divides_base = True

    def __init__(self, settings: TpadSettings, device: torch.device | None = None) -> None:
        self._settings = settings
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    # -- fingerprints --------------------------------------------------------------------------

    def _tower(self, backbone: BackboneSettings, fingerprints: dict[str, str]) -> TowerSettings:
        settings = self._settings
        return TowerSettings(
            backbone,
            key=fingerprints.get("tower", ""),
            base=fingerprints.get("backbone", ""),
            train_base=settings.knowledge.train_base and not settings.no_knowledge,
            use_images=settings.use_images,
            use_text=settings.use_text,
            encoding=settings.encoding,
            trained_on=fingerprints.get("split"),
        )

    def _as_read(self, dataset: DatasetFolder) -> list[Item]:
        return self._tower(self._settings.backbone, {}).as_read(dataset.items)

    def _fingerprints(self, dataset: DatasetFolder, items: list[Item]) -> dict[str, str]:
        settings = self._settings
        common = {"code": recbole_tpad.__version__, "seed": settings.seed}
        tiny = settings.backbone.kind == "tiny"
        files = {} if tiny else checkpoint_files(settings.backbone)
        asked = dataclasses.asdict(settings.backbone)
        backbone = sha256_json({**common, "backbone": asked, "files": files})
        content = items_sha256(items, images=True, keywords=True)

        def stage(name: str, own: Any, *upstream: str | None) -> str:
            values = None if own is None else _without_checkpointing(dataclasses.asdict(own))
            return sha256_json({**common, "stage": name, "settings": values, "from": upstream})

        known = None if settings.no_knowledge else settings.knowledge
        knowledge = stage("knowledge", known, backbone, content)
        found = {"backbone": backbone, "items": content, "knowledge": knowledge}
        if not tiny:
            found |= revisions(settings.backbone)
        transition = None
        if settings.uses_sessions:
            split = dataset.split_fingerprint
            transition = stage("transition", settings.transition, knowledge, split)
            found |= {"split": split, "transition": transition}
        if not settings.no_alignment:
            found["alignment"] = stage("alignment", settings.alignment, knowledge, transition)
        found["tower"] = found.get("alignment", knowledge)
        found["encoding"] = encoding_sha256(settings.encoding, self._device)
        return found

    def fingerprint(self, dataset: DatasetFolder) -> dict[str, str]:
        """Fingerprints of backbone, items, split and stages."""
        return self._fingerprints(dataset, self._as_read(dataset))

    def plan(self, dataset: DatasetFolder) -> list[str]:
        """Lines that say what a run would take; nothing is loaded."""
        settings = self._settings
        later = not settings.no_alignment
        stages = PlannedStages(
            settings.knowledge,
            settings.transition if later else None,
            settings.alignment if later else None,
        )
        return plan(settings.backbone, stages, self._as_read(dataset), self._device)

    # -- stages --------------------------------------------------------------------------------

    def generate(self, dataset: DatasetFolder, work: Path, record: RunRecord) -> Encoded:
        """Run the stages that are not cached and encode all items with the final tower."""
        items = self._as_read(dataset)
        run = _Run(dataset, items, work, self._fingerprints(dataset, items))
        if self._settings.uses_sessions and not self._is_done(run, "transition"):
            self._pairs(run)  # sessions without a transition are refused before anything trains
        torch.manual_seed(self._settings.seed)
        parts = self._parts(run)
        # A base that is trained has features of its own: they must not outlive this run.
        shared = parts.kind != "tiny" and not self._settings.knowledge.train_base
        backbone = place(
            load_backbone(parts, items, work if shared else None),
            self._device,
            train_base=self._settings.knowledge.train_base and not self._settings.no_knowledge,
        )
        inputs = ItemInputs(backbone, items, self._device)

        if not self._settings.no_knowledge:
            self._knowledge(run, backbone, inputs, record)
        if not self._settings.no_alignment:
            if self._settings.no_transition:
                teacher = "knowledge"
            else:
                self._transition(run, backbone, inputs, record)
                teacher = "transition"
            self._alignment(run, backbone, inputs, teacher, record)
        tower = self._tower(parts, run.fingerprints)
        if processes().first:
            save_tower(work, backbone, tower)
        inputs.drop_for_encoding()
        content = tower.content_hashes(items)
        started = time.perf_counter()
        shards, encoding = encode(backbone, tower, items, content, work, self._device)
        unreadable = inputs.unreadable | encoding.unreadable
        record.stages.append(encoding_stage(encoding, time.perf_counter() - started))
        if unreadable:
            reasons = "; ".join(unreadable[i] for i in sorted(unreadable)[:5])
            record.warnings.append(
                f"{len(unreadable):,} images cannot be read and count as absent: {reasons}"
            )
        baseline = tower.folder(work) / "baseline.safetensors"
        if processes().first and not baseline.is_file():
            Baseline.of(items, content, shards.arrays).save(baseline)
        return Encoded(
            arrays=dict(shards.arrays),
            role="K0" if self._settings.no_alignment else "K1",
            uses_sessions=self._settings.uses_sessions,
            inputs=run.fingerprints,
            content=content,
            scratch=shards.path,
            shard_items=shards.size,
        )

    def _parts(self, run: _Run) -> BackboneSettings:
        """The backbone's settings; a tiny one is made first."""
        settings = self._settings.backbone
        if settings.kind != "tiny":
            return settings
        disable_progress_bar()  # small local files: transformers' bars would bury ours
        sizes = from_mapping(TinySettings, settings.tiny, "backbone.tiny")
        template = PromptTemplate.from_config(settings.prompt)
        scaffold = [template.scaffold()] * len(run.items)
        texts = [_all_text(item) for item in run.items] + scaffold
        key = sha256_json([run.fingerprints["backbone"], texts])
        folder = run.work / f"tiny-{key[:16]}"
        if processes().first and not (folder / "tiny.json").is_file():
            with atomic_folder(folder) as made:
                create_tiny(made, texts, sizes, self._settings.seed)
        processes().wait()
        return dataclasses.replace(
            settings,
            vision=str(folder / "vision"),
            language_model=str(folder / "language_model"),
        )

    def _pairs(self, run: _Run) -> MetaPairs:
        settings = self._settings.transition
        return MetaPairs(
            _sessions(run.dataset),
            len(run.items),
            settings.orders,
            popularity_balance=settings.popularity_balance,
        )

    @staticmethod
    def _is_done(run: _Run, name: str) -> bool:
        return (run.work / f"{name}-{run.fingerprints[name][:16]}" / "stage.json").is_file()

    def _cached(self, run: _Run, name: str, train: Callable[[Path], _Stage]) -> _Stage:
        """Return a stage's result from disk, or train it and put it there."""
        key = f"{name}-{run.fingerprints[name][:16]}"
        folder = run.work / key
        team = processes()
        done = self._is_done(run, name)
        team.wait()
        if not done:
            checkpoint = run.work / f"{key}.checkpoint"
            started = time.perf_counter()
            stage = train(checkpoint)
            stage.record["seconds"] = time.perf_counter() - started
            if team.first:
                write_tensorboard(run.work / "logs" / key, name, stage.record["history"])
                base = {"base": run.fingerprints["backbone"]}
                with atomic_folder(folder) as made:
                    save_file(stage.weights, made / "weights.safetensors", metadata=base)
                    write_json(made / "stage.json", {"name": name, **stage.record})
                shutil.rmtree(checkpoint, ignore_errors=True)
                best_weights_file(checkpoint).unlink(missing_ok=True)
            team.wait()
        # Read back even when just trained: later stages see what a resumed run would see.
        return _Stage(
            load_tower(folder / "weights.safetensors", run.fingerprints["backbone"]),
            json.loads((folder / "stage.json").read_text(encoding="utf-8")),
        )

    def _knowledge(
        self, run: _Run, backbone: Backbone, made: ItemInputs, record: RunRecord
    ) -> None:
        settings, seed = self._settings.knowledge, self._settings.seed
        parameters = trained_parameters(backbone, settings)
        fitted = backbone.fitted_buffers()

        def train(checkpoint: Path) -> _Stage:
            inputs = made.get()
            inputs.prepare(train_base=settings.train_base)
            result = train_knowledge(backbone, inputs, settings, checkpoint, seed)
            weights = _copy(parameters) | _copy(fitted)
            absent = int((~inputs.has_image).sum())
            summary = {"items_without_image": absent, "unreadable_images": len(inputs.unreadable)}
            summary["stopped_early"] = int(result.stopped)
            return _Stage(weights, {"history": result.history, "summary": summary})

        stage = self._cached(run, "knowledge", train)
        put(parameters | fitted, stage.weights)
        record.stages.append(stage.record)
        record.generation_rate = self._generation_rate(run, backbone, made)
        found = knowledge_warnings(record.generation_rate)
        if found and record.generation_rate is not None:
            inputs = made.frozen()
            labelled = torch.nonzero(inputs.has_answer).flatten().tolist()
            found.append(str(probe_knowledge(backbone, inputs, labelled, parameters)))
        record.warnings += found

    def _generation_rate(
        self, run: _Run, backbone: Backbone, made: ItemInputs
    ) -> dict[str, float | None] | None:
        """Measured once per knowledge tower, kept beside it."""
        key = f"knowledge-{run.fingerprints['knowledge'][:16]}"
        file = run.work / key / "generation_rate.json"
        done = file.is_file()
        processes().wait()  # nobody writes before everyone has looked
        if not done:
            inputs = made.frozen()
            settings, seed = self._settings.knowledge, self._settings.seed
            _, holdout = split_holdout(inputs.has_answer, settings.holdout, seed)
            labelled = [row for row in holdout if run.items[row].keywords]
            measured = measure(backbone, inputs, labelled, seed=seed) if len(labelled) > 1 else None
            if processes().first:
                write_json(file, measured)
            processes().wait()
        found: dict[str, float | None] | None = json.loads(file.read_text(encoding="utf-8"))
        return found

    def _transition(
        self, run: _Run, backbone: Backbone, made: ItemInputs, record: RunRecord
    ) -> None:
        settings, seed = self._settings.transition, self._settings.seed

        def train(checkpoint: Path) -> _Stage:
            pairs = self._pairs(run)
            inputs = made.frozen()
            history, learned = train_transition(backbone, inputs, pairs, settings, checkpoint, seed)
            weights = _copy(backbone.tower_parameters("transition"))
            summary: dict[str, Any] = {"pairs": len(pairs)} | {
                f"scale_{n}": float(learned[n].detach().exp()) for n in backbone.modalities
            }
            summary |= {n: v.tolist() for n, v in learned.items() if n.startswith("recency_")}
            return _Stage(weights, {"history": history, "summary": summary})

        stage = self._cached(run, "transition", train)
        put(backbone.tower_parameters("transition"), stage.weights)
        record.stages.append(stage.record)
        record.warnings += balance_warnings(stage.record["history"], "Transition")

    def _alignment(
        self,
        run: _Run,
        backbone: Backbone,
        made: ItemInputs,
        teaching: str,
        record: RunRecord,
    ) -> None:
        """Align the knowledge tower; `teaching` is the tower whose states it learns from."""
        settings, seed = self._settings.alignment, self._settings.seed

        def train(checkpoint: Path) -> _Stage:
            inputs = made.frozen()
            teacher = encode_states(backbone, inputs, teaching)
            before = encode_states(backbone, inputs, "knowledge")
            result = train_alignment(backbone, inputs, teacher, settings, checkpoint, seed)
            after = encode_states(backbone, inputs, "knowledge")
            category = LabelTable(run.items).category
            summary = alignment_summary(before, after, teacher, result.heads, category)
            weights = _copy(backbone.tower_parameters("knowledge"))
            return _Stage(weights, {"history": result.history, "summary": summary})

        stage = self._cached(run, "alignment", train)
        put(backbone.tower_parameters("knowledge"), stage.weights)
        record.stages.append(stage.record)
        record.warnings += alignment_warnings(
            stage.record["history"],
            mi_lower=settings.mi_lower,
            marginals=settings.marginals,
            batch=settings.batch_size,
            items=len(run.items),
        )


def _sessions(dataset: DatasetFolder) -> Iterator[Sequence[int]]:
    row = {item_id: n for n, item_id in enumerate(dataset.item_ids)}
    for _, items in dataset.train_sessions():
        yield [row[i] for i in items]


def _all_text(item: Item) -> str:
    return " ".join(
        [item.title, item.brand, item.description, item.category, ", ".join(item.keywords)]
    )


def _without_checkpointing(settings: dict[str, Any]) -> dict[str, Any]:
    loop = {k: v for k, v in settings["loop"].items() if k != "checkpoint_seconds"}
    return {**settings, "loop": loop}


def _copy(named: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {n: t.detach().cpu().clone().contiguous() for n, t in named.items()}
