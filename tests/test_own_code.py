"""A generator and a recommender of the user's own: one Python file and one YAML file each."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset_converters.sequences import convert_sequences
from recbole_tpad.bridge.runner import evaluate_saved_run, run
from recbole_tpad.errors import InputError
from recbole_tpad.evaluation import evaluate
from recbole_tpad.generators.embed import embed
from recbole_tpad.generators.registry import make_generator
from recbole_tpad.store import open_store

ROOT = Path(__file__).resolve().parents[1]
GENERATOR = """
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
from recbole_tpad.generators.base import Encoded

@dataclass(frozen=True)
class Settings:
    size: int = 4

class Numbers:
    def __init__(self, settings: Settings) -> None:
        self.size = settings.size

    def fingerprint(self, dataset):
        return {"size": str(self.size)}

    def generate(self, dataset, work, record):
        rows = np.arange(len(dataset.item_ids) * self.size, dtype=np.float32) + 1
        rows = rows.reshape(-1, self.size)
        return Encoded({"text": rows}, "other", False, {"size": str(self.size)})
"""
MODEL = """
import torch
from recbole.model.abstract_recommender import SequentialRecommender

class Mean(SequentialRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.scale = config["scale"]
        self.items = torch.nn.Embedding(self.n_items, config["embedding_size"], padding_idx=0)

    def full_sort_predict(self, interaction):
        return self.scale * self.items(interaction[self.ITEM_SEQ]).sum(1) @ self.items.weight.t()

    def calculate_loss(self, interaction):
        scores = self.full_sort_predict(interaction)
        return torch.nn.functional.cross_entropy(scores, interaction[self.ITEM_ID])
"""
KEYS = {"epochs": 2, "train_batch_size": 32, "show_progress": False}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A data path with the data set ``shop``; the user's files lie in ``mine``."""
    rng = random.Random(1)
    records = {f"I{k:02d}": {"title": f"mug {k}", "categories": "Home,Mugs"} for k in range(24)}
    sequences = {f"U{k}": rng.choices(list(records), k=rng.randint(3, 9)) for k in range(80)}
    (tmp_path / "items.json").write_text(json.dumps(records))
    (tmp_path / "sequences.json").write_text(json.dumps(sequences))
    convert_sequences("shop", tmp_path / "sequences.json", tmp_path / "items.json", tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "numbers.py").write_text(GENERATOR)
    (mine / "numbers.yaml").write_text("generator: numbers.py\nsize: 3\n")
    (mine / "mean.py").write_text(MODEL)
    (mine / "mean.yaml").write_text("scale: 0.5\nloss_type: CE\nembedding_size: 8\n")
    return tmp_path


def test_a_generator(shop: Path) -> None:
    file = shop / "mine" / "numbers.yaml"
    store = embed(shop, "shop", str(file))
    assert store.path.name == "numbers"
    assert store.manifest.modalities == {"text": 3}
    wanted = np.arange(store.manifest.items * 3).reshape(-1, 3) + 1
    assert np.array_equal(np.asarray(store.array("text")), wanted)
    kept = (store.path / "manifest.json").stat().st_mtime_ns
    embed(shop, "shop", str(file))  # nothing changed: the store stays
    assert (store.path / "manifest.json").stat().st_mtime_ns == kept
    code = file.with_suffix(".py")
    code.write_text(GENERATOR.replace("+ 1", "+ 2"))  # other code makes other vectors
    embed(shop, "shop", str(file))
    assert np.array_equal(np.asarray(open_store(store.path).array("text")), wanted + 1)
    with pytest.raises(InputError, match=r"unknown key 'sise'. Did you mean 'size'"):
        embed(shop, "shop", str(file), overrides={"sise": 3})


@pytest.mark.parametrize(
    ("code", "yaml", "message"),
    [
        ("", "generator: numbers.py", r"numbers\.py must define one generator\. There is none"),
        ("x = 1\nx = 1 / 0\n", "generator: numbers.py", r"numbers\.py line 2: ZeroDivisionError"),
        ("def f(:\n", "generator: numbers.py", r"numbers\.py is not Python.*line 1"),
        (GENERATOR, "generator: absent.py", r"Cannot read .*absent\.py"),
        (GENERATOR, "generator: numbers.py:Absent", r"no generator 'Absent'. Those there: Numbers"),
        (
            GENERATOR + "\nclass Other(Numbers): pass",
            "generator: numbers.py",
            r"numbers\.py:Numbers",
        ),
        (GENERATOR.replace(": Settings)", ")"), "generator: numbers.py", "a dataclass of settings"),
    ],
)
def test_bad_generators(shop: Path, code: str, yaml: str, message: str) -> None:
    (shop / "mine" / "numbers.py").write_text(code)
    (shop / "mine" / "numbers.yaml").write_text(yaml)
    with pytest.raises(InputError, match=message):
        make_generator(str(shop / "mine" / "numbers.yaml"))


def test_a_value_never_names_code(shop: Path) -> None:
    """Only the user's own YAML file does: presets, and values on top, do not."""
    code = shop / "mine" / "bad.py"
    code.write_text("raise SystemExit('ran')")
    for preset in ("random", str(shop / "mine" / "numbers.yaml")):
        with pytest.raises(InputError, match="the key 'generator' is"):
            make_generator(preset, {"generator": str(code)})


def test_a_recommender(shop: Path) -> None:
    file = str(shop / "mine" / "mean.py")
    keys = {"model": file, "dataset": "shop", "data_path": str(shop), **KEYS}
    keys |= {"checkpoint_dir": str(shop / "saved")}
    result = run(keys, saved=True)
    assert result.model == "Mean"
    assert result.checkpoint is not None
    again = evaluate_saved_run(result.checkpoint, {"model": file})
    assert again.metrics == result.metrics
    with pytest.raises(InputError, match=r"holds a model from the file .*mean\.py:Mean\. Name"):
        evaluate_saved_run(result.checkpoint)
    with pytest.raises(InputError, match="holds the model Mean, not SASRec"):
        evaluate_saved_run(result.checkpoint, {"model": "SASRec"})
    # Its YAML is a layer below the user's keys, and its keys are known ones.
    half = run({**keys, "scale": 0.5})
    other = run({**keys, "scale": 3.0})
    assert half.metrics == result.metrics
    assert other.curve != result.curve
    with pytest.raises(InputError, match=r"key 'skale'\. Did you mean 'scale'"):
        run({**keys, "skale": 1})


@pytest.mark.slow
def test_a_recommender_with_item_embeddings_in_a_suite(shop: Path) -> None:
    embed(shop, "shop", str(shop / "mine" / "numbers.yaml"))
    file = shop / "mine" / "mean.py"
    suite: dict[str, Any] = {"models": [str(file)], "item_embeddings": ["none", "numbers"]}
    suite |= {"config": KEYS, "seeds": 1}

    def rows() -> tuple[list[dict[str, Any]], str]:
        lines: list[str] = []
        path = evaluate(shop, "shop", suite, progress=lines.append)
        return json.loads(path.read_text())["rows"], "\n".join(lines)

    first, _ = rows()
    assert [row["error"] for row in first] == [None, None]
    assert first[1]["parameters"] != first[0]["parameters"]
    same, said = rows()
    assert "2 of 2 runs are already done" in said
    assert same == first
    file.with_suffix(".yaml").write_text(
        "scale: 3.0\nloss_type: CE\nembedding_size: 8\n"
    )  # another preset: both run again
    other, said = rows()
    assert "already done" not in said
    assert [r["curve"] for r in other] != [r["curve"] for r in first]
    with pytest.raises(InputError, match=r"Cannot read .*absent\.py"):
        evaluate(shop, "shop", {**suite, "models": ["absent.py"]})


def test_both_from_the_command_line(shop: Path) -> None:
    where = ["--dataset", "shop", "--data_path", "."]
    for command in (
        ["embed", "--generator", "mine/numbers.yaml", "--size=5"],
        ["run", "--model", "mine/mean.py", "--item_embeddings", "numbers", "--epochs=1"],
    ):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "recbole_tpad", *command, *where],
            cwd=shop,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "Mean + numbers: " in done.stdout
