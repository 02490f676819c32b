"""Stage 1's ways to train: micro-batches, half precision, early stop, and its looks on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_catalogue import load_backbone

from recbole_tpad.backbones.base import Inputs
from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.stages.held_out import HELD_OUT_LOSS, held_out_loss, split_holdout
from recbole_tpad.stages.knowledge import KnowledgeSettings, best_weights_file, train_knowledge
from recbole_tpad.stages.loop import LoopSettings, Metrics
from recbole_tpad.stages.micro_batches import micro_batches

CPU = torch.device("cpu")
LOOP = LoopSettings(steps=4, learning_rate=1e-2, checkpoint_seconds=1e9)
SETTINGS = KnowledgeSettings(LOOP, batch_size=9)


def uneven(dataset: DatasetFolder) -> list[Any]:
    return [
        replace(i, title=i.title * (1 + k % 5), keywords=i.keywords[: 1 + k % 2])
        for k, i in enumerate(dataset.items)
    ]


def inputs_of(backbone: ComposedBackbone, dataset: DatasetFolder) -> Inputs:
    inputs = backbone.inputs(uneven(dataset), CPU)
    inputs.freeze()
    return inputs


def trained(
    checkpoint: Path,
    dataset: DatasetFolder,
    folder: Path,
    settings: KnowledgeSettings,
    **backbone: Any,
) -> tuple[ComposedBackbone, list[Metrics]]:
    made = load_backbone(checkpoint, **backbone)
    result = train_knowledge(made, inputs_of(made, dataset), settings, folder, 0)
    return made, result.history


# -- micro-batches -------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.integers(0, 200),
    st.randoms(use_true_random=False),
)
def test_parts_cover_the_batch_within_the_budget(lengths: list[int], tokens: int, rng: Any) -> None:
    table = torch.tensor(lengths)
    rows = torch.tensor(rng.sample(range(len(lengths)), rng.randint(1, len(lengths))))
    parts = micro_batches(rows, table, tokens)
    assert sorted(torch.cat(parts).tolist()) == sorted(rows.tolist())
    for part in parts:
        assert tokens == 0 or len(part) == 1 or len(part) * int(table[part].max()) <= tokens
    if tokens:
        padded = sum(len(p) * int(table[p].max()) for p in parts)
        assert padded <= len(rows) * int(table[rows].max())


def test_accumulated_gradients_are_the_batchs(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path
) -> None:
    whole, history = trained(checkpoint, dataset, tmp_path / "a", SETTINGS)
    for tokens in (1, 150):
        settings = replace(SETTINGS, micro_batch_tokens=tokens)
        parts, again = trained(checkpoint, dataset, tmp_path / f"{tokens}", settings)
        for step, other in zip(history, again, strict=True):
            assert other["loss"] == pytest.approx(step["loss"], rel=1e-4)
            assert other["gradient_norm"] == pytest.approx(step["gradient_norm"], rel=1e-3)
        wanted = whole.tower_parameters("knowledge")
        for name, parameter in parts.tower_parameters("knowledge").items():
            assert torch.allclose(parameter, wanted[name], atol=2e-4), name


# -- precision and memory ------------------------------------------------------------------------


def gradients(
    checkpoint: Path, dataset: DatasetFolder, factor: float = 1.0, **settings: Any
) -> dict[str, torch.Tensor]:
    backbone = load_backbone(checkpoint, **settings)
    tower = backbone.tower_parameters("knowledge")
    inputs = inputs_of(backbone, dataset)
    torch.manual_seed(0)
    with backbone.training_only(tower):
        encoded = backbone.encode(inputs.batch(torch.arange(12), answers=True))
        loss = encoded.answer_loss()
        assert loss is not None
        (loss * factor).backward()
        return {n: p.grad.clone() / factor for n, p in tower.items() if p.grad is not None}


def test_checkpointed_activations_give_the_same_gradients(
    checkpoint: Path, dataset: DatasetFolder
) -> None:
    lora = {"dropout": 0.3}
    wanted = gradients(checkpoint, dataset, lora=lora)
    found = gradients(checkpoint, dataset, lora=lora, activation_checkpointing=True)
    assert set(found) == set(wanted)
    assert all(torch.allclose(found[n], wanted[n], atol=1e-6) for n in wanted)


def test_small_gradients_survive_half_precision(checkpoint: Path, dataset: DatasetFolder) -> None:
    wanted = gradients(checkpoint, dataset)
    for dtype in ("float16", "bfloat16"):
        found = gradients(checkpoint, dataset, factor=1e-3, dtype=dtype)
        for name, gradient in wanted.items():
            error = (found[name] - gradient).norm() / gradient.norm()
            assert error < 0.04, (dtype, name)  # unscaled float16: up to .44


# -- looks at the held-out items -----------------------------------------------------------------

LOOKS = replace(SETTINGS, holdout=0.4, evaluate_every=2, loop=replace(LOOP, steps=7))


def test_looks_are_recorded_and_change_nothing(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path
) -> None:
    lora = {"dropout": 0.3}
    plain = replace(LOOKS, evaluate_every=0)
    first, history = trained(checkpoint, dataset, tmp_path / "a", plain, lora=lora)
    second, looked = trained(checkpoint, dataset, tmp_path / "b", LOOKS, lora=lora)
    assert [m["loss"] for m in history] == [m["loss"] for m in looked]
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert [m["step"] for m in looked if HELD_OUT_LOSS in m] == [2, 4, 6]
    for look in looked[2::2]:
        for name in ("recall", "f1", "chance", "shuffled_images"):
            assert 0 <= look[f"held_out_{name}"] <= 1


def test_the_held_out_loss(checkpoint: Path, dataset: DatasetFolder) -> None:
    backbone = load_backbone(checkpoint)
    inputs = inputs_of(backbone, dataset)
    rows = [3, 5, 7, 8, 12]
    with torch.no_grad():
        encoded = backbone.encode(inputs.batch(torch.tensor(rows), answers=True))
    loss = encoded.answer_loss()
    assert loss is not None
    assert held_out_loss(backbone, inputs, rows, batch=2) == pytest.approx(loss.item(), rel=1e-5)


def overfitting(checkpoint: Path, dataset: DatasetFolder, folder: Path) -> Any:
    backbone = load_backbone(checkpoint)
    items = [
        replace(i, keywords=(), category=f"word{(k * 7) % 11} noise{(k * 5) % 13}")
        for k, i in enumerate(dataset.items)
    ]
    inputs = backbone.inputs(items, CPU)
    inputs.freeze()
    settings = KnowledgeSettings(
        replace(LOOP, steps=120, learning_rate=3e-2),
        batch_size=14,
        holdout=0.4,
        evaluate_every=4,
        patience=3,
    )
    result = train_knowledge(backbone, inputs, settings, folder, 0)
    _, holdout = split_holdout(inputs.has_answer, settings.holdout, 0)
    return result, held_out_loss(backbone, inputs, holdout)


@pytest.mark.slow
def test_early_stop_takes_the_best_weights(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path
) -> None:
    result, loss = overfitting(checkpoint, dataset, tmp_path / "c")
    looks = [m[HELD_OUT_LOSS] for m in result.history if HELD_OUT_LOSS in m]
    assert result.stopped
    assert len(result.history) < 120
    assert loss == pytest.approx(min(looks), rel=1e-4)
    assert min(looks[-3:]) >= min(looks[:-3])
    assert best_weights_file(tmp_path / "c").is_file()
    assert looks[-1] > loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batch_tokens": -1}, "micro_batch_tokens"),
        ({"evaluate_every": -2}, "evaluate_every"),
        ({"patience": 2}, "patience needs evaluate_every"),
        ({"patience": 2, "evaluate_every": 5, "holdout": 0.0}, "patience needs"),
        ({"evaluation_items": 0}, "evaluation_items"),
    ],
)
def test_impossible_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SETTINGS, **change)


def test_a_loss_that_is_not_finite_names_the_items(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path
) -> None:
    backbone = load_backbone(checkpoint)
    inputs = inputs_of(backbone, dataset)
    with torch.no_grad():
        backbone.tower_parameters("knowledge")["tower.summary_tokens"].fill_(float("nan"))
    with pytest.raises(
        InputError, match=r"the loss is nan, the states of the items i\d\d, .* are not"
    ):
        train_knowledge(backbone, inputs, SETTINGS, tmp_path / "c", 0)


class Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.slow
def test_a_killed_run_with_looks_resumes_to_the_same_bits(
    checkpoint: Path, dataset: DatasetFolder, tmp_path: Path
) -> None:
    settings = replace(
        LOOKS,
        loop=replace(LOOKS.loop, checkpoint_seconds=0),
        patience=4,
        micro_batch_tokens=150,
    )
    lora = {"dropout": 0.3}
    whole, history = trained(checkpoint, dataset, tmp_path / "whole", settings, lora=lora)
    for kill_at in (2, 5):
        killed = load_backbone(checkpoint, lora=lora)
        inputs = inputs_of(killed, dataset)
        batches = iter(range(1000))
        make = inputs.batch

        def dying(
            *args: Any, counter: Any = batches, last: int = kill_at, own: Any = make, **named: Any
        ) -> Any:
            if named.get("answers") and next(counter) == 3 * last:
                raise Killed
            return own(*args, **named)

        inputs.batch = dying  # type: ignore[method-assign]
        with pytest.raises(Killed):
            train_knowledge(killed, inputs, settings, tmp_path / f"{kill_at}", 0)
        again, resumed = trained(checkpoint, dataset, tmp_path / f"{kill_at}", settings, lora=lora)
        assert resumed == history
        pairs = zip(whole.parameters(), again.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
