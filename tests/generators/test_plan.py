"""`embed --dry-run`: what a run would take, with nothing written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_tpad import NAME, SMALL, paths
from tiny_catalogue import write_catalogue
from tiny_native import write_native

from recbole_tpad.cli import main
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.generators import encoding_plan
from recbole_tpad.generators.embed import plan_embedding
from recbole_tpad.generators.registry import merge


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


def test_the_command(folder: DatasetFolder, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["embed", "--dataset", NAME, "--data_path", str(folder.path.parent)]
    arguments += ["--generator", "tpad-tiny", "--dry-run"]
    arguments += [f"--backbone.tiny.{k}={v}" for k, v in SMALL["backbone"]["tiny"].items()]
    assert main(arguments) == 0
    assert "Parameters: vision " in capsys.readouterr().out
    assert not (folder.path / "stages").exists()
