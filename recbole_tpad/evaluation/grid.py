"""Runs a suite on a data set and writes results.json (format 1)."""

from __future__ import annotations

import functools
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import recbole_tpad
from dataset_converters.describe import describe
from recbole_tpad.bridge.models import known_models
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.evaluation.assemble import (
    compared,
    dataset_entry,
    environment,
    label_of,
    row,
    version,
)
from recbole_tpad.evaluation.collect import generator_entry
from recbole_tpad.evaluation.examples import examples
from recbole_tpad.evaluation.planning import (
    expected_seconds,
    finished,
    in_words,
    planned,
    read_outcome,
    seconds_by_model,
)
from recbole_tpad.evaluation.pool import Job, Runner, run_jobs
from recbole_tpad.evaluation.stores import check_stores, labels, prepare_stores
from recbole_tpad.evaluation.suite import RunSpec, Suite, expand, parts_of, read_suite
from recbole_tpad.evaluation.table import csv_table, markdown_table
from recbole_tpad.files import atomic_path, sha256_file, sha256_json, write_json
from recbole_tpad.own_code import check_own, is_own, own_sha256
from recbole_tpad.presets import properties_dir
from recbole_tpad.progress import progress as progress_bar
from recbole_tpad.results import FORMAT
from recbole_tpad.store import ItemEmbeddings, open_store, store_path

# Passed to every run and stated in the results, so that the protocol shown is the one that ran.
PROTOCOL: dict[str, Any] = {"mask_history": False, "valid_metric": "NDCG@10", "topk": [5, 10]}
EXAMPLES = 6  # test sessions shown in the report
# The sources whose change can change a run's result.
CODE = ("recommenders", "bridge", "data", "store")


def evaluate(
    data_path: str | Path,
    dataset: str,
    suite: str | Path | Mapping[str, Any],
    *,
    seeds: int | list[int] | None = None,
    jobs: int = 1,
    output_dir: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    commands: Sequence[str] | None = None,
    runner: Runner | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Run every pair of model and item embeddings of a suite, with every seed.

    Finished runs are kept under `<data set folder>/runs/`, named by a fingerprint of their config,
    the data, the store and the code; they are not run again, so a killed suite resumes and a
    repeated one is instantaneous. A failed run becomes a row with an error and is tried again next
    time. Stores named under the suite's ``generators`` are made first, by `embed`, which keeps what
    is up to date, and ``describe.json`` where it is missing or outdated; nothing else is written
    into the data set folder.

    Args:
        data_path: folder of data sets.
        dataset: name of the data set folder in it.
        suite: a preset ('demo'), a YAML file, or a mapping with a suite's keys.
        seeds: replaces the suite's seeds; n means 1..n.
        jobs: runs at a time; the machine's cores are divided among them.
        output_dir: where results.json, table.md and table.csv go; default: `evaluation` in the data
            set folder.
        overrides: RecBole keys that win over the suite's, for every run.
        commands: the command lines to show in the report; default: this call as a command.
        runner: importable function that trains and tests one config; default
            `recbole_tpad.bridge.runner.run`.
        progress: receives a line per finished run; default: stderr.

    Returns:
        Path of results.json.

    Raises:
        InputError: a bad suite, data set or store, found before anything runs.
    """
    if jobs < 1:
        raise InputError(f"jobs must be at least 1, not {jobs}.")
    say = progress or functools.partial(print, file=sys.stderr, flush=True)
    folder, grid, specs = _checked(data_path, dataset, suite, seeds, overrides, runner)
    cache = folder.path / "runs"
    stores, unmade = prepare_stores(grid, data_path, dataset, say)
    names = labels(stores)
    configs = [_config(spec, data_path, dataset) for spec in specs]
    outputs = _outputs(specs, configs, folder.path, stores)
    failed = {i: e for i, spec in enumerate(specs) if (e := _unmade(spec, unmade)) is not None}
    outcomes = _run_all(specs, configs, outputs, runner or _default_runner(), jobs, say, failed)
    content = {
        "format": FORMAT,
        "suite": grid.name,
        "dataset": dataset_entry(folder),
        "protocol": {"ranking": "full", **{k: configs[0][k] for k in PROTOCOL}},
        "rows": [row(spec, names, o) for spec, o in zip(specs, outcomes, strict=True)],
        "reference": None if grid.reference is None else label_of(grid.reference, names),
        "comparisons": compared(specs, names, outcomes, grid.reference),
        "examples": examples(specs, outcomes, folder.items),
        "data": _report_card(folder),
        "generators": {
            names[name]: generator_entry(store, folder.items, cache)
            for name, store in progress_bar(
                [(name, store) for name, store in stores.items() if name in grid.stores()],
                desc="maps of the item embeddings",
            )
        },
        "environment": environment(),
        "commands": list(commands or [_command(dataset, grid, seeds, overrides)]),
    }
    target = Path(output_dir) if output_dir is not None else folder.path / "evaluation"
    results = target / "results.json"
    write_json(results, content)
    for name, write in (("table.md", markdown_table), ("table.csv", csv_table)):
        with atomic_path(target / name) as temporary:
            temporary.write_text(write(results), encoding="utf-8")
    return results


def plan(
    data_path: str | Path,
    dataset: str,
    suite: str | Path | Mapping[str, Any],
    *,
    seeds: int | list[int] | None = None,
    jobs: int = 1,
    overrides: Mapping[str, Any] | None = None,
    runner: Runner | None = None,
) -> str:
    """Say what `evaluate` would run, without running anything.

    Returns:
        A line for each store the suite makes and each row, with the runs that are already done and
        the expected time, as far as earlier runs of the model on this data set tell.

    Raises:
        InputError: as `evaluate`.
    """
    folder, grid, specs = _checked(data_path, dataset, suite, seeds, overrides, runner)
    stores = {
        name: open_store(store_path(folder.path, name))
        for name in grid.stores()
        if (store_path(folder.path, name) / "manifest.json").is_file()
    }
    configs = [_config(spec, data_path, dataset) for spec in specs]
    outputs = _outputs(specs, configs, folder.path, stores)
    done = [finished(output) is not None for output in outputs]
    made = {name: name in stores for name in grid.generators or {}}
    return planned(specs, done, made, seconds_by_model(folder.path / "runs"), jobs)


def _checked(
    data_path: str | Path,
    dataset: str,
    suite: str | Path | Mapping[str, Any],
    seeds: int | list[int] | None,
    overrides: Mapping[str, Any] | None,
    runner: Runner | None,
) -> tuple[DatasetFolder, Suite, list[RunSpec]]:
    folder = DatasetFolder.open(data_path, dataset)
    grid = read_suite(suite, seeds)
    specs = expand(grid, overrides)
    check_stores(grid, folder.path)
    if runner is None:
        _check_models(grid.models)
    return folder, grid, specs


def _outputs(
    specs: Sequence[RunSpec],
    configs: Sequence[Mapping[str, Any]],
    folder: Path,
    stores: Mapping[str, ItemEmbeddings],
) -> list[Path]:
    """The file of each run, named by a fingerprint of all that determines its result."""
    code = _code_fingerprint()
    data = sha256_file(folder / "dataset.json")
    found = []
    for spec, config in zip(specs, configs, strict=True):
        # Where the data lies and how the store is reached do not change a result.
        own = {k: v for k, v in config.items() if k not in ("data_path", "item_embeddings")}
        parts = [stores[part].sha256 for part in parts_of(spec.item_embeddings) if part in stores]
        store = "+".join(parts) if parts else None
        depends: dict[str, Any] = {"config": own, "data": data, "store": store, "code": code}
        if is_own(spec.model):
            depends["own_code"] = own_sha256(spec.model)
        key = sha256_json(depends)
        found.append(folder / "runs" / f"{key[:24]}.json")
    return found


def _unmade(spec: RunSpec, errors: Mapping[str, str]) -> str | None:
    return next((errors[part] for part in parts_of(spec.item_embeddings) if part in errors), None)


def _default_runner() -> Runner:
    # Late: importing the bridge imports RecBole, which only the runs' own processes need.
    run: Runner = importlib.import_module("recbole_tpad.bridge.runner").run
    return run


def _check_models(models: Sequence[str]) -> None:
    known = known_models()
    for model in models:
        if is_own(model):
            check_own(model)
        elif model not in known:
            raise InputError(
                f"Unknown sequential model '{model}'.{nearest(model, known)} "
                f"Known: {', '.join(known)}; or a Python file with a model of your own."
            )


def _config(spec: RunSpec, data_path: str | Path, dataset: str) -> dict[str, Any]:
    shown = {"example_sessions": EXAMPLES}
    where = {"dataset": dataset, "data_path": str(data_path)}
    return {**PROTOCOL, **shown, **spec.config, **where}


def _report_card(folder: DatasetFolder) -> dict[str, Any]:
    """The data set's report card: the one in its folder, or a new one where the data changed."""
    file = folder.path / "describe.json"
    card = read_outcome(file) or {}
    if (card.get("split") or {}).get("fingerprint") != folder.split_fingerprint:
        card = describe(folder.path)
    return card


def _code_fingerprint() -> str:
    """Hash of the sources, model presets and library versions that a run's result depends on."""
    package, presets = Path(recbole_tpad.__file__).parent, properties_dir()
    files = {
        f"{part}/{file.name}": sha256_file(file)
        for part in CODE
        for file in sorted((package / part).glob("*.py"))
    }
    for file in sorted([*presets.glob("*.yaml"), *(presets / "model").glob("*.yaml")]):
        files[f"properties/{file.name}"] = sha256_file(file)
    versions = {name: version(name) for name in ("torch", "recbole", "numpy")}
    return sha256_json({"files": files, "versions": versions})


def _run_all(
    specs: Sequence[RunSpec],
    configs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Path],
    runner: Runner,
    jobs: int,
    say: Callable[[str], None],
    failed: Mapping[int, str],
) -> list[dict[str, Any]]:
    """Outcomes in the order of `specs`: from earlier runs where there are any, else run now.

    Args:
        failed: runs that cannot be tried, with the reason.
    """
    outcomes: dict[int, dict[str, Any]] = {i: {"error": error} for i, error in failed.items()}
    for index, output in enumerate(outputs):
        earlier = finished(output)
        if index not in failed and earlier is not None:
            outcomes[index] = earlier
    todo = [index for index in range(len(specs)) if index not in outcomes]
    if len(outcomes) > len(failed):
        say(f"{len(outcomes) - len(failed)} of {len(specs)} runs are already done.")
    for index in todo:
        # An earlier failure must not pass for the new attempt's result.
        outputs[index].unlink(missing_ok=True)
    work = [Job(configs[i], outputs[i], outputs[i].with_suffix(".log")) for i in todo]
    threads = max(1, _cores() // min(jobs, max(1, len(work))))
    for place, died in run_jobs(work, runner, parallel=jobs, threads=threads):
        index = todo[place]
        outcome = read_outcome(outputs[index])
        if died is not None or outcome is None:
            outcome = {
                "error": died or f"The run left no readable result in {outputs[index].name}."
            }
        outcomes[index] = outcome
        left = [i for i in todo if i not in outcomes]
        say(
            f"[{len(outcomes)}/{len(specs)}] {specs[index].title}: "
            f"{_summary(outcome, work[place].log)}{_time_left(specs, outcomes, left, jobs)}"
        )
    return [outcomes[index] for index in range(len(specs))]


def _cores() -> int:
    """Cores this process may use, or fewer where OMP_NUM_THREADS says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores or 1, int(wanted)) if wanted.isdigit() and int(wanted) else cores or 1


def _summary(outcome: Mapping[str, Any], log: Path) -> str:
    if outcome.get("error") is not None:
        return f"FAILED: {outcome['error']} (its output: {log})"
    shown = "  ".join(
        f"{name} {outcome['metrics'][name]:.4f}"
        for name in ("HR@10", "NDCG@10")
        if name in outcome.get("metrics", {})
    )
    return f"{shown}  in {outcome.get('seconds') or 0.0:.0f} s"


def _time_left(
    specs: Sequence[RunSpec],
    outcomes: Mapping[int, Mapping[str, Any]],
    left: Sequence[int],
    jobs: int,
) -> str:
    """Estimate from the runs of the same model, or of all models where it has none yet."""
    known: dict[str, list[float]] = {}
    for index, outcome in outcomes.items():
        if outcome.get("seconds") is not None:
            known.setdefault(specs[index].model, []).append(float(outcome["seconds"]))
    seconds = expected_seconds([specs[i].model for i in left], known, jobs)
    return "" if seconds is None else f", about {in_words(seconds)} left"


def _command(
    dataset: str,
    suite: Suite,
    seeds: int | list[int] | None,
    overrides: Mapping[str, Any] | None,
) -> str:
    words = ["recbole-tpad", "evaluate", "--dataset", dataset, "--suite", suite.name]
    if isinstance(seeds, int):
        words += ["--seeds", str(seeds)]
    words += [f"--{key}={value}" for key, value in (overrides or {}).items()]
    return shlex.join(words)
