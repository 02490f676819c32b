"""The encoder backbone against transformers' own forward pass; towers, caches, heads, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_encoder import VISION_WIDTH, WIDTH, write_image_encoder, write_text_encoder
from tiny_catalogue import WITHOUT_IMAGE, write_catalogue
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    CLIPImageProcessorPil,
    CLIPVisionModel,
)

from recbole_tpad.backbones.checkpoints import checkpoint_files
from recbole_tpad.backbones.encoder import EncoderBackbone
from recbole_tpad.backbones.images import read_image
from recbole_tpad.backbones.loading import load_backbone
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.data import DatasetFolder, Item
from recbole_tpad.errors import InputError
from recbole_tpad.stages.alignment import AlignmentSettings, train_alignment
from recbole_tpad.stages.loop import LoopSettings

CPU = torch.device("cpu")
Make = Callable[..., EncoderBackbone]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    return write_catalogue(tmp_path_factory.mktemp("data"), n_items=24)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    words = " ".join(f"{i.title} {i.brand}" for i in dataset.items).lower().split()
    write_text_encoder(folder / "text", words)
    write_image_encoder(folder / "image")
    return folder


@pytest.fixture
def make(encoders: Path, dataset: DatasetFolder) -> Make:
    def made(*, image: bool = False, **settings: Any) -> EncoderBackbone:
        torch.manual_seed(3)
        backbone = load_backbone(
            BackboneSettings(
                kind="encoder",
                text_encoder=str(encoders / "text"),
                image_encoder=str(encoders / "image") if image else "",
                **settings,
            ),
            dataset.items,
        )
        assert isinstance(backbone, EncoderBackbone)
        return backbone.eval()

    return made


def rows(dataset: DatasetFolder) -> torch.Tensor:
    return torch.arange(len(dataset.items))


def states(backbone: EncoderBackbone, items: list[Item], *, frozen: bool) -> torch.Tensor:
    inputs = backbone.inputs(items, CPU)
    if frozen:
        inputs.freeze()
    with torch.no_grad():
        return backbone.encode(inputs.batch(torch.arange(len(items)))).summaries["text"]


def stir(backbone: EncoderBackbone, tower: str) -> None:
    with torch.no_grad():
        for parameter in backbone.tower_parameters(tower).values():
            parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("frozen", [False, True], ids=["computed", "kept"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("top_layers", [1, 2])
def test_an_untrained_tower_is_the_frozen_encoder(
    make: Make,
    encoders: Path,
    dataset: DatasetFolder,
    frozen: bool,
    pooling: str,
    top_layers: int,
) -> None:
    backbone = make(encoder={"pooling": pooling, "top_layers": top_layers})
    found = states(backbone, dataset.items, frozen=frozen)
    model = AutoModel.from_pretrained(encoders / "text").eval()
    tokenizer = AutoTokenizer.from_pretrained(encoders / "text")
    for item, row in zip(dataset.items, found, strict=True):
        one = tokenizer([f"{item.title}, {item.brand}"], return_tensors="pt")
        with torch.no_grad():
            hidden = model(**one).last_hidden_state[0]
        expected = hidden.mean(0) if pooling == "mean" else hidden[0]
        # Kept states are fp16.
        torch.testing.assert_close(row, expected, atol=2e-2 if frozen else 1e-4, rtol=1e-3)


def test_vectors_do_not_depend_on_the_batch(make: Make, dataset: DatasetFolder) -> None:
    backbone = make()
    inputs = backbone.inputs(dataset.items, CPU)
    inputs.freeze()
    for tower in ("knowledge", "transition"):
        stir(backbone, tower)
        backbone.use(tower)
        with torch.no_grad():
            whole = backbone.encode(inputs.batch(rows(dataset))).summaries["text"]
            for chosen in (torch.tensor([7]), torch.tensor([20, 3, 11])):
                part = backbone.encode(inputs.batch(chosen)).summaries["text"]
                torch.testing.assert_close(part, whole[chosen], atol=1e-4, rtol=1e-4)


def test_pooled_tables_follow_their_layers(make: Make, dataset: DatasetFolder) -> None:
    backbone = make()
    inputs = backbone.inputs(dataset.items, CPU)
    inputs.freeze()
    backbone.use("transition")
    with torch.no_grad():
        before = backbone.encode(inputs.batch(rows(dataset))).summaries["text"]
        stir(backbone, "knowledge")
        same = backbone.encode(inputs.batch(rows(dataset))).summaries["text"]
        backbone.copy_tower("knowledge", "transition")
        after = backbone.encode(inputs.batch(rows(dataset))).summaries["text"]
        backbone.use("knowledge")
        knowledge = backbone.encode(inputs.batch(rows(dataset))).summaries["text"]
    assert torch.equal(before, same)
    assert not torch.allclose(before, after, atol=1e-2)
    assert torch.equal(after, knowledge)


@pytest.mark.parametrize(
    ("trained", "expected"),
    [("layers", {"layers"}), ("head", {"heads.text"}), ("both", {"layers", "heads.text"})],
)
def test_what_trains(make: Make, trained: str, expected: set[str]) -> None:
    backbone = make(encoder={"knowledge": trained, "transition": trained})
    for tower, extra in (("knowledge", {"answers"}), ("transition", set())):
        found = set(backbone.trained_parameters(tower))
        assert found <= set(backbone.tower_parameters(tower))
        parts = {"heads.text" if ".heads.text." in n else n.split(".")[1] for n in found}
        assert parts == expected | extra
    named = backbone.trained_parameters("transition")
    with backbone.training_only(named):
        layers = backbone.tower_layers("transition")
        assert layers.training == (trained != "head")
        assert not backbone.text.training
        assert not backbone.tower_layers("knowledge").training


def test_stage_2b_trains_what_stage_1_does_unless_told_otherwise(
    make: Make, dataset: DatasetFolder, tmp_path: Path
) -> None:
    assert set(make().aligned_parameters()) == set(make().trained_parameters("knowledge"))
    backbone = make(encoder={"knowledge": "layers", "alignment": "head"})
    inputs = backbone.inputs(dataset.items, CPU)
    inputs.freeze()
    before = {n: p.clone() for n, p in backbone.tower_parameters("knowledge").items()}
    generator = torch.Generator().manual_seed(0)
    teacher = {"text": torch.randn(len(dataset.items), WIDTH, generator=generator)}
    settings = AlignmentSettings(LoopSettings(3), batch_size=8, projection=8)
    train_alignment(backbone, inputs, teacher, settings, tmp_path / "c", 0)
    after = backbone.tower_parameters("knowledge")
    moved = {n for n, p in after.items() if not torch.equal(p, before[n])}
    assert {n.split(".")[1] for n in moved} == {"heads", "answers"}


def test_gradients_reach_what_trains_and_nothing_else(make: Make, dataset: DatasetFolder) -> None:
    backbone = make(image=True, encoder={"knowledge": "both"})
    inputs = backbone.inputs(dataset.items, CPU)
    inputs.freeze()
    with torch.no_grad():  # past the zero layer, so that the first one gets a gradient
        for name, parameter in backbone.tower_parameters("knowledge").items():
            if ".mlp.2." in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    named = backbone.trained_parameters("knowledge")
    with backbone.training_only(named):
        encoded = backbone.encode(inputs.batch(rows(dataset), answers=True))
        loss = encoded.answer_loss()
        assert loss is not None
        loss.backward()
        touched = {n for n, p in backbone.named_parameters() if p.grad is not None and p.grad.any()}
    ids = {id(p) for p in named.values()}
    expected = {n for n, p in backbone.named_parameters() if id(p) in ids}
    # A shift of all keys alike changes no attention.
    assert expected - touched <= {n for n in expected if n.endswith("key.bias")}
    assert touched <= expected


def test_images(make: Make, encoders: Path, dataset: DatasetFolder) -> None:
    backbone = make(image=True)
    assert backbone.widths == {"visual": VISION_WIDTH, "text": WIDTH}
    assert backbone.modalities == ("visual", "text")
    inputs = backbone.inputs(dataset.items, CPU)
    with torch.no_grad():
        computed = backbone.encode(inputs.batch(rows(dataset))).summaries["visual"]
        inputs.freeze()
        kept = backbone.encode(inputs.batch(rows(dataset))).summaries["visual"]
        swapped = backbone.encode(
            inputs.batch(rows(dataset), visual_rows=rows(dataset).roll(1))
        ).summaries
    torch.testing.assert_close(computed, kept, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(swapped["visual"], kept.roll(1, 0))
    without = [dataset.item_ids.index(i) for i in WITHOUT_IMAGE]
    assert not kept[without].any()
    seen = inputs.has_image.nonzero().flatten()[:4]
    vision = CLIPVisionModel.from_pretrained(encoders / "image").eval()
    images = [read_image(dataset.items[r].image) for r in seen.tolist()]
    processor = CLIPImageProcessorPil.from_pretrained(encoders / "image")
    with torch.no_grad():
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        expected = vision(pixel_values=pixels).pooler_output
    torch.testing.assert_close(computed[seen], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_unreadable_image_counts_as_absent(
    make: Make, dataset: DatasetFolder, tmp_path: Path, frozen: bool
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    items = [replace(dataset.items[0], image=broken), *dataset.items[1:3]]
    backbone = make(image=True)
    inputs = backbone.inputs(items, CPU)
    if frozen:
        inputs.freeze()
    with torch.no_grad():
        states = backbone.encode(inputs.batch(torch.arange(3))).summaries["visual"]
    assert not states[0].any()
    assert states[1:].any(dim=1).all()
    assert list(inputs.unreadable) == [items[0].item_id]
    assert inputs.has_image.tolist() == [False, True, True]


def test_the_heads_learn_to_answer(make: Make, dataset: DatasetFolder) -> None:
    backbone = make(encoder={"dropout": 0.0})
    inputs = backbone.inputs(dataset.items, CPU)
    inputs.freeze()
    named = backbone.trained_parameters("knowledge")
    optimizer = torch.optim.Adam(named.values(), lr=1e-2)
    with backbone.training_only(named):
        for _ in range(60):
            loss = backbone.encode(inputs.batch(rows(dataset), answers=True)).answer_loss()
            assert loss is not None
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    said = backbone.predict(inputs, rows(dataset))
    assert [p.category for p in said] == [i.category for i in dataset.items]
    right = [set(p.keywords) == set(i.keywords) for p, i in zip(said, dataset.items, strict=True)]
    assert sum(right) > 0.9 * len(right)


def test_the_answer_loss_by_hand(make: Make, dataset: DatasetFolder) -> None:
    backbone = make()
    items = list(dataset.items)
    items[0] = replace(items[0], category="", keywords=())
    items[1] = replace(items[1], keywords=())
    items[2] = replace(items[2], category="")
    inputs = EncoderBackbone.inputs(backbone, items, CPU)
    backbone.labels = type(backbone.labels)(items)
    chosen = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        encoded = backbone.encode(inputs.batch(chosen, answers=True))
        found = encoded.answer_loss()
        heads = backbone.towers["knowledge"].answers
        state = torch.nn.functional.layer_norm(encoded.summaries["text"], (WIDTH,))
        category, keyword = heads.category(state).log_softmax(1), heads.keyword(state).sigmoid()
    assert encoded.answer_tokens == 3
    names = backbone.labels.category_names
    expected = -sum(float(category[r, names.index(items[r].category)]) for r in (1, 3)) / 2
    for r in (2, 3):
        for k, name in enumerate(backbone.labels.keyword_names):
            chance = float(keyword[r, k])
            said = chance if name in items[r].keywords else 1 - chance
            expected -= float(torch.tensor(said).log()) / 2
    assert found is not None
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_without_answers_there_is_no_loss(make: Make, dataset: DatasetFolder) -> None:
    backbone = make()
    items = [replace(i, category="", keywords=()) for i in dataset.items]
    inputs = backbone.inputs(items, CPU)
    assert backbone.encode(inputs.batch(torch.tensor([0, 1]), answers=True)).answer_loss() is None
    assert backbone.encode(inputs.batch(torch.tensor([0, 1]))).answer_loss() is None
    assert not inputs.has_answer.any()


def test_long_and_odd_texts(make: Make, dataset: DatasetFolder) -> None:
    odd = ["", "rustic " * 200, "[SEP] [CLS] mug", "赤い 急須"]
    items = [replace(dataset.items[0], title=t, brand="") for t in odd]
    backbone = make(max_text_tokens=12)
    inputs = backbone.inputs(items, CPU)
    assert inputs.lengths().max() == 12
    assert inputs.lengths().min() >= 2
    kept = states(backbone, items, frozen=True)
    assert torch.isfinite(kept).all()
    tokenizer = backbone.tokenizer
    # A title that spells a control token is text.
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    tokens = inputs._tokens[inputs._starts[2] : inputs._starts[2] + inputs._lengths[2]].tolist()
    assert sum(t in special for t in tokens) == 2


def test_the_text_may_have_a_prefix(make: Make, dataset: DatasetFolder) -> None:
    plain = states(make(), dataset.items, frozen=False)
    prefixed = make(prompt={"item_text": "modern: {title}, {brand}"})
    items = [replace(i, title=f"modern: {i.title}") for i in dataset.items]
    torch.testing.assert_close(
        states(prefixed, dataset.items, frozen=False), states(make(), items, frozen=False)
    )
    assert not torch.allclose(states(prefixed, dataset.items, frozen=False), plain, atol=1e-2)


def test_the_files_it_depends_on(encoders: Path) -> None:
    text = BackboneSettings(kind="encoder", text_encoder=str(encoders / "text"))
    both = replace(text, image_encoder=str(encoders / "image"))
    assert {n.split("/")[0] for n in checkpoint_files(text)} == {"text_encoder"}
    assert {n.split("/")[0] for n in checkpoint_files(both)} == {"text_encoder", "image_encoder"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": {"top_layers": 3}}, "has 3 layers; at least one stays below"),
        ({"encoder": {"top_layers": 0}}, "top_layers must be at least 1"),
        ({"encoder": {"pooling": "max"}}, "unknown pooling 'max'"),
        ({"encoder": {"knowledge": "heads"}}, "Did you mean 'head'"),
        ({"encoder": {"alignment": "layer"}}, "unknown alignment 'layer'. Did you mean 'layers'"),
        ({"encoder": {"dropout": 1.0}}, "dropout"),
        ({"encoder": {"poling": "cls"}}, "Did you mean 'pooling'"),
        ({"prompt": {"item_text": "{category}"}}, "The category is an answer"),
    ],
)
def test_bad_settings(make: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**settings)


def test_bad_checkpoints(
    encoders: Path, checkpoint: Path, dataset: DatasetFolder, tmp_path: Path
) -> None:
    def load(**changes: Any) -> None:
        settings = BackboneSettings(kind="encoder", text_encoder=str(encoders / "text"))
        load_backbone(replace(settings, **changes), dataset.items)

    with pytest.raises(InputError, match="needs text_encoder"):
        load(text_encoder="")
    with pytest.raises(InputError, match="neither a local folder"):
        load(text_encoder="no/such-model-anywhere-at-all")
    with pytest.raises(InputError, match="not a BERT-class encoder"):
        load(text_encoder=str(checkpoint / "language_model"))
    with pytest.raises(InputError, match="its model_type is 'bert'"):
        load(image_encoder=str(encoders / "text"))
    (tmp_path / "empty").mkdir()
    BertConfig().save_pretrained(tmp_path / "empty")
    with pytest.raises(InputError, match="cannot be loaded as a text encoder"):
        load(text_encoder=str(tmp_path / "empty"))
