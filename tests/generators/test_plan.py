"""`embed --dry-run`: what a run would take, with nothing written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from small_encoder import write_image_encoder, write_text_encoder
from small_tpad import NAME, SMALL, paths
from tiny_catalogue import write_catalogue
from tiny_native import write_native

from recbole_tpad.backbones.encoder_loading import empty_encoder, load_encoder
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.cli import main
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.generators import encoding_plan
from recbole_tpad.generators.embed import plan_embedding
from recbole_tpad.generators.encoder_plan import encoder_plan
from recbole_tpad.generators.registry import merge
from recbole_tpad.generators.tpad_plan import PlannedStages
from recbole_tpad.stages.alignment import AlignmentSettings
from recbole_tpad.stages.knowledge import KnowledgeSettings
from recbole_tpad.stages.loop import LoopSettings
from recbole_tpad.stages.transition import TransitionSettings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetFolder:
    monkeypatch.setattr(encoding_plan, "MATRIX", 64)
    monkeypatch.setattr(encoding_plan, "MATRIX_SECONDS", 0.0)
    return write_catalogue(tmp_path)


def test_the_plan_of_the_tiny_preset(folder: DatasetFolder) -> None:
    before = paths(folder.path)
    lines = plan_embedding(folder.path.parent, NAME, "tpad-tiny", overrides=SMALL)
    assert paths(folder.path) == before
    text = "\n".join(lines)
    for expected in (
        "Items: 24, 22 with an image, 24 with an answer",
        "Parameters: vision ",
        "Weights: 0.00 GB (float32)",
        "Steps: knowledge 3 x 8 items, transition 3 x 12 pairs, alignment 3 x 8 items",
        "Expected time on ",
        " in all",
    ):
        assert expected in text
    assert "FSDP" not in text  # train_base: nothing is frozen
    frozen = merge(SMALL, {"knowledge": {"train_base": False}})
    text = "\n".join(plan_embedding(folder.path.parent, NAME, "tpad-tiny", overrides=frozen))
    assert re.search(r"Weights a process with FSDP: 0\.00 GB of 2, 0\.00 GB of 4, ", text)
    alone = merge(SMALL, {"no_alignment": True})
    text = "\n".join(plan_embedding(folder.path.parent, NAME, "tpad-tiny", overrides=alone))
    assert "transition" not in text


def test_chunks_cost_a_forward_pass(folder: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_plan, "matrix_rate", lambda device, dtype: 1e5)

    def hours(chunk: int) -> float:
        changes = merge(SMALL, {"transition": {"chunk": chunk}, "knowledge": {"train_base": False}})
        lines = plan_embedding(folder.path.parent, NAME, "tpad-tiny", overrides=changes)
        return float(re.findall(r"transition ([\d.]+) h", lines[-1])[0])

    # Frozen weights: two operations a weight forward, two for the gradients through it.
    assert hours(4) / hours(0) == pytest.approx(1.5, rel=0.1)


def test_native_and_plain_generators(folder: DatasetFolder, tmp_path: Path) -> None:
    model = write_native(tmp_path / "model", "qwen2_vl", folder.items)
    changes = {"backbone": {"kind": "native", "model": str(model)}}
    lines = plan_embedding(folder.path.parent, NAME, "tpad", overrides=changes)
    assert any("Parameters: base " in line for line in lines)
    assert "not estimated" in lines[-1]
    with pytest.raises(InputError, match="'tfidf' has no plan"):
        plan_embedding(folder.path.parent, NAME, "tfidf")


@pytest.mark.parametrize("images", [False, True])
def test_an_encoder(folder: DatasetFolder, tmp_path: Path, images: bool) -> None:
    words = " ".join(f"{i.title} {i.brand}" for i in folder.items).lower().split()
    text = write_text_encoder(tmp_path / "text", words)
    backbone: dict[str, object] = {"text_encoder": str(text), "encoder": {"head_width": 8}}
    if images:
        backbone["image_encoder"] = str(write_image_encoder(tmp_path / "image"))
    stages = ("knowledge", "transition", "alignment")
    changes = {"backbone": backbone, **{s: {"loop": {"steps": 5}} for s in stages}}
    before = paths(folder.path)
    lines = plan_embedding(folder.path.parent, NAME, "tpad-small", overrides=changes)
    assert paths(folder.path) == before
    told = "\n".join(lines)
    settings = BackboneSettings(kind="encoder", **backbone)  # type: ignore[arg-type]
    loaded = load_encoder(settings, folder.items)
    for part in (
        f"base {sum(p.numel() for p in loaded.base_parameters().values()):,}",
        f"towers {sum(p.numel() for p in loaded.tower_parameters('knowledge').values()):,}",
        f"trains {sum(p.numel() for p in loaded.trained_parameters('knowledge').values()):,}",
        f"Items: 24, {22 if images else 0} with an image that is read, 24 with an answer",
        "Steps: knowledge 5 x 64 items, transition 5 x 256 pairs, alignment 5 x 64 items",
    ):
        assert part in told
    assert ("image features" in lines[-1]) == images
    changes = {"backbone": {"text_encoder": "nowhere"}}
    with pytest.raises(InputError, match="'nowhere' is neither a local folder"):
        plan_embedding(folder.path.parent, NAME, "tpad-small", overrides=changes)


def test_work_of_an_encoder_by_hand(folder: DatasetFolder, tmp_path: Path) -> None:
    text = write_text_encoder(tmp_path / "text", ["thing"])  # three layers, width 24
    encoder = {"head_width": 8, "alignment": "head"}
    settings = BackboneSettings(kind="encoder", text_encoder=str(text), encoder=encoder)
    stages = PlannedStages(
        KnowledgeSettings(LoopSettings(7), batch_size=4),
        TransitionSettings(LoopSettings(5), pairs_per_step=6),
        AlignmentSettings(LoopSettings(3), batch_size=5),
    )
    found = encoder_plan(empty_encoder(settings, folder.items), stages, folder.items, "float32")
    loaded = load_encoder(settings, folder.items)
    lengths = loaded.inputs(folder.items, torch.device("cpu")).lengths().double()
    layer = 4 * 24 * 24 + 2 * 24 * 48
    labels = sum(p.numel() for p in loaded.towers["knowledge"].answers.parameters() if p.dim() > 1)
    head = 24 * 24 + 2 * 24 * 8
    tokens, mean = float(lengths.sum()), float(lengths.mean())
    assert found.work == pytest.approx(
        {
            "frozen layers": 2 * 2 * layer * tokens,
            "knowledge": 7 * 4 * 6 * (layer * mean + labels),
            "transition": 2 * layer * tokens + 5 * 6 * 2 * 6 * head,
            "alignment": 3 * 5 * 6 * (head + labels),
            "encoding": 2 * 2 * layer * tokens,
        }
    )


def test_the_command(folder: DatasetFolder, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["embed", "--dataset", NAME, "--data_path", str(folder.path.parent)]
    arguments += ["--generator", "tpad-tiny", "--dry-run"]
    arguments += [f"--backbone.tiny.{k}={v}" for k, v in SMALL["backbone"]["tiny"].items()]
    assert main(arguments) == 0
    assert "Parameters: vision " in capsys.readouterr().out
    assert not (folder.path / "stages").exists()
