"""Every row of the shipped suites that a CPU can run trains on a small shop, and is validated."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_catalogue import write_catalogue

from recbole_tpad.bridge.runner import run
from recbole_tpad.data import DatasetFolder
from recbole_tpad.evaluation.grid import evaluate
from recbole_tpad.evaluation.suite import RunSpec, expand, read_suite
from recbole_tpad.generators.embed import embed
from recbole_tpad.report import write_report
from recbole_tpad.results import read_results

SUITES = ("sanity", "cold-start", "system")
ROWS = [(name, spec) for name in SUITES for spec in expand(read_suite(name, 1))]


def title(row: object) -> str:
    return f"{row[0]}: {row[1].title}" if isinstance(row, tuple) else str(row)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_catalogue(tmp_path_factory.mktemp("suites") / "dataset")
    embed(folder.path.parent, folder.name, "tfidf")
    embed(folder.path.parent, folder.name, "random")
    embed(folder.path.parent, folder.name, "shuffled", overrides={"store": "tfidf"})
    return folder.path


@pytest.mark.parametrize("row", ROWS, ids=title)
def test_a_row_runs(row: tuple[str, RunSpec], catalogue: Path, tmp_path: Path) -> None:
    keys = {**row[1].config, "epochs": 2}  # the suites' own eval_step is 2
    keys |= {"data_path": str(catalogue.parent), "dataset": catalogue.name}
    result = run({**keys, "checkpoint_dir": str(tmp_path)})
    assert 0 <= result.ndcg <= 1
    assert 0 <= result.valid["NDCG@10"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_comes_to_its_tables_and_report(
    suite: str, folder: DatasetFolder, tmp_path: Path
) -> None:
    path = evaluate(
        folder.path.parent,
        folder.name,
        suite,
        seeds=1,
        jobs=2,
        output_dir=tmp_path,
        overrides={"epochs": 2},
        progress=lambda line: None,
    )
    results = read_results(path)
    assert len(results.rows) == len(expand(read_suite(suite, 1)))
    assert not results.failed
    assert write_report(path).stat().st_size > 50_000
    assert "CoOccurrence" in (tmp_path / "table.md").read_text()
