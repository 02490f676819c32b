"""What each stage changes, what it leaves bit-identical, and what its settings do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_stages import (
    ALIGNMENT,
    KNOWLEDGE,
    LOOP,
    TRANSITION,
    Weights,
    changed,
    inputs_of,
    names_of,
    pairs_of,
    weights,
)
from tiny_catalogue import load_backbone

from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.stages.alignment import (
    AlignmentSettings,
    marginal_rows,
    ramped,
    standardise,
    train_alignment,
)
from recbole_tpad.stages.held_out import split_holdout
from recbole_tpad.stages.inputs import encode_states
from recbole_tpad.stages.knowledge import train_knowledge
from recbole_tpad.stages.loop import Metrics
from recbole_tpad.stages.transition import TransitionSettings, train_transition


@pytest.fixture
def backbone(checkpoint: Path) -> ComposedBackbone:
    return load_backbone(checkpoint)


# -- stage 1 -------------------------------------------------------------------------------------


def test_knowledge_trains_its_tower_only(
    backbone: ComposedBackbone, dataset: DatasetFolder, tmp_path: Path
) -> None:
    before = weights(backbone)
    result = train_knowledge(backbone, inputs_of(backbone, dataset), KNOWLEDGE, tmp_path / "c", 0)
    expected = names_of(backbone, backbone.tower_parameters("knowledge"))
    assert changed(before, weights(backbone)) == expected
    assert len(result.history) == LOOP.steps
    assert all(m["loss"] == m["loss_generation"] for m in result.history)


def test_knowledge_with_the_base_leaves_lora_alone(
    backbone: ComposedBackbone, dataset: DatasetFolder, tmp_path: Path
) -> None:
    before = weights(backbone)
    inputs = backbone.inputs(dataset.items, torch.device("cpu"))
    inputs.load_pixels()
    settings = replace(KNOWLEDGE, train_base=True, batch_size=14)
    train_knowledge(backbone, inputs, settings, tmp_path / "c", 0)
    found = changed(before, weights(backbone))
    tower = {n for n in before if n.startswith("towers.knowledge.")}
    base = names_of(backbone, backbone.base_parameters())
    assert tower <= found <= tower | base
    assert not any("lora_" in n or n.startswith("towers.transition.") for n in found)
    for part in ("vision.vit.", "vision.qformer.", "vision.query_tokens", "language_model."):
        assert any(n.startswith(part) for n in found), part


def test_knowledge_learns(
    backbone: ComposedBackbone, dataset: DatasetFolder, tmp_path: Path
) -> None:
    loop = replace(LOOP, steps=30, checkpoint_seconds=1e9)
    settings = replace(KNOWLEDGE, loop=loop, batch_size=14)
    inputs = inputs_of(backbone, dataset)
    history = train_knowledge(backbone, inputs, settings, tmp_path / "c", 0).history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_items_held_out_are_not_trained_on(dataset: DatasetFolder) -> None:
    has_answer = torch.tensor([True] * 20 + [False] * 5)[torch.randperm(25)]
    labelled = set(torch.nonzero(has_answer).flatten().tolist())
    training, holdout = split_holdout(has_answer, 0.3, seed=1)
    assert len(holdout) == 6
    assert set(training) | set(holdout) == labelled
    assert not set(training) & set(holdout)
    assert split_holdout(has_answer, 0.3, seed=1) == (training, holdout)
    assert split_holdout(has_answer, 0.3, seed=2)[1] != holdout
    assert split_holdout(torch.tensor([False, True]), 0.9, 0) == ([1], [])


def test_nothing_to_say() -> None:
    with pytest.raises(InputError, match="No item has keywords or a category"):
        split_holdout(torch.zeros(4, dtype=torch.bool), 0.1, 0)


# -- stage 2a ------------------------------------------------------------------------------------


def test_transition_trains_its_tower_only(
    backbone: ComposedBackbone, dataset: DatasetFolder, tmp_path: Path
) -> None:
    before = weights(backbone)
    inputs = inputs_of(backbone, dataset)
    history, scales = train_transition(
        backbone, inputs, pairs_of(dataset), TRANSITION, tmp_path / "c", 0
    )
    tower = names_of(backbone, backbone.tower_parameters("transition"))
    assert changed(before, weights(backbone)) == tower
    knowledge = backbone.tower_parameters("knowledge")
    for name, parameter in backbone.tower_parameters("transition").items():
        assert not torch.equal(parameter, knowledge[name]), name
    assert set(scales) == {"visual", "text"}
    assert all(s.item() != TRANSITION.log_scale for s in scales.values())
    assert len(history) == LOOP.steps


def test_transition_starts_from_knowledge(
    backbone: ComposedBackbone, dataset: DatasetFolder, tmp_path: Path
) -> None:
    inputs = inputs_of(backbone, dataset)
    settings = replace(TRANSITION, loop=replace(LOOP, steps=1, learning_rate=1e-9))
    train_transition(backbone, inputs, pairs_of(dataset), settings, tmp_path / "c", 0)
    knowledge, transition = (
        encode_states(backbone, inputs, t) for t in ("knowledge", "transition")
    )
    assert all(torch.allclose(knowledge[n], transition[n], atol=1e-5) for n in knowledge)


def test_weights_of_the_modalities(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path
) -> None:
    for visual, text in ((1.0, 1.0), (2.0, 0.5), (0.0, 1.0)):
        backbone = load_backbone(checkpoint)
        settings = replace(TRANSITION, visual_weight=visual, text_weight=text)
        history, _ = train_transition(
            backbone,
            inputs_of(backbone, dataset),
            pairs_of(dataset),
            settings,
            tmp_path / f"{visual}",
            0,
        )
        for m in history:
            expected = visual * m["loss_contrastive_visual"] + text * m["loss_contrastive_text"]
            assert m["loss"] == pytest.approx(expected, rel=1e-5)


def test_transition_learns(
    backbone: ComposedBackbone, dataset: DatasetFolder, tmp_path: Path
) -> None:
    loop = replace(LOOP, steps=40, checkpoint_seconds=1e9)
    settings = replace(TRANSITION, loop=loop, pairs_per_step=48)
    inputs = inputs_of(backbone, dataset)
    history, _ = train_transition(backbone, inputs, pairs_of(dataset), settings, tmp_path / "c", 0)
    losses = [m["loss"] for m in history]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def states_after(
    checkpoint: Path, dataset: DatasetFolder, folder: Path, settings: TransitionSettings
) -> tuple[dict[str, torch.Tensor], list[Metrics]]:
    backbone = load_backbone(checkpoint)
    inputs = inputs_of(backbone, dataset)
    history, _ = train_transition(backbone, inputs, pairs_of(dataset), settings, folder, 0)
    return encode_states(backbone, inputs, "transition"), history


@pytest.mark.parametrize("kind", ["item", "session"])
def test_gradient_caching_changes_memory_and_nothing_else(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path, kind: str
) -> None:
    settings = replace(TRANSITION, input=kind, loop=replace(LOOP, steps=2, learning_rate=1e-3))
    whole, history = states_after(checkpoint, dataset, tmp_path / "whole", settings)
    cached, other = states_after(checkpoint, dataset, tmp_path / "c", replace(settings, chunk=3))
    for name in whole:
        torch.testing.assert_close(cached[name], whole[name], atol=2e-4, rtol=1e-3)
    for a, b in zip(history, other, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)


def test_states_of_the_transition_tower_that_are_not_finite(
    backbone: ComposedBackbone, dataset: DatasetFolder, tmp_path: Path
) -> None:
    with torch.no_grad():
        next(iter(backbone.tower_parameters("knowledge").values())).fill_(float("nan"))
    inputs = inputs_of(backbone, dataset)
    said = r"'transition' diverged at step 0, the states of the items i\d\d.*norm_text"
    with pytest.raises(InputError, match=said):
        train_transition(backbone, inputs, pairs_of(dataset), TRANSITION, tmp_path / "c", 0)


def test_sessions_as_input_learn(
    backbone: ComposedBackbone, dataset: DatasetFolder, tmp_path: Path
) -> None:
    loop = replace(LOOP, steps=30, checkpoint_seconds=1e9)
    settings = replace(TRANSITION, loop=loop, pairs_per_step=48, input="session", session_length=3)
    inputs = inputs_of(backbone, dataset)
    history, learned = train_transition(
        backbone, inputs, pairs_of(dataset), settings, tmp_path / "c", 0
    )
    losses = [m["loss"] for m in history]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert set(learned) == {"visual", "text", "recency_visual", "recency_text"}
    assert learned["recency_text"].shape == (3,)
    assert not torch.equal(learned["recency_text"], -0.5 * torch.arange(3))


def test_the_balance_of_modalities_is_recorded(
    backbone: ComposedBackbone, dataset: DatasetFolder, tmp_path: Path
) -> None:
    settings = replace(TRANSITION, visual_weight=0.0)
    inputs = inputs_of(backbone, dataset)
    history, _ = train_transition(backbone, inputs, pairs_of(dataset), settings, tmp_path / "c", 0)
    for m in history:
        assert m["gradient_share_visual"] == 0
        assert m["gradient_share_text"] == 1
        assert m["norm_visual"] > 0
        assert m["norm_text"] > 0


# -- stage 2b ------------------------------------------------------------------------------------


def align(
    checkpoint: Path,
    dataset: DatasetFolder,
    folder: Path,
    settings: AlignmentSettings = ALIGNMENT,
    lora: dict[str, Any] | None = None,
    hook: Callable[[ComposedBackbone], None] | None = None,
) -> tuple[ComposedBackbone, list[Metrics]]:
    """Stage 2b from a fresh backbone whose towers differ."""
    backbone = load_backbone(checkpoint, lora=lora or {})
    inputs = inputs_of(backbone, dataset)
    teacher = encode_states(backbone, inputs, "transition")
    if hook is not None:
        hook(backbone)
    return backbone, train_alignment(backbone, inputs, teacher, settings, folder, 0).history


def heads_of(folder: Path, kind: str) -> Weights:
    """A kind of head tensors ('value', 'exp_avg') in the last checkpoint."""
    tensors = load_file(folder / "state.safetensors")
    prefix = f"main/{kind}/heads."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


@pytest.mark.parametrize("mi_lower", ["infonce", "soft", "mine"])
def test_alignment_trains_the_knowledge_tower_only(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path, mi_lower: str
) -> None:
    before = weights(load_backbone(checkpoint))
    settings = replace(ALIGNMENT, mi_lower=mi_lower)
    backbone, history = align(checkpoint, dataset, tmp_path / "c", settings)
    tower = names_of(backbone, backbone.tower_parameters("knowledge"))
    assert changed(before, weights(backbone)) == tower
    assert len(history) == LOOP.steps


def test_the_upper_bound_does_not_train_the_teachers_head(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path
) -> None:
    settings = replace(ALIGNMENT, gamma_upper=1.0, gamma_lower=0.0)
    align(checkpoint, dataset, tmp_path / "upper", settings)
    momentum = heads_of(tmp_path / "upper", "exp_avg")
    teacher = {n: t for n, t in momentum.items() if ".teacher." in n}
    assert len(teacher) == 4
    assert not any(t.any() for t in teacher.values())
    assert all(t.any() for n, t in momentum.items() if ".low." in n)
    # With the lower bound it does get a gradient.
    align(checkpoint, dataset, tmp_path / "both")
    momentum = heads_of(tmp_path / "both", "exp_avg")
    assert all(t.any() for n, t in momentum.items() if ".teacher.weight" in n)


def test_without_the_upper_bound_w_low_rests(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path
) -> None:
    align(checkpoint, dataset, tmp_path / "c", replace(ALIGNMENT, gamma_upper=0.0))
    momentum = heads_of(tmp_path / "c", "exp_avg")
    assert not any(t.any() for n, t in momentum.items() if ".low." in n)
    assert not any(".category." in n or ".keyword." in n for n in momentum)
    assert all(t.any() for n, t in momentum.items() if ".high.weight" in n)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"gamma_upper": 0.0},
        {"gamma_lower": 0.0},
        {"gamma_upper": 0.7, "gamma_lower": 0.3, "generation_weight": 0.2},
        {"mi_lower": "soft", "gamma_lower": 0.4},
        {"generation_weight": 0.0},
    ],
    ids=str,
)
def test_the_loss_is_the_weighted_sum(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path, change: dict[str, Any]
) -> None:
    settings = replace(ALIGNMENT, **change)
    _, history = align(checkpoint, dataset, tmp_path / "c", settings)
    for m in history:
        lower = m["divergence"] if settings.mi_lower == "soft" else -m["mi_lower"]
        expected = settings.gamma_upper * m["mi_upper"] + settings.gamma_lower * lower
        expected += settings.generation_weight * m["loss_generation"]
        expected += m["loss_labels"] if settings.gamma_upper > 0 else 0
        assert m["loss"] == pytest.approx(expected, abs=1e-4)
        assert m["mi_lower"] <= 2 * math.log(len(dataset.items)) + 1e-5
        assert ("divergence" in m) == (settings.mi_lower == "soft")
        assert m.get("divergence", 0.0) >= 0


def test_without_bounds_only_generation_moves_the_tower(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path
) -> None:
    towers = []
    for mi_lower, gamma in (("infonce", 0.0), ("soft", 0.0), ("soft", 1.0), ("infonce", 1.0)):
        settings = replace(ALIGNMENT, mi_lower=mi_lower, gamma_lower=gamma, gamma_upper=0.0)
        backbone, _ = align(checkpoint, dataset, tmp_path / f"{mi_lower}{gamma}", settings)
        tower = backbone.tower_parameters("knowledge")
        towers.append(torch.cat([p.detach().flatten() for p in tower.values()]))
    assert torch.equal(towers[0], towers[1])
    assert not torch.allclose(towers[0], towers[2])
    assert not torch.allclose(towers[2], towers[3])


@pytest.mark.parametrize(
    "change",
    [
        {"mi_lower": "mine"},
        {"mi_lower": "mine", "critic": "mlp", "marginals": "batch"},
        {"critic": "mlp"},
        {"marginals": "batch"},
        {"table_sample": 9},
        {"mi_lower": "soft", "projector": "identity", "relational_weight": 0.5},
        {"mi_lower": "soft", "projector": "identity", "cosine_weight": 2.0, "table_sample": 9},
    ],
    ids=str,
)
def test_every_kind_of_lower_bound_moves_the_tower(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path, change: dict[str, Any]
) -> None:
    settings = replace(ALIGNMENT, gamma_upper=0.0, **change)
    resting, _ = align(checkpoint, dataset, tmp_path / "r", replace(settings, gamma_lower=0.0))
    moved, history = align(checkpoint, dataset, tmp_path / "m", settings)
    towers = [b.tower_parameters("knowledge") for b in (resting, moved)]
    assert any(not torch.equal(p, towers[1][n]) for n, p in towers[0].items())
    plain, _ = align(checkpoint, dataset, tmp_path / "p", replace(ALIGNMENT, gamma_upper=0.0))
    other = plain.tower_parameters("knowledge")
    assert any(not torch.equal(p, other[n]) for n, p in towers[1].items())
    assert all(math.isfinite(m["loss"]) for m in history)


def test_the_ramp() -> None:
    settings = replace(ALIGNMENT, gamma_ramp=0.5, loop=replace(LOOP, steps=8))
    factors = [ramped(step, settings) for step in range(8)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])
    assert {ramped(step, ALIGNMENT) for step in range(3)} == {1.0}


def test_marginals_hold_the_batch_first_and_nothing_twice() -> None:
    rows = torch.tensor([7, 2, 5])
    settings = replace(ALIGNMENT, table_sample=8)
    found = marginal_rows(rows, 12, settings, seed=0, step=1)
    assert found[:3].tolist() == rows.tolist()
    assert len(set(found.tolist())) == len(found) == 8
    assert found.tolist() != marginal_rows(rows, 12, settings, seed=0, step=2).tolist()
    assert len(marginal_rows(rows, 12, ALIGNMENT, 0, 1)) == 0  # the whole table
    batch = replace(ALIGNMENT, marginals="batch")
    assert torch.equal(marginal_rows(rows, 12, batch, 0, 1), rows)


@pytest.mark.parametrize("mi_lower", ["infonce", "mine", "soft"])
@pytest.mark.parametrize("marginals", ["batch", "table"])
def test_a_batch_of_one(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path, mi_lower: str, marginals: str
) -> None:
    settings = replace(ALIGNMENT, mi_lower=mi_lower, marginals=marginals, batch_size=1)
    _, history = align(checkpoint, dataset, tmp_path / "c", settings)
    assert all(math.isfinite(m["loss"]) for m in history)
    if marginals == "batch":  # nothing to tell the item from
        assert all(m["mi_lower"] == 0 for m in history)


def test_states_that_are_not_finite_are_named(
    backbone: ComposedBackbone, dataset: DatasetFolder, tmp_path: Path
) -> None:
    inputs = inputs_of(backbone, dataset)
    teacher = encode_states(backbone, inputs, "transition")
    teacher["text"][4, 2] = float("nan")
    with pytest.raises(InputError, match=r"'text' states are not finite, first for item i04"):
        train_alignment(backbone, inputs, teacher, ALIGNMENT, tmp_path / "c", 0)


def test_items_without_any_answer(checkpoint: Path, dataset: DatasetFolder, tmp_path: Path) -> None:
    backbone = load_backbone(checkpoint)
    items = [replace(i, keywords=(), category="") for i in dataset.items]
    inputs = backbone.inputs(items, torch.device("cpu"))
    inputs.freeze()
    teacher = encode_states(backbone, inputs, "transition")
    history = train_alignment(backbone, inputs, teacher, ALIGNMENT, tmp_path / "c", 0).history
    assert all("loss_generation" not in m and m["loss_labels"] == 0 for m in history)


class Killed(BaseException):
    """Stands for a kill."""


def kill_in_the_second_step(backbone: ComposedBackbone) -> None:
    calls = iter(range(100))

    def kill(*_: object) -> None:
        if next(calls) == 1:
            raise Killed

    backbone.language_model.get_base_model().model.norm.register_forward_hook(kill)


@pytest.mark.parametrize("mi_lower", ["infonce", "mine", "soft"])
def test_alignment_resumes_to_the_same_bits(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path, mi_lower: str
) -> None:
    lora, settings = {"dropout": 0.3}, replace(ALIGNMENT, mi_lower=mi_lower)
    whole, history = align(checkpoint, dataset, tmp_path / "whole", settings, lora)
    with pytest.raises(Killed):
        align(
            checkpoint, dataset, tmp_path / "killed", settings, lora, hook=kill_in_the_second_step
        )
    assert (tmp_path / "killed" / "progress.json").is_file()
    again, resumed = align(checkpoint, dataset, tmp_path / "killed", settings, lora)
    assert resumed == history
    assert not changed(weights(whole), weights(again))
    first, second = (load_file(tmp_path / n / "state.safetensors") for n in ("whole", "killed"))
    assert set(first) == set(second)
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_standardised_states() -> None:
    states = standardise(torch.randn(50, 7, dtype=torch.float16) * 3 + 40)
    assert states.dtype == torch.float32
    assert torch.allclose(states.mean(0), torch.zeros(7), atol=1e-3)
    assert states.square().mean().item() == pytest.approx(1, abs=1e-3)
    assert not standardise(torch.ones(5, 3)).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(ALIGNMENT, mi_lower="info_nce"), "Did you mean 'infonce'"),
        (lambda: replace(ALIGNMENT, batch_size=0), "batch_size"),
        (lambda: replace(ALIGNMENT, projection=0), "projection"),
        (lambda: replace(ALIGNMENT, gamma_lower=-1.0), "gamma_lower"),
        (lambda: replace(KNOWLEDGE, batch_size=0), "batch_size"),
        (lambda: replace(KNOWLEDGE, holdout=1.0), "holdout"),
        (lambda: replace(TRANSITION, pairs_per_step=0), "pairs_per_step"),
        (lambda: replace(TRANSITION, orders=()), "orders"),
        (lambda: replace(TRANSITION, input="sesion"), "Did you mean 'session'"),
        (lambda: replace(TRANSITION, chunk=-1), "chunk"),
        (lambda: replace(TRANSITION, popularity_balance=-0.5), "popularity_balance"),
        (lambda: replace(ALIGNMENT, critic="cosin"), "Did you mean 'cosine'"),
        (lambda: replace(ALIGNMENT, marginals="all"), "marginals"),
        (lambda: replace(ALIGNMENT, projector="none"), "projector"),
        (lambda: replace(ALIGNMENT, gamma_ramp=1.5), "gamma_ramp"),
        (lambda: replace(ALIGNMENT, relational_weight=-1.0), "relational_weight"),
        (lambda: replace(TRANSITION, text_weight=float("nan")), "text_weight"),
    ],
)
def test_impossible_settings(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
