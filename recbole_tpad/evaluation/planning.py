"""What a suite still has to run, and how long that takes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_tpad.evaluation.suite import RunSpec


def read_outcome(path: Path) -> dict[str, Any] | None:
    """Return a run's outcome; None if it is absent or damaged, so that the run is made again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def finished(path: Path) -> dict[str, Any] | None:
    """Return the outcome of a run that ended well, else None."""
    outcome = read_outcome(path)
    return outcome if outcome is not None and outcome.get("error") is None else None


def seconds_by_model(runs: Path) -> dict[str, list[float]]:
    """Return how long the finished runs in a folder took, by model."""
    found: dict[str, list[float]] = {}
    for file in sorted(runs.glob("*.json")):
        outcome = finished(file) or {}
        if isinstance(outcome.get("seconds"), int | float) and "model" in outcome:
            found.setdefault(str(outcome["model"]), []).append(float(outcome["seconds"]))
    return found


def expected_seconds(
    models: Sequence[str], known: Mapping[str, Sequence[float]], jobs: int
) -> float | None:
    """Estimate the time of further runs: the model's mean so far, or that of all models.

    Args:
        models: of each further run.
        known: seconds of runs so far, by model.
        jobs: runs at a time.

    Returns:
        Seconds; None where there is nothing to run or nothing to go by.
    """
    if not models or not known:
        return None
    overall = statistics.fmean(seconds for values in known.values() for seconds in values)
    each = {model: statistics.fmean(values) for model, values in known.items()}
    return sum(each.get(model, overall) for model in models) / min(jobs, len(models))


def in_words(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def planned(
    specs: Sequence[RunSpec],
    done: Sequence[bool],
    made: Mapping[str, bool],
    known: Mapping[str, Sequence[float]],
    jobs: int,
) -> str:
    """Return the plan of a suite as text.

    Args:
        specs, done: the runs, and which of them need not be made again.
        made: stores the suite makes, and whether they are there (an outdated one is made anew).
        known: seconds of earlier runs on the data set, by model.
        jobs: runs at a time.
    """
    lines = [
        f"item embeddings {name}: {'there' if there else 'to make'}" for name, there in made.items()
    ]
    rows: dict[tuple[str, str | None], list[bool]] = {}
    for spec, is_done in zip(specs, done, strict=True):
        rows.setdefault((spec.row_model, spec.item_embeddings), []).append(is_done)
    for (model, store), runs in rows.items():
        state = "done" if all(runs) else f"{sum(runs)} of {len(runs)} runs done"
        lines.append(f"{model} + {store or 'none'}: {state}")
    left = [spec.model for spec, is_done in zip(specs, done, strict=True) if not is_done]
    lines.append(f"{len(specs)} runs, {len(specs) - len(left)} done, {len(left)} to run.")
    unknown = sorted({model for model in left if model not in known})
    seconds = expected_seconds(left, known, jobs)
    if seconds is not None:
        guess = f"; guessed for {', '.join(unknown)}, which have not run here" if unknown else ""
        lines.append(f"Expected time: {in_words(seconds)} with {jobs} at a time{guess}.")
    elif left:
        lines.append("Expected time: unknown, nothing has run on this data set yet.")
    return "\n".join(lines)
