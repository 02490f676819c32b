"""The `embed` command: data set folder + generator → store."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.files import write_json
from recbole_tpad.generators.base import RunRecord
from recbole_tpad.generators.registry import make_generator
from recbole_tpad.store import ItemEmbeddings, open_store, store_path, write_store
from recbole_tpad.store.lock import writing
from recbole_tpad.store.shards import naming_disk_errors


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
    _check_division(made, generator)
    folder = DatasetFolder.open(data_path, dataset)
    folder.verify_split()
    label = Path(generator).stem
    path = store_path(folder.path, name or label)
    inputs = made.fingerprint(folder)
    with one_writer(path):
        store = _finished(path, inputs)
        if store is not None:
            return store
        started = time.perf_counter()
        record = RunRecord()
        encoded = made.generate(folder, folder.path / "stages", record)
        if not first_process():
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
            content=encoded.content,
            shard_items=encoded.shard_items,
        )
        run = {
            "generator": label,
            "seconds": time.perf_counter() - started,
            "stages": record.stages,
            "generation_rate": record.generation_rate,
            "warnings": record.warnings,
        }
        write_run(store, run, encoded.scratch)
    release_others()
    return store


def _finished(path: Path, inputs: Mapping[str, str]) -> ItemEmbeddings | None:
    """The store, if it is there and whole and was made from these inputs."""
    # run.json is written last: a run killed before it is completed from its stages.
    if not (path / "run.json").is_file():
        return None
    try:
        store = open_store(path)
        if store.manifest.inputs != dict(sorted(inputs.items())):
            return None
        store.verify()
    except InputError:
        return None
    return store


def write_run(store: ItemEmbeddings, run: Mapping[str, Any], scratch: Path | None) -> None:
    """Write ``run.json``, the last file of a store, and remove what it was made from."""
    with naming_disk_errors(store.path / "run.json"):
        write_json(store.path / "run.json", run)
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """Of this and other commands one at a time writes a store; processes of one launcher share.

    Raises:
        InputError: another command is writing it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with writing(path):
        yield


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


def first_process() -> bool:
    """Whether this process writes; another one waits until it has."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from recbole_tpad.stages.processes import processes

    if not processes().first:
        processes().wait()
        return False
    return True


def _check_division(generator: object, name: str) -> None:
    """Refuse FSDP where a generator would not heed it: its user counts on the memory."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    from recbole_tpad.stages.processes import processes

    if processes().divide and not getattr(generator, "divides_base", False):
        raise InputError(
            f"FSDP is asked for, but generator '{name}' does not divide its model. Use a plain "
            "multi-process configuration (MULTI_GPU, MULTI_CPU)."
        )


def release_others() -> None:
    """Let the other processes of a launcher go on, once the store is there."""
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
