"""What the states of the composed backbone depend on, and what they must not depend on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_catalogue import load_backbone, write_backbone

from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.backbones.composed_inputs import ComposedInputs
from recbole_tpad.backbones.prompts import IMAGE_SUMMARY, TEXT_SUMMARY, Prompt, collate
from recbole_tpad.data import Item
from recbole_tpad.stages.inputs import encode_states

CPU = torch.device("cpu")
States = dict[str, torch.Tensor]


@pytest.fixture(params=[False, True], ids=["full", "gist"])
def backbone(request: pytest.FixtureRequest, checkpoint: Path) -> ComposedBackbone:
    return load_backbone(checkpoint, gist_mask=request.param)


@torch.no_grad()
def states_of(
    backbone: ComposedBackbone,
    items: list[Item],
    rows: list[int] | None = None,
    *,
    answers: bool = False,
    left: bool = False,
) -> States:
    inputs = backbone.inputs(items, CPU)
    chosen = torch.tensor(list(range(len(items))) if rows is None else rows)
    batch, visual, has_image = inputs.batch(chosen, answers=answers, left=left)
    return backbone.summaries(batch, backbone.hidden(batch, visual, has_image))


def close(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.allclose(left, right, atol=2e-5)


def differ(left: torch.Tensor, right: torch.Tensor) -> bool:
    return bool(((left - right).abs().amax(-1) > 1e-3).all())


def test_text_reaches_the_text_summary_only(backbone: ComposedBackbone, items: list[Item]) -> None:
    before = states_of(backbone, items)
    changed = [replace(i, title=f"Quite another {i.title}", brand="Nobody") for i in items]
    after = states_of(backbone, changed)
    assert close(before["visual"], after["visual"])
    assert differ(before["text"], after["text"])


def test_the_image_reaches_both_summaries(backbone: ComposedBackbone, items: list[Item]) -> None:
    shown = [i for i in items if i.image]
    before = states_of(backbone, shown)
    after = states_of(backbone, [replace(i, image=None) for i in shown])
    assert differ(before["visual"], after["visual"])
    assert differ(before["text"], after["text"])


def test_answers_do_not_reach_the_states(backbone: ComposedBackbone, items: list[Item]) -> None:
    # With the gist mask the rows of a states-only batch once hid the text from its own summary.
    alone = states_of(backbone, items)
    with_answers = states_of(backbone, items, answers=True)
    other = [replace(i, category="Unlike", keywords=("new", "words", "here")) for i in items]
    for states in (
        with_answers,
        states_of(backbone, other),
        states_of(backbone, other, answers=True),
    ):
        for name in ("visual", "text"):
            assert close(alone[name], states[name]), name


def test_the_gist_mask_leaves_the_states_alone(checkpoint: Path, items: list[Item]) -> None:
    full = states_of(load_backbone(checkpoint, gist_mask=False), items)
    gist = states_of(load_backbone(checkpoint, gist_mask=True), items)
    for name, states in full.items():
        assert close(states, gist[name]), name


def test_left_and_right_padding_agree(backbone: ComposedBackbone, items: list[Item]) -> None:
    uneven = [replace(i, title=i.title * (1 + k % 4)) for k, i in enumerate(items)]
    right, left = states_of(backbone, uneven), states_of(backbone, uneven, left=True)
    for name, states in right.items():
        assert close(states, left[name]), name


def test_batches_and_order_do_not_matter(backbone: ComposedBackbone, items: list[Item]) -> None:
    uneven = [replace(i, title=i.title * (1 + k % 4)) for k, i in enumerate(items)]
    inputs = backbone.inputs(uneven, CPU)
    together = encode_states(backbone, inputs, "knowledge", batch=len(items))
    few = encode_states(backbone, inputs, "knowledge", batch=3)
    backwards = list(range(len(items)))[::-1]
    shuffled = states_of(backbone, uneven, backwards)
    for name, states in together.items():
        assert close(states, few[name]), name
        assert close(states[backwards], shuffled[name]), name


def test_summaries_before_the_token(checkpoint: Path, items: list[Item]) -> None:
    at, before = (load_backbone(checkpoint, readout=r) for r in ("at", "before"))
    inputs = before.inputs(items, CPU)
    batch, visual, has_image = inputs.batch(torch.arange(len(items)))
    with torch.no_grad():
        hidden = before.hidden(batch, visual, has_image)
        found = before.summaries(batch, hidden)
    for row in range(len(items)):
        for name, marker in (("visual", IMAGE_SUMMARY), ("text", TEXT_SUMMARY)):
            place = batch.ids[row].tolist().index(marker)
            assert torch.equal(found[name][row], hidden[row, place - 1])
            assert torch.equal(at.summaries(batch, hidden)[name][row], hidden[row, place])


def test_no_image_has_its_own_tokens(backbone: ComposedBackbone, items: list[Item]) -> None:
    has_image = torch.tensor([i.image is not None for i in items])
    assert has_image.any()
    assert not has_image.all()
    before = states_of(backbone, items)
    with torch.no_grad():
        backbone.tower_parameters("knowledge")["tower.no_image"].add_(1.0)
    after = states_of(backbone, items)
    assert torch.equal(before["visual"][has_image], after["visual"][has_image])
    assert differ(before["visual"][~has_image], after["visual"][~has_image])


def test_cached_features_are_the_encoders(backbone: ComposedBackbone, items: list[Item]) -> None:
    live, cached, pixels = (backbone.inputs(items, CPU) for _ in range(3))
    cached.cache_features()
    pixels.load_pixels()
    rows = torch.tensor([5, 3, 0, 11])
    with torch.no_grad():
        features = [i.batch(rows)[1] for i in (live, cached, pixels)]
    assert features[0].abs().max() > 0.1
    assert torch.allclose(features[0], features[1], atol=5e-3)  # kept in fp16
    assert torch.equal(features[0], features[2])


def test_pixels_and_features_come_in_chunks(backbone: ComposedBackbone, items: list[Item]) -> None:
    rows = torch.arange(len(items))
    wanted = backbone.inputs(items, CPU).batch(rows).visual
    for chunk in (1, 4, 64):
        pixels, features = (backbone.inputs(items, CPU) for _ in range(2))
        pixels.load_pixels(chunk)
        features.cache_features(chunk)
        with torch.no_grad():
            assert torch.allclose(pixels.batch(rows).visual, wanted, atol=1e-5)
        assert torch.allclose(features.batch(rows).visual, wanted, atol=5e-3)
        pixels.cache_features(chunk)
        assert torch.allclose(pixels.batch(rows).visual, wanted, atol=5e-3)


def test_a_catalogue_without_images(backbone: ComposedBackbone, items: list[Item]) -> None:
    bare = [replace(i, image=None) for i in items]
    inputs = backbone.inputs(bare, CPU)
    inputs.load_pixels()
    assert inputs.pixel_batches() == []
    before = encode_states(backbone, inputs, "knowledge")
    inputs.cache_features()
    after = encode_states(backbone, inputs, "knowledge")
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_the_answers_first_position_sees_summaries_only(items: list[Item], tmp_path: Path) -> None:
    # One layer: what a position attends to is what its gradient reaches.
    folder = write_backbone(tmp_path / "one", items, layers=1)
    for gist in (True, False):
        backbone = load_backbone(folder, gist_mask=gist)
        inputs = backbone.inputs(items, CPU)
        batch, visual, has_image = inputs.batch(torch.arange(4), answers=True)
        seen: list[torch.Tensor] = []

        def keep(
            module: torch.nn.Module,
            args: tuple[torch.Tensor, ...],
            kept: list[torch.Tensor] = seen,
        ) -> None:
            args[0].retain_grad()
            kept.append(args[0])

        layer = backbone.language_model.get_base_model().model.layers[0]
        layer.register_forward_pre_hook(keep)
        hidden = backbone.hidden(batch, visual, has_image)
        for row in range(4):
            backbone.zero_grad()
            seen[0].grad = None
            first = int(batch.answer_start[row]) - 1  # the position that predicts the first token
            hidden[row, first].square().sum().backward(retain_graph=True)
            gradient = seen[0].grad
            assert gradient is not None
            reached = torch.nonzero(gradient[row].abs().amax(-1)).flatten().tolist()
            ids = batch.ids[row].tolist()
            expected = [ids.index(IMAGE_SUMMARY), ids.index(TEXT_SUMMARY), first]
            assert reached == (expected if gist else list(range(first + 1)))
            assert not gradient[[r for r in range(4) if r != row]].any()


def test_the_answer_loss_is_cross_entropy(backbone: ComposedBackbone, items: list[Item]) -> None:
    mixed = [*items[:5], replace(items[5], keywords=(), category="")]
    inputs = backbone.inputs(mixed, CPU)
    batch, visual, has_image = inputs.batch(torch.arange(6), answers=True)
    with torch.no_grad():
        hidden = backbone.hidden(batch, visual, has_image)
        loss = backbone.answer_loss(batch, hidden)
        logits = backbone.language_model.get_output_embeddings()(hidden).double()
    terms = []
    for row, item in enumerate(mixed):
        prompt = backbone.prompts.prompt(item)
        for offset, token in enumerate(prompt.answer):
            position = logits[row, len(prompt.ids) + offset - 1]
            terms.append(torch.logsumexp(position, 0) - position[token])
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-5)


def stepwise(
    backbone: ComposedBackbone, inputs: ComposedInputs, item: int, steps: int
) -> list[int]:
    """Greedy decoding of one item, the whole sequence recomputed, padded on the right."""
    prompt = backbone.prompts.prompt(inputs.items[item])
    _, visual, has_image = inputs.batch(torch.tensor([item]))
    said: list[int] = []
    for _ in range(steps):
        batch = collate([Prompt(prompt.ids, said), Prompt([7] * 200, [])])
        batch = type(batch)(
            *(getattr(batch, n)[:1] for n in ("ids", "mask", "labels", "answer_start"))
        )
        hidden = backbone.hidden(batch, visual, has_image)[0, len(prompt.ids) + len(said) - 1]
        token = int(backbone.language_model.get_output_embeddings()(hidden).argmax())
        if token == backbone.tokenizer.eos_token_id:
            break
        said.append(token)
    return said


@torch.no_grad()
def test_generation_is_greedy(backbone: ComposedBackbone, items: list[Item]) -> None:
    uneven = [replace(i, title=i.title * (1 + k % 3)) for k, i in enumerate(items[:6])]
    inputs = backbone.inputs(uneven, CPU)
    first = backbone.generate(*inputs.batch(torch.arange(6), left=True), max_new_tokens=6)
    assert first == [stepwise(backbone, inputs, k, 6) for k in range(6)]
    # Item 2 now ends after two tokens; the others go on or end as their own states say.
    prompt = backbone.prompts.prompt(uneven[2])
    batch = collate([Prompt(prompt.ids, first[2][:2])])
    state = backbone.hidden(batch, *inputs.batch(torch.tensor([2]))[1:])[0, -1]
    head = backbone.language_model.get_output_embeddings().weight
    head[backbone.tokenizer.eos_token_id] = 0.5 * state / state.norm() * head.norm(dim=1).max()
    second = backbone.generate(*inputs.batch(torch.arange(6), left=True), max_new_tokens=6)
    assert second == [stepwise(backbone, inputs, k, 6) for k in range(6)]
    assert len({len(said) for said in second}) > 1
