"""Running a suite: rows, cache, failures, results file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import stand_in_runner

from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.evaluation import evaluate, markdown_table, plain_table
from recbole_tpad.report import write_report
from recbole_tpad.results import read_results

SUITE = {"models": ["A", "Popularity"], "item_embeddings": ["none", "tiny"], "seeds": 2}


def go(folder: DatasetFolder, suite: Any = SUITE, **options: Any) -> dict[str, Any]:
    options.setdefault("runner", stand_in_runner.run)
    options.setdefault("progress", lambda line: None)
    path = evaluate(folder.path.parent, folder.name, suite, **options)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_results_file_is_complete_and_reportable(folder: DatasetFolder) -> None:
    lines: list[str] = []
    content = go(folder, progress=lines.append, overrides={"epochs": 2})
    assert [(r["model"], r["item_embeddings"], r["seed"]) for r in content["rows"]] == [
        ("A", None, 1),
        ("A", None, 2),
        ("A", "tiny", 1),
        ("A", "tiny", 2),
        ("Popularity", None, 1),
        ("Popularity", None, 2),
    ]
    row = content["rows"][2]
    assert row["metrics"]["HR@5"] == pytest.approx(0.16)
    assert row["error"] is None
    # JSON has no NaN; the training loss of the stand-in is one.
    assert row["curve"][0]["train_loss"] is None
    assert content["protocol"] == {
        "ranking": "full",
        "mask_history": False,
        "valid_metric": "NDCG@10",
        "topk": [5, 10],
    }
    split = json.loads((folder.path / "split.json").read_text())
    assert content["dataset"]["split"]["fingerprint"] == split["parts"]["train"]["sha256"]
    assert content["dataset"]["counts"]["sessions_test"] == split["parts"]["test"]["sessions"]
    generator = content["generators"]["tiny"]
    assert generator["generator"] == "random"
    assert len(generator["map"]["points"]) == len(folder.items)
    assert content["commands"] == ["recbole-tpad evaluate --dataset shop --suite custom --epochs=2"]
    assert len(lines) == 6
    assert lines[-1].startswith("[6/6]")
    assert "left" in lines[0]

    written = folder.path / "evaluation"
    assert (written / "table.md").read_text() == markdown_table(written / "results.json")
    assert write_report(written / "results.json").stat().st_size > 10_000
    assert str(folder.path.parent) not in (written / "results.json").read_text()


def trace(tmp_path: Path) -> list[str]:
    file = tmp_path / "trace"
    return file.read_text().splitlines() if file.exists() else []


def test_each_run_has_its_own_process_and_is_run_once(
    folder: DatasetFolder, tmp_path: Path
) -> None:
    overrides = {"trace": str(tmp_path / "trace")}
    first = go(folder, overrides=overrides, jobs=3)
    calls = trace(tmp_path)
    assert len(calls) == len({line.split()[0] for line in calls}) == 6
    assert str(os.getpid()) not in {line.split()[0] for line in calls}
    assert go(folder, overrides=overrides) == first
    assert trace(tmp_path) == calls
    # A further seed runs the new seed only; a changed key runs everything.
    go(folder, overrides=overrides, seeds=3)
    assert len(trace(tmp_path)) == 9
    go(folder, overrides={**overrides, "epochs": 9})
    assert len(trace(tmp_path)) == 15


def test_another_store_under_the_same_name_is_run_anew(
    folder: DatasetFolder, tmp_path: Path
) -> None:
    overrides = {"trace": str(tmp_path / "trace")}
    suite = {"models": ["A"], "item_embeddings": ["none", "tiny"], "seeds": 1}
    go(folder, suite, overrides=overrides)
    stores = folder.path / "embeddings"
    (stores / "tiny").rename(stores / "old")
    (stores / "other").rename(stores / "tiny")
    go(folder, suite, overrides=overrides)
    assert [line.split()[2] for line in trace(tmp_path)] == ["None", "tiny", "tiny"]


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("raise", "ValueError: planted failure"),
        ("die", "ended by signal 9"),
        ("nan", "no finite value for HR@5"),
    ],
)
def test_a_failed_run_is_a_row_and_is_tried_again(
    behaviour: str, message: str, folder: DatasetFolder, tmp_path: Path
) -> None:
    suite = {
        "models": ["A", "B"],
        "seeds": 1,
        "config": {"trace": str(tmp_path / "trace")},
        "model_config": {"A": {"behaviour": behaviour}},
    }
    lines: list[str] = []
    content = go(folder, suite, progress=lines.append)
    failed, good = content["rows"]
    assert message in failed["error"]
    assert failed["metrics"] is None
    assert good["error"] is None
    assert "Failed: A with none, seed 1" in plain_table(folder.path / "evaluation" / "results.json")
    go(folder, suite)
    again = 1 if behaviour != "nan" else 0
    assert len(trace(tmp_path)) == 2 + again


def test_the_log_of_a_run_is_kept(folder: DatasetFolder) -> None:
    go(folder, {"models": ["A"], "seeds": 1, "config": {"behaviour": "raise"}})
    logs = list((folder.path / "runs").glob("*.log"))
    assert len(logs) == 1
    text = logs[0].read_text()
    assert "training A" in text
    assert "planted failure" in text


def test_a_killed_suite_resumes_and_leaves_no_process(
    folder: DatasetFolder, tmp_path: Path
) -> None:
    suite = {
        "models": ["A", "B"],
        "seeds": 1,
        "config": {"trace": str(tmp_path / "trace")},
        "model_config": {"B": {"behaviour": "wait"}},
    }
    code = (
        "import json, sys\n"
        "import stand_in_runner\n"
        "from recbole_tpad.evaluation import evaluate\n"
        "if __name__ == '__main__':\n"
        "    evaluate(sys.argv[1], 'shop', json.loads(sys.argv[2]), runner=stand_in_runner.run)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(root), str(Path(__file__).parent)])
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), json.dumps(suite)],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(trace(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    started = trace(tmp_path)
    assert [line.split()[1] for line in started] == ["A", "B"]
    worker = int(started[1].split()[0])
    while Path(f"/proc/{worker}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        assert time.monotonic() < deadline, "the run outlived its suite"
    go(folder, {**suite, "models": ["A"], "model_config": {}})
    assert len(trace(tmp_path)) == 2


def test_bad_input_is_refused_before_anything_runs(folder: DatasetFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no item embeddings 'tinny'\. Did you mean 'tiny'"):
        go(folder, {"models": ["A"], "item_embeddings": ["tinny"]})
    with pytest.raises(
        InputError, match=r"Unknown sequential model 'SASRek'\. Did you mean 'SASRec'"
    ):
        go(folder, {"models": ["SASRek"]}, runner=None)
    with pytest.raises(InputError, match="jobs must be at least 1"):
        go(folder, jobs=0)
    twins = tmp_path / "elsewhere" / "tiny"
    twins.mkdir(parents=True)
    for file in (folder.path / "embeddings" / "other").iterdir():
        (twins / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="both called 'tiny'"):
        go(folder, {"models": ["A"], "item_embeddings": ["tiny", str(twins)]})
    assert not (folder.path / "runs").exists()


def test_tables(folder: DatasetFolder) -> None:
    go(folder)
    path = folder.path / "evaluation" / "results.json"
    plain = plain_table(path).splitlines()
    assert plain[0].split()[:2] == ["Model", "Item"]
    assert len({len(line) for line in plain[1:2]}) == 1
    # HR@10 of rare (3 rows, .3) and unseen (1 row, .1) targets together: 1.0 / 4.
    assert "0.2500 ± 0.0000" in plain[2]
    assert "0.1150 ± 0.0071" in plain[2]
    first, *compared = markdown_table(read_results(path)).split("\n\nDifference to ")
    assert first.count("\n") == 4
    # Against the best baseline and against the same model, on all and on rare and unseen targets.
    assert len(compared) == 4
    content = json.loads(path.read_text())
    entry = next(c for c in content["comparisons"] if c["kind"] == "without embeddings")
    assert entry["seeds"] == [2, 2]
    assert f"{entry['difference']:+.4f} | {entry['low']:+.4f} to" in "".join(compared)
    assert {c["sessions"] for c in content["comparisons"]} == {34, 4}


def test_the_generator_s_own_account_is_taken_over(folder: DatasetFolder) -> None:
    told = {
        "generator": "tpad",
        "seconds": 3.5,
        "stages": [{"name": "encoding", "seconds": 1.0, "history": [], "summary": {}}],
        "generation_rate": {"recall": 0.4},
        "warnings": ["low"],
    }
    file = folder.path / "embeddings" / "tiny" / "run.json"
    file.write_text(json.dumps(told))
    entry = go(folder)["generators"]["tiny"]
    assert {key: entry[key] for key in told} == told
    file.write_text("[1")
    with pytest.raises(InputError, match=r"run\.json"):
        go(folder)


@pytest.mark.slow
def test_the_real_runner(folder: DatasetFolder) -> None:
    suite = {
        "models": ["SASRec", "DIMO", "Popularity"],
        "item_embeddings": ["none", "tiny"],
        "seeds": 1,
        "config": {"epochs": 1, "item_spaces": 20},
    }
    content = go(folder, suite, runner=None)
    assert [row["error"] for row in content["rows"]] == [None] * 5
    spaces = {(r["model"], r["item_embeddings"]): r["item_spaces"] for r in content["rows"]}
    assert {pair for pair, found in spaces.items() if found is not None} == {
        ("SASRec", "tiny"),
        ("DIMO", "tiny"),
    }
    assert len(spaces["DIMO", "tiny"]["points"]) == 40
    assert all(row["peak_mb"] > 0 for row in content["rows"])
    sessions = content["dataset"]["counts"]["sessions_test"]
    for row in content["rows"]:
        assert sum(part["rows"] for part in row["slices"].values()) == sessions
