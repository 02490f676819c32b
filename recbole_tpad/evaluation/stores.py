"""The item embeddings of a suite: those that are there, and those it makes itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.evaluation.suite import Suite
from recbole_tpad.generators.embed import embed
from recbole_tpad.generators.registry import make_generator
from recbole_tpad.store import ItemEmbeddings, open_store


def check_stores(suite: Suite, folder: Path) -> None:
    """Refuse a suite whose stores neither exist nor can be made, before anything runs.

    Args:
        suite: with its generators.
        folder: the data set's.

    Raises:
        InputError: an unknown store, an unknown generator, or settings it does not know.
    """
    made = suite.generators or {}
    for name in suite.stores():
        if name in made:
            preset, settings = _request(made[name])
            make_generator(preset, settings)
        else:
            _find(folder, name, list(made))


def prepare_stores(
    suite: Suite, data_path: str | Path, dataset: str, say: Callable[[str], None]
) -> tuple[dict[str, ItemEmbeddings], dict[str, str]]:
    """Make what the suite's generators make and open all of its stores.

    Returns:
        The stores by the name the suite uses, and what went wrong by the name of those that could
        not be made: their runs fail, the others go on.
    """
    folder = Path(data_path) / dataset
    made = suite.generators or {}
    stores: dict[str, ItemEmbeddings] = {}
    errors: dict[str, str] = {}
    # In the order of `generators`: a later one may shuffle an earlier one's vectors.
    for name in [n for n in made if n in _needed(suite)]:
        preset, settings = _request(made[name])
        say(f"item embeddings {name}")
        try:
            stores[name] = embed(data_path, dataset, preset, name=name, overrides=settings)
        except Exception as error:
            # A generator's failure, whatever it is, becomes the error of the rows that need it.
            errors[name] = f"Item embeddings '{name}' could not be made: {error}"
            say(f"FAILED: {errors[name]}")
    for name in suite.stores():
        if name not in made:
            stores[name] = open_store(_find(folder, name, list(made)))
    return stores, errors


def labels(stores: Mapping[str, ItemEmbeddings]) -> dict[str, str]:
    """Return the name each store has in the results: its folder's name, never a machine's path.

    Raises:
        InputError: two stores of one name.
    """
    found = {name: store.path.name for name, store in stores.items()}
    for name, label in found.items():
        twins = [other for other in found if found[other] == label and other != name]
        if twins:
            raise InputError(
                f"The stores '{name}' and '{twins[0]}' are both called '{label}': in the table "
                "they could not be told apart. Rename one folder."
            )
    return found


def _needed(suite: Suite) -> set[str]:
    """Stores that occur in rows, and those they are made from."""
    needed = set(suite.stores())
    for settings in (suite.generators or {}).values():
        if isinstance(settings.get("store"), str):
            needed.add(settings["store"])
    return needed


def _request(content: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    settings = dict(content)
    return str(settings.pop("generator")), settings


def _find(folder: Path, name: str, made: Sequence[str]) -> Path:
    """A store by its name inside the data set folder, or by path."""
    stored = folder / "embeddings"
    for path in (stored / name, Path(name)):
        if path.is_dir():
            open_store(path)
            return path
    there = sorted(p.name for p in stored.glob("*") if p.is_dir() and not p.name.startswith("."))
    known = [*there, *made]
    raise InputError(
        f"Data set '{folder.name}' has no item embeddings '{name}'.{nearest(name, known)} "
        f"It has: {', '.join(there) or 'none yet'}. Make them with "
        f"`recbole-tpad embed --dataset {folder.name} --generator …`, or name their generator "
        "under the suite's 'generators'."
    )
