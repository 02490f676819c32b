"""The parts of results.json: rows, comparisons, data set, environment."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

import recbole_tpad
from recbole_tpad.data import DatasetFolder
from recbole_tpad.evaluation.statistics import Group, comparisons, gains
from recbole_tpad.evaluation.suite import RunSpec, parts_of
from recbole_tpad.results import WARM_FROM

ROW_KEYS = (
    "metrics",
    "valid",
    "slices",
    "adjustments",
    "seconds",
    "latency_ms",
    "peak_mb",
    "loss",
    "parameters",
    "epochs",
    "best_epoch",
    "curve",
    "mask_history",
    "item_spaces",
    "rerank",
)
# Lower limits of the bins of training interactions; 0 is an unseen target.
FREQUENCIES = (0, 1, 3, WARM_FROM, 10, 20, 50)


def row(spec: RunSpec, names: Mapping[str, str], outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's row of the results file.

    Args:
        spec: the run.
        names: the stores' names in the results.
        outcome: what the runner returned, or an ``error``.
    """
    found = {
        "model": spec.row_model,
        "variant": spec.variant,
        "item_embeddings": label_of(spec.item_embeddings, names),
        "seed": spec.seed,
        **{key: _finite(outcome.get(key)) for key in ROW_KEYS},
        "error": outcome.get("error"),
    }
    lost = [name for name, value in (found["metrics"] or {}).items() if value is None]
    if found["error"] is None and (lost or not found["metrics"]):
        found["error"] = f"The run reported no finite value for {', '.join(lost) or 'any metric'}."
    if found["error"] is not None:
        found["metrics"] = None
    elif outcome.get("ranks"):
        found["by_frequency"] = by_frequency(outcome["ranks"], outcome["target_counts"])
    return found


def label_of(item_embeddings: str | None, names: Mapping[str, str]) -> str | None:
    """Return the name of item embeddings in the results, of "a+b" the parts' names joined."""
    parts = [names.get(part, part) for part in parts_of(item_embeddings)]
    return "+".join(parts) if parts else None


def by_frequency(ranks: Sequence[int], counts: Sequence[int]) -> list[dict[str, Any]]:
    """Return HR@10 and NDCG@10 by how often the target occurs in training.

    Args:
        ranks: of each test row's target.
        counts: training interactions of it.

    Returns:
        Entries ``from``, ``to`` (None: no limit), ``rows``, ``HR@10``, ``NDCG@10``, without empty
        ones.
    """
    rank, count = np.asarray(ranks), np.asarray(counts)
    found = []
    for low, high in zip(FREQUENCIES, (*FREQUENCIES[1:], None), strict=True):
        inside = (count >= low) & (True if high is None else count < high)
        if inside.any():
            of_bin = {m: float(gains(rank[inside], m).mean()) for m in ("HR@10", "NDCG@10")}
            to = None if high is None else high - 1
            found.append({"from": low, "to": to, "rows": int(inside.sum()), **of_bin})
    return found


def compared(
    specs: Sequence[RunSpec],
    names: Mapping[str, str],
    outcomes: Sequence[Mapping[str, Any]],
    reference: str | None = None,
) -> list[dict[str, Any]]:
    """Return differences with intervals, over all test rows and over rare and unseen targets.

    Args:
        specs, outcomes: the runs and what they returned.
        names: the stores' names in the results.
        reference: item embeddings that the others are compared with, too.
    """
    ranks: dict[Group, list[npt.NDArray[np.int64]]] = {}
    valid: dict[Group, list[float]] = {}
    own: dict[Group, tuple[Group, Group]] = {}
    counts = np.zeros(0, dtype=np.int64)
    for spec, outcome in zip(specs, outcomes, strict=True):
        if outcome.get("error") is not None or not outcome.get("ranks"):
            continue
        group = (spec.row_model, label_of(spec.item_embeddings, names))
        own[group] = (spec.row_model, None), (spec.model, None)
        ranks.setdefault(group, []).append(np.array(outcome["ranks"]))
        valid.setdefault(group, []).append(float((outcome.get("valid") or {})["NDCG@10"]))
        counts = np.array(outcome["target_counts"])
    # The same variant without embeddings, or where the suite has no such row, the plain model.
    plain = {
        group: variant if variant in ranks else model
        for group, (variant, model) in own.items()
        if group[1] is not None and (variant in ranks or model in ranks)
    }
    usual = label_of(reference, names)
    references = {
        group: (group[0], usual)
        for group in ranks
        if usual is not None and group[1] not in (None, usual) and (group[0], usual) in ranks
    }
    chosen = {group: statistics.fmean(values) for group, values in valid.items()}
    parts = {"all": np.ones(len(counts), dtype=bool), "rare and unseen": counts < WARM_FROM}
    return [
        {"targets": name, **entry}
        for name, mask in parts.items()
        if mask.any()
        for entry in comparisons(
            {g: [r[mask] for r in rows] for g, rows in ranks.items()}, chosen, plain, references
        )
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


def dataset_entry(folder: DatasetFolder) -> dict[str, Any]:
    """Return what the results say about the data set."""
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


def environment() -> dict[str, Any]:
    """Return the versions and the platform of the runs."""
    found = {name: version(name) for name in ("torch", "recbole", "transformers", "numpy")}
    return {
        "recbole-tpad": recbole_tpad.__version__,
        "python": platform.python_version(),
        **{name: version for name, version in found.items() if version is not None},
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def version(name: str) -> str | None:
    """Return the installed version of a distribution, None if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
