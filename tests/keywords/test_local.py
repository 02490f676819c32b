"""The annotator `local` with a very small random vision-language model saved on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import keywords_of, picture, reread, write_shop
from tiny_catalogue import read_lines, write_lines
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from recbole_tpad.backbones.tiny import train_tokenizer
from recbole_tpad.cli import main
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.keywords.annotator import Outcome
from recbole_tpad.keywords.cache import AnswerCache
from recbole_tpad.keywords.local import LoadedModel, LocalAnnotator, LocalSettings, load_model
from recbole_tpad.keywords.prompt import DEFAULT_PROMPT

TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m.content %}"
    "{% if c.type == 'image' %}<image> {% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
WIDTHS = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of a few thousand random parameters with its processor."""
    tokenizer = train_tokenizer([DEFAULT_PROMPT, "red, round, mug " * 5], 400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(4)
    config = LlavaConfig(
        text_config={
            **WIDTHS,
            "model_type": "llama",
            "num_hidden_layers": 1,
            "num_key_value_heads": 1,
            "vocab_size": len(tokenizer),
            "initializer_range": 1.0,
        },
        vision_config={
            **WIDTHS,
            "model_type": "clip_vision_model",
            "num_hidden_layers": 2,
            "image_size": 16,
            "patch_size": 4,
            "projection_dim": 16,
            "initializer_range": 1.0,
        },
        image_token_index=image_id,
        image_token_id=image_id,
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    folder = tmp_path_factory.mktemp("model") / "tiny-vl"
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


class Spoken:
    """The loaded model's parts, with what it is shown noted and what it says replaced.

    A random model says nothing; this one names the colour that arrives in `pixel_values`.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._processor = loaded.processor
        self.tokenizer = loaded.processor.tokenizer
        self.chat_template = loaded.processor.chat_template
        self.batches: list[int] = []
        self.texts: list[str] = []

    def apply_chat_template(self, *arguments: Any, **more: Any) -> Any:
        return self._processor.apply_chat_template(*arguments, **more)

    def __call__(self, *, images: Any, text: list[str], **more: Any) -> Any:
        self.batches.append(len(text))
        self.texts += text
        self._seen = [image[0].getpixel((0, 0)) for image in images]
        return self._processor(images=images, text=text, **more)

    def batch_decode(self, ids: torch.Tensor, **_: Any) -> list[str]:
        assert len(ids) == len(self._seen)
        numbers = [red + 256 * green for red, green, _ in self._seen]
        return [
            "I cannot say" if n == 3 else f"Here: {json.dumps({'keywords': keywords_of(n)})}"
            for n in numbers
        ]


class Heard(Spoken):
    """Notes what the model really generates."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        self.said: list[str] = []

    def batch_decode(self, ids: torch.Tensor, **more: Any) -> list[str]:
        texts = self._processor.batch_decode(ids, skip_special_tokens=False)
        self.said += [text.partition(self.tokenizer.eos_token)[0] for text in texts]
        return super().batch_decode(ids, **more)


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> LoadedModel:
    return load_model(LocalSettings(str(model_folder), device="cpu"))


def ask(shop: DatasetFolder, loaded: LoadedModel, batch_size: int = 5) -> tuple[Outcome, Spoken]:
    spoken = Spoken(loaded)
    settings = LocalSettings("tiny-vl", batch_size=batch_size, max_tokens=4)
    with AnswerCache(shop.path / "keywords") as cache:
        model = LoadedModel(loaded.model, spoken, loaded.identity)
        return LocalAnnotator(shop.path, cache, model, settings).annotate(
            reread(shop).items
        ), spoken


def test_batches_every_picture_once(tmp_path: Path, loaded: LoadedModel) -> None:
    shop = write_shop(tmp_path)
    outcome, spoken = ask(shop, loaded)
    assert spoken.batches == [5, 5, 2]
    found = {a.item_id: a for a in outcome.answers}
    assert found.pop("i03").status == "malformed"
    assert {i: a.keywords for i, a in found.items()} == {
        f"i{k:02d}": tuple(keywords_of(k)) for k in range(12) if k != 3
    }
    assert "USER: <image> You label products" in spoken.texts[0]
    assert spoken.texts[0].endswith("ASSISTANT:")
    records = read_lines(shop.path / "keywords" / "answers.jsonl")
    assert {(r["annotator"], r["model"], r["version"]) for r in records} == {
        ("local", "tiny-vl", loaded.identity["version"])
    }


def test_a_second_run_shows_only_what_is_new(tmp_path: Path, loaded: LoadedModel) -> None:
    shop = write_shop(tmp_path)
    ask(shop, loaded)
    (shop.path / "images" / "i05.png").write_bytes(picture(40))
    images = read_lines(shop.path / "images.jsonl")
    images[7] |= {"status": "missing", "file": None}
    write_lines(shop.path / "images.jsonl", images)
    outcome, spoken = ask(shop, loaded)
    assert spoken.batches == [2]  # the changed picture, and the one without a usable answer
    found = {a.item_id: a for a in outcome.answers}
    assert found["i05"].keywords == tuple(keywords_of(40))
    assert found["i07"].status == "no image"
    assert len(found) == 12
    assert outcome.usage is not None
    assert (outcome.usage.asked, outcome.usage.reused) == (2, 9)


def test_what_is_generated_does_not_depend_on_the_batch(
    tmp_path: Path, loaded: LoadedModel
) -> None:
    shop = write_shop(tmp_path)
    said = {}
    for batch_size in (1, 5):
        heard = Heard(loaded)
        model = LoadedModel(loaded.model, heard, loaded.identity)
        settings = LocalSettings("tiny-vl", batch_size=batch_size, max_tokens=4)
        with AnswerCache(tmp_path / f"cache{batch_size}") as cache:
            LocalAnnotator(shop.path, cache, model, settings).annotate(shop.items)
        said[batch_size] = heard.said
    assert len(said[1]) == 12
    assert said[1] == said[5]
    assert len(set(said[1])) > 1  # the picture or the title has a say


def test_identity_follows_the_weights(model_folder: Path, tmp_path: Path) -> None:
    import shutil

    copied = tmp_path / "tiny-vl"
    shutil.copytree(model_folder, copied)
    settings = LocalSettings(str(copied), device="cpu")
    same = load_model(settings).identity
    assert same == load_model(LocalSettings(str(model_folder), device="cpu")).identity
    config = json.loads((copied / "generation_config.json").read_text())
    (copied / "generation_config.json").write_text(json.dumps({**config, "num_beams": 1}))
    assert load_model(settings).identity != same


def test_the_command(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shop(tmp_path)
    base = ["keywords", "--dataset", "shop", "--data_path", str(tmp_path), "--annotator", "local"]
    # Random weights: it runs to its end, and what they say is no list of English keywords.
    assert main([*base, "--model", str(model_folder), "--max_tokens", "3", "--limit", "4"]) == 2
    said = capsys.readouterr().err
    assert "No item got keywords" in said
    assert "malformed" in said
    assert main([*base, "--model", str(tmp_path / "absent")]) == 2
    assert "cannot be loaded as an image-text-to-text model" in capsys.readouterr().err
    assert main([*base, "--model", str(model_folder), "--device", "cuda:99"]) == 2
    assert "check --device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings", [{"model": ""}, {"batch_size": 0}, {"max_tokens": 0}, {"dtype": "int8"}]
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        LocalSettings(**{"model": "m", **settings})
