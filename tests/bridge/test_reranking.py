"""Re-ranking a base model's top K: oracle and constant logits, a real model, refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_catalogue import write_catalogue
from tiny_native import write_native

from recbole_tpad.backbones.listwise import LETTERS, ListwiseReader, ListwiseTemplate, letter_tokens
from recbole_tpad.backbones.loading import load_native, load_tokenizer
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.dataset import load_data
from recbole_tpad.bridge.models import build_model
from recbole_tpad.bridge.ranking import metrics_at
from recbole_tpad.bridge.reranking import RerankSettings, rerank_part
from recbole_tpad.bridge.runner import evaluate_saved_run, run
from recbole_tpad.bridge.scoring import rank_part
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.cli import run_command
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError

NATIVE = BackboneSettings(kind="native")
SETTINGS = RerankSettings(NATIVE, top_k=5, images="none")


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    return write_catalogue(tmp_path / "data")


@pytest.fixture
def keys(folder: DatasetFolder, tmp_path: Path) -> dict[str, Any]:
    return {
        "dataset": "shop",
        "data_path": str(folder.path.parent),
        "checkpoint_dir": str(tmp_path / "saved"),
        "model": "CoOccurrence",
    }


def base(keys: dict[str, Any]) -> tuple[Any, Any, Any]:
    with numpy_names():
        config = SessionConfig(None, None, None, keys)
        loaders = load_data(config)
    return config, build_model(config, loaders.train._dataset), loaders.test


def same_ids(test: Any) -> dict[int, int]:
    """RecBole's ids as they are, so that a stand-in scorer sees them."""
    return {k: k for k in range(test._dataset.item_num)}


def test_constant_logits_leave_the_order(keys: dict[str, Any]) -> None:
    config, model, test = base(keys)

    def constant(history: Sequence[int], candidates: Sequence[int]) -> torch.Tensor:
        return torch.full((len(candidates),), 3.0)

    done = rerank_part(model, config, test, constant, same_ids(test), SETTINGS)
    plain = rank_part(model, config, config["device"], test)
    np.testing.assert_array_equal(done.ranking.ranks, plain.ranks)
    np.testing.assert_array_equal(done.base_ranks, plain.ranks)
    np.testing.assert_array_equal(done.ranking.targets, plain.targets)


def test_oracle_logits_reach_the_ceiling(keys: dict[str, Any]) -> None:
    config, model, test = base(keys)
    rows = test._dataset.inter_feat
    lists = rows[f"{test._dataset.iid_field}_list"].numpy()
    targets = rows[test._dataset.iid_field].numpy()
    lengths = rows[test._dataset.item_list_length_field].numpy()
    answers: dict[tuple[int, ...], set[int]] = {}
    for items, length, target in zip(lists, lengths, targets, strict=True):
        answers.setdefault(tuple(items[:length].tolist()[-10:]), set()).add(int(target))
    seen: list[int] = []

    def oracle(history: Sequence[int], candidates: Sequence[int]) -> torch.Tensor:
        seen.append(len(candidates))
        right = answers[tuple(history)]
        return torch.tensor([float(c in right) for c in candidates])

    done = rerank_part(model, config, test, oracle, same_ids(test), SETTINGS)
    plain = rank_part(model, config, config["device"], test)
    assert done.recall_ceiling == pytest.approx((plain.ranks <= 5).mean())
    assert 0.2 < done.recall_ceiling < 1  # neither nothing nor everything to gain
    unambiguous = [
        len(answers[tuple(i[:n].tolist()[-10:])]) == 1 for i, n in zip(lists, lengths, strict=True)
    ]
    inside = plain.ranks <= 5
    assert (done.ranking.ranks[inside & np.array(unambiguous)] == 1).all()
    np.testing.assert_array_equal(done.ranking.ranks[~inside], plain.ranks[~inside])
    found = metrics_at(done.ranking.ranks, (5,))
    assert found["HR@5"] == pytest.approx(done.recall_ceiling)
    assert found["NDCG@5"] >= metrics_at(plain.ranks, (5,))["NDCG@5"]
    assert max(seen) == 5
    assert done.latency_ms > 0


def test_reversed_logits_turn_the_order_round(keys: dict[str, Any]) -> None:
    config, model, test = base(keys)

    def backwards(history: Sequence[int], candidates: Sequence[int]) -> torch.Tensor:
        return torch.arange(len(candidates)).float()

    done = rerank_part(model, config, test, backwards, same_ids(test), SETTINGS)
    inside = done.base_ranks <= 5
    np.testing.assert_array_equal(done.ranking.ranks[inside], 6 - done.base_ranks[inside])


def test_some_sessions_only(keys: dict[str, Any]) -> None:
    config, model, test = base(keys)
    settings = RerankSettings(NATIVE, top_k=5, images="none", sessions=4)

    def constant(history: Sequence[int], candidates: Sequence[int]) -> torch.Tensor:
        return torch.zeros(len(candidates))

    done = rerank_part(model, config, test, constant, same_ids(test), settings)
    plain = rank_part(model, config, config["device"], test)
    assert len(done.ranking.ranks) == 4
    sessions = {int(s): int(r) for s, r in zip(plain.sessions, plain.ranks, strict=True)}
    for session, rank in zip(done.ranking.sessions, done.ranking.ranks, strict=True):
        assert sessions[int(session)] == rank


def test_logits_that_are_nan_are_refused(keys: dict[str, Any]) -> None:
    config, model, test = base(keys)

    def broken(history: Sequence[int], candidates: Sequence[int]) -> torch.Tensor:
        return torch.full((len(candidates),), float("nan"))

    with pytest.raises(InputError, match="logits are NaN"):
        rerank_part(model, config, test, broken, same_ids(test), SETTINGS)


def test_a_real_model_reads_letters(folder: DatasetFolder, tmp_path: Path) -> None:
    model = write_native(tmp_path / "native", "qwen2_vl", folder.items)
    backbone = load_native(BackboneSettings(kind="native", model=str(model), lora={"rank": 2}))

    def reader(images: str) -> ListwiseReader:
        return ListwiseReader(
            backbone.eval(),
            folder.items,
            ListwiseTemplate(),
            max_text_tokens=20,
            images=images,
            device=torch.device("cpu"),
        )

    logits = reader("all")([0, 1], [4, 5, 6])
    assert logits.shape == (3,)
    # By hand, without images: the whole prompt through the model, the letters' rows of its head.
    items, tokenizer = folder.items, backbone.tokenizer
    template = ListwiseTemplate()
    ids = [1, *tokenizer(template.start, add_special_tokens=False)["input_ids"]]

    def add(text: str) -> None:
        ids.extend(tokenizer(text, add_special_tokens=False)["input_ids"])

    for number, row in ((1, 0), (2, 1)):
        add(f"{number}. ")
        add(f"{items[row].title}, {items[row].brand}")
        add("\n")
    add(template.candidates)
    for letter, row in zip("ABC", (4, 5, 6), strict=True):
        add(f"{letter}. ")
        add(f"{items[row].title}, {items[row].brand}")
        add("\n")
    add(template.end)
    with torch.no_grad():
        whole = backbone.model.get_base_model()(torch.tensor([ids])).logits[0, -1]
    letters = letter_tokens(tokenizer, 3)
    torch.testing.assert_close(reader("none")([0, 1], [4, 5, 6]), whole[letters], atol=1e-4, rtol=0)
    # The session matters, and so do images.
    assert not torch.allclose(reader("none")([2, 3], [4, 5, 6]), whole[letters])
    assert not torch.allclose(reader("candidates")([0, 1], [4, 5, 6]), whole[letters])


def test_letters(folder: DatasetFolder, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_native(tmp_path / "n", "qwen2_vl", folder.items))
    tokens = letter_tokens(tokenizer, len(LETTERS))
    assert [tokenizer.decode([t]) for t in tokens] == list(LETTERS)
    with pytest.raises(InputError, match="52 letters for candidates, not 53"):
        letter_tokens(tokenizer, 53)

    class Odd:
        unk_token_id = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [1, 2] if text == "C" else [ord(text)]}

    with pytest.raises(InputError, match="no token of its own for the letter 'C'"):
        letter_tokens(Odd(), 3)  # type: ignore[arg-type]
    assert letter_tokens(Odd(), 2) == [65, 66]  # type: ignore[arg-type]


def test_from_the_command_line(
    keys: dict[str, Any],
    folder: DatasetFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = write_native(tmp_path / "native", "qwen2_vl", folder.items)
    settings = {
        "preset": "qwen2vl",
        "top_k": 4,
        "sessions": 3,
        "backbone": {"model": str(model), "dtype": "float32", "lora": {"rank": 2}},
    }
    trained = run({**keys, "model": "GRU4Rec", "epochs": 1}, saved=True)
    result = evaluate_saved_run(
        str(trained.checkpoint), {**keys, "model": "GRU4Rec", "rerank": settings}
    )
    account = result.rerank
    assert account is not None
    assert (account["top_k"], account["sessions"], account["images"]) == (4, 3, "all")
    assert 0 <= account["recall_ceiling"] <= 1
    assert result.latency_ms == pytest.approx(
        account["base_latency_ms"] + account["rerank_latency_ms"]
    )
    assert account["one_time_seconds"] > 0
    assert json.loads(json.dumps(result.to_row()))["rerank"] == account
    run_command(
        [
            "rerank",
            *("--dataset", "shop", "--data_path", str(folder.path.parent)),
            *("--checkpoint", str(trained.checkpoint), "--top_k=4", "--sessions=3"),
            *(f"--backbone.model={model}", "--backbone.dtype=float32", "--backbone.lora.rank=2"),
        ]
    )
    said = capsys.readouterr().out
    assert "re-ranked the best 4 of 3 sessions (recall ceiling" in said
    assert "ms a request" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 99}, "top_k is 99 and the catalogue has 24 items"),
        ({"top_k": 1}, "top_k must be at least 2"),
        ({"images": "al"}, "unknown images 'al'. Did you mean 'all'"),
        ({"backbone": {"kind": "composed"}}, "of kind 'native'"),
        ({"preset": "qwen"}, "Unknown rerank 'qwen'. Did you mean 'qwen2vl'"),
        ({"prompt": {"item": "{price}"}}, r"'\{price\}' is not one of"),
        ({"backbone": {"model": "/nowhere/at/all"}}, "'/nowhere/at/all' is neither a local folder"),
    ],
)
def test_refused_before_anything_trains(
    keys: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("trained")

    with pytest.raises(InputError, match=message):
        run(
            {**keys, "model": "GRU4Rec", "rerank": {"preset": "qwen2vl", **changes}},
            on_epoch=fail,
        )


def test_images_where_there_are_none(keys: dict[str, Any], folder: DatasetFolder) -> None:
    for file in (folder.path / "images").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="no item of the data set has an image"):
        run({**keys, "rerank": "qwen2vl"})
