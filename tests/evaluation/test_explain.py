"""Explanations of a saved DIMO run, against its own scores and the training sessions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_catalogue import write_catalogue

from recbole_tpad.bridge import ranking
from recbole_tpad.bridge.runner import load_run, run
from recbole_tpad.cli import main
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.evaluation import explain
from recbole_tpad.evaluation.explain import explain_sessions
from recbole_tpad.generators.embed import embed
from recbole_tpad.recommenders.dimo import DIMO

KEYS: dict[str, Any] = {"embedding_size": 16, "n_heads": 2, "n_layers": 1, "epochs": 3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetFolder, str]:
    root = tmp_path_factory.mktemp("explained")
    folder = write_catalogue(root / "dataset")
    embed(folder.path.parent, folder.name, "random")
    keys = {
        **KEYS,
        "dataset": folder.name,
        "data_path": str(folder.path.parent),
        "checkpoint_dir": str(root / "saved"),
        "model": "DIMO",
    }
    result = run({**keys, "item_embeddings": "random"}, saved=True)
    return folder, str(result.checkpoint)


def test_shares_sum_to_the_models_scores_and_reasons_are_true(
    saved: tuple[DatasetFolder, str],
) -> None:
    folder, checkpoint = saved
    titles = {item.item_id: item.title for item in folder.items}
    sessions = dict(folder.sessions("test"))
    training = [items for _, items in folder.train_sessions()]
    found = explain_sessions(checkpoint, 5, top=4)
    _, model, loaders = load_run(checkpoint)
    test = loaders.test._dataset
    batch = loaders.test.collate_fn(np.arange(5))[0]
    with torch.no_grad():
        scores = model.full_sort_predict(batch)
    ids = [str(t) for t in test.field2id_token[test.iid_field]]
    for row, session in enumerate(found):
        assert [*session.context, session.target] == sessions[session.session_id]
        assert session.context_titles == tuple(titles[i] for i in session.context)
        best = scores[row].topk(4)
        assert [i.item_id for i in session.items] == [ids[k] for k in best.indices]
        for item, score in zip(session.items, best.values.tolist(), strict=True):
            assert item.id_share + item.modality_share == pytest.approx(score, abs=1e-4)
            assert item.score == pytest.approx(score, abs=1e-4)
            assert item.context_item in session.context
            assert titles[item.context_item] in item.sentence
            together = sum(
                (a, b) == (item.item_id, item.context_item)
                for s in training
                for x, a in enumerate(s)
                for y, b in enumerate(s)
                if x != y and a != b
            )
            assert item.shared_sessions == together
            if item.reason == "bought together":
                assert together > 0


def test_what_adjustments_add_is_said_beside_the_shares(
    saved: tuple[DatasetFolder, str], tmp_path: Path
) -> None:
    folder, plain = saved
    keys = {
        **KEYS,
        "dataset": folder.name,
        "data_path": str(folder.path.parent),
        "checkpoint_dir": str(tmp_path),
        "model": "DIMO",
        "item_embeddings": "random",
        "cooccurrence_kernel": True,
        "cooccurrence_weight": 2.0,
        "history_items": "calibrated",
        "history_shift": -3.0,
    }
    checkpoint = str(run(keys, saved=True).checkpoint)
    _, model, loaders = load_run(checkpoint)
    batch = loaders.test.collate_fn(np.arange(6))[0]
    with torch.no_grad():
        best = model.full_sort_predict(batch).topk(3)
        counts = model.score_adjustments.term("cooccurrence_weight", batch["item_id_list"])
    added = set()
    for row, session in enumerate(explain_sessions(checkpoint, 6, top=3)):
        for place, item in enumerate(session.items):
            expected = 2.0 * float(counts[row, best.indices[row, place]])
            expected -= 3.0 * (item.item_id in session.context)
            assert item.adjustment == pytest.approx(expected, abs=1e-4)
            assert item.score == pytest.approx(float(best.values[row, place]), abs=1e-4)
            shares = item.id_share + item.modality_share + item.adjustment
            assert item.score == pytest.approx(shares, abs=1e-4)
            added.add(round(item.adjustment, 3))
    assert len(added) > 1
    assert all(i.adjustment == 0 for s in explain_sessions(plain, 2) for i in s.items)


def test_scores_of_a_batch_stay_within_the_budget(
    saved: tuple[DatasetFolder, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, checkpoint = saved
    plain = explain_sessions(checkpoint, 6, top=2)
    sizes = []
    scored = DIMO.full_sort_predict

    def counted(self: Any, interaction: Any) -> Any:
        scores = scored(self, interaction)
        sizes.append(scores.numel() * 10_000)
        return scores

    monkeypatch.setattr(DIMO, "full_sort_predict", counted)
    monkeypatch.setattr(ranking, "_BYTES_PER_SCORE", 10_000)
    found = explain_sessions(checkpoint, 6, top=2, config_dict={"rank_memory_mb": 1})
    assert max(sizes) <= 2**20
    assert len(sizes) > 1
    assert [[i.item_id for i in s.items] for s in found] == [
        [i.item_id for i in s.items] for s in plain
    ]


def test_sessions_can_be_named(saved: tuple[DatasetFolder, str]) -> None:
    folder, checkpoint = saved
    names = [name for name, _ in folder.sessions("test")]
    found = explain_sessions(checkpoint, [names[2], names[0]], top=1)
    assert [s.session_id for s in found] == [names[2], names[0]]
    with pytest.raises(InputError, match="No session 'nobody'"):
        explain_sessions(checkpoint, ["nobody"])


def test_the_command_prints_titles(
    saved: tuple[DatasetFolder, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, checkpoint = saved
    assert main(["explain", checkpoint, "--sessions", "1", "--top", "2"]) == 0
    said = capsys.readouterr().out
    name, items = next(iter(folder.sessions("test")))
    titles = {item.item_id: item.title for item in folder.items}
    assert said.startswith(f"Session {name}: {' | '.join(titles[i] for i in items[:-1])}")
    assert said.count("score ") == 2


def test_what_rounding_leaves_of_a_sum_is_no_adjustment(
    saved: tuple[DatasetFolder, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, checkpoint = saved
    (session,) = explain_sessions(checkpoint, 1, top=3)
    added = (-4e-7, 3e-7, -0.75)
    items = tuple(
        dataclasses.replace(item, adjustment=value)
        for item, value in zip(session.items, added, strict=True)
    )
    known = [dataclasses.replace(session, items=items)]
    monkeypatch.setattr(explain, "explain_sessions", lambda *args, **keys: known)
    assert main(["explain", checkpoint]) == 0
    said = capsys.readouterr().out
    assert said.count("adjustments") == 1
    assert "adjustments -0.75" in said


def test_other_models_are_refused(saved: tuple[DatasetFolder, str], tmp_path: Path) -> None:
    folder, _ = saved
    keys = {"model": "SPop", "dataset": folder.name, "data_path": str(folder.path.parent)}
    result = run({**keys, "checkpoint_dir": str(tmp_path)}, saved=True)
    with pytest.raises(InputError, match="is a run of SPop"):
        explain_sessions(str(result.checkpoint))
