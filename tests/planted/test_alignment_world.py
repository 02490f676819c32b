"""A planted world: what follows what is in the sessions only, and alignment carries it into K.

Every item says its category, its style and some noise. Items are followed by items of their group
of styles, and a style is a word like any other, so that texts alone do not tell what comes next.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "backbones"))
from small_encoder import write_text_encoder

from recbole_tpad.backbones.answer_heads import LabelTable
from recbole_tpad.backbones.encoder import EncoderBackbone
from recbole_tpad.backbones.loading import load_backbone
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.data import Item
from recbole_tpad.stages.alignment import AlignmentResult, AlignmentSettings, train_alignment
from recbole_tpad.stages.alignment_summary import alignment_summary
from recbole_tpad.stages.fresh_probes import category_accuracy
from recbole_tpad.stages.inputs import encode_states
from recbole_tpad.stages.knowledge import KnowledgeSettings, train_knowledge
from recbole_tpad.stages.loop import LoopSettings
from recbole_tpad.stages.pairs import MetaPairs
from recbole_tpad.stages.transition import TransitionSettings, train_transition

pytestmark = pytest.mark.slow

GROUPS, A_GROUP, CATEGORIES = 8, 5, 6
STYLES = GROUPS * A_GROUP
ITEMS = 8 * STYLES
TOP = ITEMS // GROUPS
States = dict[str, torch.Tensor]


def style(row: int) -> int:
    return row % STYLES


def make_items() -> list[Item]:
    rng = random.Random(0)
    items = []
    for row in range(ITEMS):
        category = rng.randrange(CATEGORIES)
        noise = " ".join(f"noise{rng.randrange(60)}" for _ in range(2))
        title = f"kind{category} style{style(row)} {noise}"
        items.append(Item(f"i{row}", title, "", f"c{category}", "", None, None, ()))
    return items


def make_sessions(count: int, seed: int, *, shuffled: bool = False) -> list[list[int]]:
    rng = random.Random(seed)
    sessions = []
    for _ in range(count):
        group = rng.randrange(GROUPS)
        members = [row for row in range(ITEMS) if style(row) // A_GROUP == group]
        sessions.append(rng.sample(members, 4))
    if shuffled:
        flat = [i for s in sessions for i in s]
        rng.shuffle(flat)
        sessions = [flat[k : k + 4] for k in range(0, len(flat), 4)]
    return sessions


@dataclass
class World:
    """Items, sessions, an encoder, and K(0) as it was trained once."""

    folder: Path

    @cached_property
    def items(self) -> list[Item]:
        return make_items()

    @cached_property
    def backbone(self) -> EncoderBackbone:
        words = " ".join(i.title for i in self.items).split()
        encoder = write_text_encoder(
            self.folder / "encoder", words, layers=2, width=48, spread=0.15
        )
        torch.manual_seed(0)
        settings = BackboneSettings(
            kind="encoder", text_encoder=str(encoder), encoder={"dropout": 0.0, "head_width": 64}
        )
        found = load_backbone(settings, self.items).eval()
        assert isinstance(found, EncoderBackbone)
        self.inputs = found.inputs(self.items, torch.device("cpu"))
        self.inputs.freeze()
        loop = LoopSettings(steps=60, learning_rate=1e-3)
        settings_k = KnowledgeSettings(loop, batch_size=64)
        train_knowledge(found, self.inputs, settings_k, self.folder / "k", 0)
        self.start = {n: t.clone() for n, t in found.state_dict().items()}
        return found

    def restart(self) -> EncoderBackbone:
        backbone = self.backbone
        backbone.load_state_dict(self.start)
        return backbone

    @cached_property
    def knowledge(self) -> States:
        return encode_states(self.restart(), self.inputs, "knowledge")

    def teacher(self, *, shuffled: bool = False) -> States:
        backbone = self.restart()
        pairs = MetaPairs(make_sessions(1500, 1, shuffled=shuffled), ITEMS, (1,))
        loop = LoopSettings(steps=500, learning_rate=2e-3)
        settings = TransitionSettings(loop, pairs_per_step=128)
        train_transition(backbone, self.inputs, pairs, settings, self.folder / f"t{shuffled}", 0)
        return encode_states(backbone, self.inputs, "transition")

    def aligned(self, teacher: States, **changes: Any) -> tuple[States, AlignmentResult]:
        backbone = self.restart()
        settings = replace(ALIGNMENT, **changes)
        name = "-".join(f"{k}{v}" for k, v in changes.items()) + f"{teacher['text'].sum():.4f}"
        result = train_alignment(backbone, self.inputs, teacher, settings, self.folder / name, 0)
        return encode_states(backbone, self.inputs, "knowledge"), result


ALIGNMENT = AlignmentSettings(
    LoopSettings(steps=150, learning_rate=5e-3),
    batch_size=64,
    mi_lower="soft",
    projector="identity",
    relational_weight=1.0,
    cosine_weight=1.0,
    projection=16,
    teacher_scale=20.0,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("world"))
    assert made.backbone.active == "knowledge"
    return made


@pytest.fixture(scope="module")
def teacher(world: World) -> States:
    return world.teacher()


@pytest.fixture(scope="module")
def recovered(world: World, teacher: States) -> States:
    return world.aligned(teacher)[0]


def retrieval(states: States) -> float:
    """HR@40 of the next item, by cosine with the last one, over held-out sessions."""
    unit = F.normalize(states["text"], dim=-1)
    hits = []
    for *_, last, target in make_sessions(400, 99):
        scores = unit @ unit[last]
        scores[last] = -2
        hits.append(float((scores > scores[target]).sum() < TOP))
    return sum(hits) / len(hits)


def accuracy(world: World, states: torch.Tensor) -> float:
    category = LabelTable(world.items).category
    return sum(category_accuracy(states, category, seed) for seed in range(8)) / 8


def share_of_gap(world: World, teacher: States, states: States) -> float:
    floor = retrieval(world.knowledge)
    return (retrieval(states) - floor) / (retrieval(teacher) - floor)


def test_t_retrieves_what_k0_cannot(world: World, teacher: States) -> None:
    assert retrieval(world.knowledge) < 0.2
    assert retrieval(teacher) > 2.5 * retrieval(world.knowledge)


def test_k1_recovers_half_of_the_gap_and_keeps_the_category(
    world: World, teacher: States, recovered: States
) -> None:
    assert share_of_gap(world, teacher, recovered) >= 0.5
    before, after = (accuracy(world, s["text"]) for s in (world.knowledge, recovered))
    assert before > 0.8
    assert after > before - 0.02


@pytest.mark.parametrize(
    "changes",
    [
        {"gamma_lower": 0.0},
        {"gamma_lower": 0.0, "gamma_upper": 0.0},
        {"train_tower": False, "mi_lower": "infonce", "projector": "linear"},
    ],
    ids=["no-lower-bound", "no-bound", "heads-only"],
)
def test_without_its_cause_nothing_is_recovered(
    world: World, teacher: States, changes: dict[str, Any]
) -> None:
    states, _ = world.aligned(teacher, **changes)
    assert share_of_gap(world, teacher, states) < 0.1


def test_a_free_critic_meets_the_bound_while_nothing_is_exported(
    world: World, teacher: States
) -> None:
    paper = {"mi_lower": "infonce", "projector": "linear", "critic": "mlp"}
    states, result = world.aligned(teacher, train_tower=False, **paper)
    assert result.history[-1]["mi_lower"] > 1.0  # nats
    torch.testing.assert_close(states, world.knowledge)


def test_shuffled_sessions_teach_nothing(world: World, teacher: States) -> None:
    states, _ = world.aligned(world.teacher(shuffled=True))
    assert share_of_gap(world, teacher, states) < 0.1


def test_the_upper_bound_takes_t_out_of_w_low_and_leaves_the_category(
    world: World, teacher: States
) -> None:
    category = LabelTable(world.items).category
    found = []
    for gamma in (1e-6, 0.05):
        states, result = world.aligned(teacher, gamma_upper=gamma, label_weight=3.0)
        summary = alignment_summary(world.knowledge, states, teacher, result.heads, category)
        with torch.no_grad():
            low = result.heads["text"].low(states["text"])
        found.append((summary["low_predicts_T_text"], accuracy(world, low)))
    (without, category_without), (probe, category_with) = found
    assert probe < 0.85 * without
    assert category_with > category_without - 0.05
