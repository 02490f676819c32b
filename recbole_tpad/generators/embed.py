"""The `embed` command: data set folder + generator → store."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.files import write_json
from recbole_tpad.generators.base import RunRecord
from recbole_tpad.generators.registry import make_generator
from recbole_tpad.store import ItemEmbeddings, open_store, store_path, write_store


def embed(
    data_path: str | Path,
    dataset: str,
    generator: str,
    *,
    name: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ItemEmbeddings:
    """Make item embeddings and store them under ``<dataset folder>/embeddings/<name>/``.

    A store made from the same inputs is kept as it is; finished stages are reused. Of several
    processes (`accelerate launch`) the first one writes.

    Args:
        data_path: folder of data set folders.
        dataset: data set name.
        generator: preset name or YAML path.
        name: store name; default: the generator's.
        overrides: nested generator settings on top of the preset.

    Raises:
        InputError: unknown data set, generator or key; content the generator cannot work with.
    """
    made = make_generator(generator, overrides)
    folder = DatasetFolder.open(data_path, dataset)
    folder.verify_split()
    label = Path(generator).stem
    path = store_path(folder.path, name or label)
    inputs = made.fingerprint(folder)
    # Written last: a run killed before it is completed from its stages.
    if (path / "run.json").is_file():
        try:
            store = open_store(path)
            store.verify()
        except InputError:
            store = None
        if store is not None and store.manifest.inputs == dict(sorted(inputs.items())):
            return store
    started = time.perf_counter()
    record = RunRecord()
    encoded = made.generate(folder, folder.path / "stages", record)
    if not _first_process():
        return open_store(path)
    store = write_store(
        path,
        folder.item_ids,
        encoded.arrays,
        role=encoded.role,
        generator=label,
        dataset=folder.name,
        split_fingerprint=folder.split_fingerprint if encoded.uses_sessions else None,
        inputs=encoded.inputs,
    )
    run = {
        "generator": label,
        "seconds": time.perf_counter() - started,
        "stages": record.stages,
        "generation_rate": record.generation_rate,
        "warnings": record.warnings,
    }
    write_json(path / "run.json", run)
    _release_others()
    return store


def plan_embedding(
    data_path: str | Path,
    dataset: str,
    generator: str,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> list[str]:
    """Lines that say what `embed` would take; nothing is loaded or written.

    Raises:
        InputError: as for `embed`, and for a generator that has no plan.
    """
    made = make_generator(generator, overrides)
    plan = getattr(made, "plan", None)
    if plan is None:
        raise InputError(f"Generator '{generator}' has no plan: it takes seconds; run it.")
    lines: list[str] = plan(DatasetFolder.open(data_path, dataset))
    return lines


def _first_process() -> bool:
    """Whether this process writes; another one waits until it has."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from recbole_tpad.stages.processes import processes

    if not processes().first:
        processes().wait()
        return False
    return True


def _release_others() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from recbole_tpad.stages.processes import processes

        processes().wait()


def read_run(store: ItemEmbeddings) -> dict[str, Any]:
    """Return ``run.json`` beside a store's manifest, empty if there is none."""
    file = store.path / "run.json"
    if not file.is_file():
        return {}
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
