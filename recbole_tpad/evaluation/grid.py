"""Runs a suite on a data set and writes results.json (format 1)."""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import recbole_tpad
from recbole_tpad.bridge.models import known_models
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.evaluation.collect import generator_entry
from recbole_tpad.evaluation.pool import Job, Runner, run_jobs
from recbole_tpad.evaluation.statistics import Group, comparisons
from recbole_tpad.evaluation.suite import RunSpec, Suite, expand, read_suite
from recbole_tpad.evaluation.table import markdown_table
from recbole_tpad.files import atomic_path, sha256_file, sha256_json, write_json
from recbole_tpad.presets import properties_dir
from recbole_tpad.results import FORMAT, WARM_FROM
from recbole_tpad.store import ItemEmbeddings, open_store

# Passed to every run and stated in the results, so that the protocol shown is the one that ran.
PROTOCOL: dict[str, Any] = {"mask_history": False, "valid_metric": "NDCG@10", "topk": [5, 10]}
# The sources whose change can change a run's result.
CODE = ("recommenders", "bridge", "data", "store")
ROW_KEYS = (
    "metrics",
    "valid",
    "slices",
    "seconds",
    "peak_mb",
    "loss",
    "parameters",
    "epochs",
    "best_epoch",
    "curve",
    "mask_history",
)


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
    time. Nothing else is written into the data set folder.

    Args:
        data_path: folder of data sets.
        dataset: name of the data set folder in it.
        suite: a preset ('demo'), a YAML file, or a mapping with a suite's keys.
        seeds: replaces the suite's seeds; n means 1..n.
        jobs: runs at a time; the machine's cores are divided among them.
        output_dir: where results.json and table.md go; default `<data set folder>/evaluation`.
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
    folder = DatasetFolder.open(data_path, dataset)
    grid = read_suite(suite, seeds)
    specs = expand(grid, overrides)
    stores = {name: _open(folder.path, name) for name in grid.item_embeddings if name is not None}
    labels = _labels(stores)
    cache = folder.path / "runs"
    if runner is None:
        _check_models(grid.models)

    code = _code_fingerprint()
    data = sha256_file(folder.path / "dataset.json")
    configs = [_config(spec, data_path, dataset) for spec in specs]
    outputs = []
    for spec, config in zip(specs, configs, strict=True):
        # Where the data lies and how the store is reached do not change a result.
        own = {k: v for k, v in config.items() if k not in ("data_path", "item_embeddings")}
        store = stores[spec.item_embeddings].sha256 if spec.item_embeddings else None
        key = sha256_json({"config": own, "data": data, "store": store, "code": code})
        outputs.append(cache / f"{key[:24]}.json")

    outcomes = _run_all(specs, configs, outputs, runner or _default_runner(), jobs, say)
    used = {spec.item_embeddings for spec in specs}
    content = {
        "format": FORMAT,
        "dataset": _dataset_entry(folder),
        "protocol": {"ranking": "full", **{k: configs[0][k] for k in PROTOCOL}},
        "rows": [
            _row(spec, labels, outcome) for spec, outcome in zip(specs, outcomes, strict=True)
        ],
        "comparisons": _comparisons(specs, labels, outcomes),
        "generators": {
            labels[name]: generator_entry(store, folder.items, cache)
            for name, store in stores.items()
            if name in used
        },
        "environment": _environment(),
        "commands": list(commands or [_command(dataset, grid, seeds, overrides)]),
    }
    target = Path(output_dir) if output_dir is not None else folder.path / "evaluation"
    results = target / "results.json"
    write_json(results, content)
    with atomic_path(target / "table.md") as temporary:
        temporary.write_text(markdown_table(results), encoding="utf-8")
    return results


def _default_runner() -> Runner:
    # Late: importing the bridge imports RecBole, which only the runs' own processes need.
    run: Runner = importlib.import_module("recbole_tpad.bridge.runner").run
    return run


def _check_models(models: Sequence[str]) -> None:
    known = known_models()
    for model in models:
        if model not in known:
            raise InputError(
                f"Unknown sequential model '{model}'.{nearest(model, known)} "
                f"Known: {', '.join(known)}."
            )


def _open(folder: Path, name: str) -> ItemEmbeddings:
    """A store by its name inside the data set folder, or by path."""
    stored = folder / "embeddings"
    if (stored / name).is_dir():
        return open_store(stored / name)
    if Path(name).is_dir():
        return open_store(Path(name))
    known = sorted(p.name for p in stored.glob("*") if p.is_dir() and not p.name.startswith("."))
    raise InputError(
        f"Data set '{folder.name}' has no item embeddings '{name}'.{nearest(name, known)} "
        f"It has: {', '.join(known) or 'none yet'}. Make them with "
        f"`recbole-tpad embed --dataset {folder.name} --generator …`."
    )


def _labels(stores: Mapping[str, ItemEmbeddings]) -> dict[str, str]:
    """The name each store has in the results: its folder's name, never a machine's path."""
    labels = {name: store.path.name for name, store in stores.items()}
    for name, label in labels.items():
        twins = [other for other in labels if labels[other] == label and other != name]
        if twins:
            raise InputError(
                f"The stores '{name}' and '{twins[0]}' are both called '{label}': in the table "
                "they could not be told apart. Rename one folder."
            )
    return labels


def _config(spec: RunSpec, data_path: str | Path, dataset: str) -> dict[str, Any]:
    return {**PROTOCOL, **spec.config, "dataset": dataset, "data_path": str(data_path)}


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
    versions = {name: _version(name) for name in ("torch", "recbole", "numpy")}
    return sha256_json({"files": files, "versions": versions})


def _run_all(
    specs: Sequence[RunSpec],
    configs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Path],
    runner: Runner,
    jobs: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Outcomes in the order of `specs`: from earlier runs where there are any, else run now."""
    outcomes: dict[int, dict[str, Any]] = {}
    for index, output in enumerate(outputs):
        earlier = _read_outcome(output)
        if earlier is not None and earlier.get("error") is None:
            outcomes[index] = earlier
    todo = [index for index in range(len(specs)) if index not in outcomes]
    if outcomes:
        say(f"{len(outcomes)} of {len(specs)} runs are already done.")
    for index in todo:
        # An earlier failure must not pass for the new attempt's result.
        outputs[index].unlink(missing_ok=True)
    work = [Job(configs[i], outputs[i], outputs[i].with_suffix(".log")) for i in todo]
    threads = max(1, _cores() // min(jobs, max(1, len(work))))
    for place, died in run_jobs(work, runner, parallel=jobs, threads=threads):
        index = todo[place]
        outcome = _read_outcome(outputs[index])
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


def _read_outcome(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Absent or damaged: the run is made again.
        return None
    return content if isinstance(content, dict) else None


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
    if not left:
        return ""
    known: dict[str, list[float]] = {}
    for index, outcome in outcomes.items():
        known.setdefault(specs[index].model, []).append(float(outcome.get("seconds") or 0.0))
    overall = statistics.fmean(seconds for values in known.values() for seconds in values)
    each = {model: statistics.fmean(values) for model, values in known.items()}
    seconds = sum(each.get(specs[i].model, overall) for i in left) / min(jobs, len(left))
    shown = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return f", about {shown} left"


def _row(spec: RunSpec, labels: Mapping[str, str], outcome: Mapping[str, Any]) -> dict[str, Any]:
    row = {
        "model": spec.model,
        "item_embeddings": labels[spec.item_embeddings] if spec.item_embeddings else None,
        "seed": spec.seed,
        **{key: _finite(outcome.get(key)) for key in ROW_KEYS},
        "error": outcome.get("error"),
    }
    lost = [name for name, value in (row["metrics"] or {}).items() if value is None]
    if row["error"] is None and (lost or not row["metrics"]):
        row["error"] = f"The run reported no finite value for {', '.join(lost) or 'any metric'}."
    if row["error"] is not None:
        row["metrics"] = None
    return row


def _comparisons(
    specs: Sequence[RunSpec],
    labels: Mapping[str, str],
    outcomes: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Differences with intervals, over all test rows and over rare and unseen targets."""
    ranks: dict[Group, list[npt.NDArray[np.int64]]] = {}
    valid: dict[Group, list[float]] = {}
    counts = np.zeros(0, dtype=np.int64)
    for spec, outcome in zip(specs, outcomes, strict=True):
        if outcome.get("error") is not None or not outcome.get("ranks"):
            continue
        group = (spec.model, labels[spec.item_embeddings] if spec.item_embeddings else None)
        ranks.setdefault(group, []).append(np.array(outcome["ranks"]))
        valid.setdefault(group, []).append(float((outcome.get("valid") or {})["NDCG@10"]))
        counts = np.array(outcome["target_counts"])
    chosen = {group: statistics.fmean(values) for group, values in valid.items()}
    parts = {"all": np.ones(len(counts), dtype=bool), "rare and unseen": counts < WARM_FROM}
    return [
        {"targets": name, **entry}
        for name, mask in parts.items()
        if mask.any()
        for entry in comparisons({g: [r[mask] for r in rows] for g, rows in ranks.items()}, chosen)
    ]


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def _dataset_entry(folder: DatasetFolder) -> dict[str, Any]:
    described = json.loads((folder.path / "dataset.json").read_text(encoding="utf-8"))
    split = json.loads((folder.path / "split.json").read_text(encoding="utf-8"))
    counts = dict(described.get("counts") or {})
    counts["items"] = len(folder.item_ids)
    for part, numbers in split["parts"].items():
        counts[f"sessions_{part}"] = numbers["sessions"]
        counts[f"interactions_{part}"] = numbers["interactions"]
    return {
        "name": folder.name,
        "counts": counts,
        "split": {"rule": split["rule"], "fingerprint": folder.split_fingerprint},
    }


def _environment() -> dict[str, Any]:
    found = {name: _version(name) for name in ("torch", "recbole", "transformers", "numpy")}
    return {
        "recbole-tpad": recbole_tpad.__version__,
        "python": platform.python_version(),
        **{name: version for name, version in found.items() if version is not None},
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


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
