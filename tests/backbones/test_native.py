"""Image-text-to-text models as backbones, against the models themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_native import FAMILIES, write_native
from transformers import AutoModelForImageTextToText

from recbole_tpad.backbones.loading import load_backbone, load_native
from recbole_tpad.backbones.native import NativeBackbone, NativeInputs
from recbole_tpad.backbones.prompts import IMAGE_SUMMARY, TEXT_SUMMARY
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.stages.inputs import encode_states
from recbole_tpad.stages.knowledge import KnowledgeSettings, train_knowledge, trained_parameters
from recbole_tpad.stages.loop import LoopSettings

CPU = torch.device("cpu")
LOOP = LoopSettings(steps=3, learning_rate=1e-2, checkpoint_seconds=1e9)
STAND_INS = {IMAGE_SUMMARY: 7, TEXT_SUMMARY: 11}  # rows of the word table


@pytest.fixture(scope="module", params=FAMILIES)
def folder(
    request: pytest.FixtureRequest, items: list[Item], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_native(tmp_path_factory.mktemp("native") / request.param, request.param, items)


def settings_of(folder: Path, **changes: object) -> BackboneSettings:
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0}
    return BackboneSettings(kind="native", model=str(folder), lora=lora, **changes)  # type: ignore[arg-type]


def load(folder: Path, *, stir: bool = True, **changes: object) -> NativeBackbone:
    torch.manual_seed(5)
    backbone = load_native(settings_of(folder, **changes)).eval()
    if stir:
        with torch.no_grad():
            for tower in ("knowledge", "transition"):
                for parameter in backbone.tower_parameters(tower).values():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone


@torch.no_grad()
def states_of(
    backbone: NativeBackbone,
    items: list[Item],
    rows: list[int] | None = None,
    *,
    answers: bool = False,
    left: bool = False,
) -> dict[str, torch.Tensor]:
    chosen = torch.tensor(list(range(len(items))) if rows is None else rows)
    inputs = backbone.inputs(items, CPU)
    return backbone.encode(inputs.batch(chosen, answers=answers, left=left)).summaries


def close(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.allclose(left, right, atol=5e-5)


def differ(left: torch.Tensor, right: torch.Tensor) -> bool:
    return bool(((left - right).abs().amax(-1) > 1e-3).all())


def own_inputs(
    backbone: NativeBackbone, inputs: NativeInputs, row: int
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """What the model itself reads of one item: pixels, and ids without markers."""
    ids = inputs.batch(torch.tensor([row]), left=True).prompts.ids
    path = inputs.items[row].image
    assert path is not None
    with Image.open(path) as image:
        read = backbone.image_processor(
            images=[image.convert("RGB")],
            return_tensors="pt",
        )
    markers = [ids[0].tolist().index(m) for m in STAND_INS]
    for marker, stand_in in STAND_INS.items():
        ids = ids.masked_fill(ids == marker, stand_in)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **dict(read)}
    if "image_grid_thw" in given:
        given["mm_token_type_ids"] = (ids == backbone.model.config.image_token_id).int()
    return given, markers


@torch.no_grad()
def test_states_and_answers_are_the_models_own(folder: Path, items: list[Item]) -> None:
    backbone = load(folder, stir=False)  # new LoRA adapters change nothing
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    words = model.get_input_embeddings().weight
    rows = backbone.tower_parameters("knowledge")["tower.summary_tokens"]
    rows.copy_(words[list(STAND_INS.values())])
    inputs = backbone.inputs(items, CPU)
    shown = torch.tensor([r for r in range(len(items)) if items[r].image][:6])
    found = backbone.encode(inputs.batch(shown)).summaries
    said = backbone.predict(inputs, shown, max_new_tokens=6)
    for place, row in enumerate(shown.tolist()):
        given, markers = own_inputs(backbone, inputs, row)
        states = model(**given, output_hidden_states=True).hidden_states[-1][0]
        for name, marker in zip(("visual", "text"), markers, strict=True):
            # Features are kept in half precision.
            assert torch.allclose(found[name][place], states[marker], atol=2e-2), name
        generated = model.generate(**given, max_new_tokens=6, do_sample=False, eos_token_id=2)
        own = generated[0, given["input_ids"].shape[1] :].tolist()
        own = own[: own.index(2)] if 2 in own else own
        expected = backbone.prompts.parse_answer(own)
        assert (said[place].keywords, said[place].category) == expected


def test_what_the_states_depend_on(folder: Path, items: list[Item]) -> None:
    backbone = load(folder)
    before = states_of(backbone, items)
    retitled = [replace(i, title=f"Quite another {i.title}", brand="Nobody") for i in items]
    after = states_of(backbone, retitled)
    assert close(before["visual"], after["visual"])
    assert differ(before["text"], after["text"])
    relabelled = [replace(i, category="Unlike", keywords=("new", "words")) for i in items]
    for states in (
        states_of(backbone, items, answers=True),
        states_of(backbone, relabelled, answers=True),
    ):
        assert close(before["visual"], states["visual"])
        assert close(before["text"], states["text"])
    bare = states_of(backbone, [replace(i, image=None) for i in items])
    shown = torch.tensor([i.image is not None for i in items])
    for name, states in before.items():
        assert differ(states[shown], bare[name][shown])
        assert close(states[~shown], bare[name][~shown])


def test_padding_batches_and_order(folder: Path, items: list[Item]) -> None:
    backbone = load(folder)
    uneven = [replace(i, title=i.title * (1 + k % 4)) for k, i in enumerate(items)]
    right, left = states_of(backbone, uneven), states_of(backbone, uneven, left=True)
    backwards = list(range(len(items)))[::-1]
    shuffled = states_of(backbone, uneven, backwards)
    few = encode_states(backbone, backbone.inputs(uneven, CPU), "knowledge", batch=3)
    for name, states in right.items():
        assert close(states, left[name]), name
        assert close(states[backwards], shuffled[name]), name
        assert close(states, few[name]), name
    inputs = backbone.inputs(uneven, CPU)
    rows = torch.arange(8)
    together = backbone.predict(inputs, rows, max_new_tokens=4)
    alone = [backbone.predict(inputs, row[None], max_new_tokens=4)[0] for row in rows]
    assert together == alone


def test_train_save_load_encode(folder: Path, items: list[Item], tmp_path: Path) -> None:
    backbone = load(folder)
    before = {n: t.detach().clone() for n, t in backbone.state_dict().items()}
    inputs = backbone.inputs(items, CPU)
    settings = KnowledgeSettings(LOOP, batch_size=8)
    parameters = trained_parameters(backbone, settings)
    train_knowledge(backbone, inputs, settings, tmp_path / "c", 0)
    ids = {id(p) for p in parameters.values()}
    owned = {n for n, p in backbone.named_parameters() if id(p) in ids}
    changed = {n for n, t in backbone.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == owned
    assert any("no_image" in n for n in owned)
    again = load(folder)
    with torch.no_grad():
        for name, parameter in again.tower_parameters("knowledge").items():
            parameter.copy_(parameters[name])
    left, right = (encode_states(b, b.inputs(items, CPU), "knowledge") for b in (backbone, again))
    assert all(torch.equal(left[n], right[n]) for n in left)


def test_features_are_read_from_disk(folder: Path, items: list[Item], tmp_path: Path) -> None:
    settings = settings_of(folder)
    first = load_backbone(settings, items, tmp_path).eval()
    assert isinstance(first, NativeBackbone)
    wanted = encode_states(first, first.inputs(items, CPU), "knowledge")
    second = load_backbone(settings, items, tmp_path).eval()
    second.load_state_dict(first.state_dict())
    assert isinstance(second, NativeBackbone)
    second.image_processor = None  # type: ignore[assignment]  # nothing is read any more
    found = encode_states(second, second.inputs(items, CPU), "knowledge")
    assert all(torch.equal(wanted[n], found[n]) for n in wanted)


def test_what_is_refused(folder: Path, items: list[Item]) -> None:
    with pytest.raises(InputError, match="gist_mask is for composed"):
        settings_of(folder, gist_mask=True)
    backbone = load(folder)
    with pytest.raises(InputError, match="train_base is for composed"):
        trained_parameters(backbone, KnowledgeSettings(LOOP, train_base=True))


def test_not_an_image_text_model(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded as an image-text-to-text model"):
        load_native(settings_of(checkpoint / "language_model"))
