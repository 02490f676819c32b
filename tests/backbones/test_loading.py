"""Loading parts in Hugging Face format: the published layout, and refusals."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from tiny_catalogue import load_backbone
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Model,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
)

from recbole_tpad.backbones import checkpoints
from recbole_tpad.backbones.checkpoints import resolve
from recbole_tpad.backbones.loading import load_composed
from recbole_tpad.backbones.prompts import PromptTemplate
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.backbones.tiny import TinySettings
from recbole_tpad.backbones.vision_loading import load_vision
from recbole_tpad.errors import InputError

WIDTH, QUERIES, EDGE = 24, 5, 16


def blip2_config(*, text_input: bool) -> Blip2Config:
    vision = Blip2VisionConfig(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=EDGE,
        patch_size=8,
        initializer_range=0.2,
    )
    qformer = Blip2QFormerConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        encoder_hidden_size=32,
        cross_attention_frequency=2,
        initializer_range=0.2,
        use_qformer_text_input=text_input,
    )
    text = OPTConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=32,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
    )
    config = Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text.to_dict(),
    )
    config.num_query_tokens = QUERIES
    return config


@pytest.mark.parametrize(
    ("architecture", "text_input"),
    [
        (Blip2Model, False),
        (Blip2ForConditionalGeneration, False),
        (Blip2ForImageTextRetrieval, True),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_the_published_layout(architecture: type, text_input: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = architecture(blip2_config(text_input=text_input)).eval()
    inner = model if hasattr(model, "qformer") else model.model
    with torch.no_grad():
        inner.query_tokens.normal_()
    model.save_pretrained(tmp_path / "blip2")
    vision = load_vision(tmp_path / "blip2").eval()
    assert vision.shape == (QUERIES, WIDTH)
    pixels = torch.randn(3, 3, EDGE, EDGE)
    with torch.no_grad():
        patches = inner.vision_model(pixel_values=pixels).last_hidden_state
        expected = inner.qformer(
            query_embeds=inner.query_tokens.expand(3, -1, -1),
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long),
        ).last_hidden_state
        found = vision(pixels)
    assert found.std() > 0.1
    assert torch.allclose(found, expected, atol=1e-5)


def test_saved_parts_come_back(checkpoint: Path) -> None:
    first, second = (load_backbone(checkpoint) for _ in range(2))
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_standardising_gives_patches_unit_spread(checkpoint: Path) -> None:
    vision = load_backbone(checkpoint).vision
    pixels = [torch.randn(4, 3, EDGE, EDGE) * 0.01 + 0.5 for _ in range(2)]
    vision.standardise(pixels)
    with torch.no_grad():
        patches = vision.vit(pixel_values=torch.cat(pixels)).last_hidden_state.flatten(0, 1)
    scaled = (patches - vision.mean) * vision.scale
    assert torch.allclose(scaled.mean(0), torch.zeros(scaled.shape[1]), atol=1e-4)
    assert torch.allclose(scaled.std(0), torch.ones(scaled.shape[1]), atol=1e-4)


def test_pickled_checkpoints_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "pickled")
    for part in ("vision", "language_model"):
        (folder / part / "model.safetensors").unlink()
        torch.save({}, folder / part / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"vision has no \.safetensors file"):
        load_vision(folder / "vision")
    shutil.copy(checkpoint / "vision" / "model.safetensors", folder / "vision")
    with pytest.raises(InputError, match=r"language_model has no .* \(only pytorch_model\.bin\)"):
        load_backbone(folder)


def test_absent_checkpoints_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("nobody/no-such-model", "no such/folder at all/anywhere"):
        with pytest.raises(InputError, match=f"'{name}' is neither a local folder"):
            resolve(name, None)


def test_not_blip2(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        load_vision(tmp_path)
    with pytest.raises(InputError, match=r"language_model.*model_type is .llama."):
        load_vision(checkpoint / "language_model")
    folder = shutil.copytree(checkpoint / "vision", tmp_path / "vision")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"lacks .* tensors of BLIP-2's vision_model"):
        load_vision(folder)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rnk": 4}, "Did you mean 'rank'"),
        ({"rank": "four"}, "rank must be of type int"),
        ({"target_modules": ["no_such"]}, "no_such"),
        ({"rank": 0}, "rank"),
    ],
)
def test_bad_lora_settings(checkpoint: Path, lora: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_backbone(checkpoint, lora=lora)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "composd"}, "Did you mean 'composed'"),
        ({"dtype": "float23"}, "Did you mean 'float32'"),
        ({"readout": "after"}, "Known: at, before"),
        ({"max_text_tokens": 0}, "max_text_tokens must be at least 1"),
    ],
)
def test_bad_choices(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BackboneSettings(**settings)


def test_bad_prompt_parts(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'before_text'"):
        load_composed(
            BackboneSettings(
                vision=str(checkpoint / "vision"),
                language_model=str(checkpoint / "language_model"),
                prompt={"befor_text": PromptTemplate().before_text},
            )
        )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 0}, "layers must be at least 1"),
        ({"vocabulary": 100}, "vocabulary must be at least 259"),
        ({"word_dim": 30}, "word_dim must be a multiple of 8"),
        ({"vision_dim": 18}, "vision_dim must be a multiple of 4"),
        ({"image_size": 4}, "image_size must be at least 8"),
    ],
)
def test_impossible_sizes(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TinySettings(**sizes)


class HubAnswers(http.server.BaseHTTPRequestHandler):
    """A hub on which models are gated, absent, or lack a revision, by their owner's name."""

    def do_GET(self) -> None:
        owner = self.path.removeprefix("/api/models/").partition("/")[0]
        status, code = {
            "gated": (403, "GatedRepo"),
            "known": (404, "RevisionNotFound"),
        }.get(owner, (404, "RepoNotFound"))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None: ...


def test_the_hubs_refusals_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubAnswers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    fetch = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        checkpoints,
        "snapshot_download",
        lambda name, **options: fetch(name, endpoint=address, cache_dir=tmp_path, **options),
    )
    try:
        for name, message in (
            ("gated/model", "it is gated. Accept its conditions"),
            ("nobody/model", "there is no such model, or it is private"),
            ("known/model", "it has no revision 'v9'"),
        ):
            with pytest.raises(InputError, match=f"'{name}' is neither .*{message}"):
                resolve(name, "v9")
    finally:
        server.shutdown()


def test_a_cached_hub_id_works_offline_and_pins_its_revision(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    for part in ("vision", "language_model"):
        repository = tmp_path / f"models--shop--{part}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        shutil.copytree(checkpoint / part, repository / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fetch = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        checkpoints,
        "snapshot_download",
        lambda name, **options: fetch(name, cache_dir=tmp_path, **options),
    )
    settings = BackboneSettings(vision="shop/vision", language_model="shop/language_model")
    assert checkpoints.revisions(settings) == {
        "revision of shop/vision": commit,
        "revision of shop/language_model": commit,
    }
    load_composed(settings)
    assert (
        checkpoints.revisions(
            BackboneSettings(
                vision=str(checkpoint / "vision"), language_model=str(checkpoint / "language_model")
            )
        )
        == {}
    )
