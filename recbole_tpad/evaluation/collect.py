"""What the results file says about a store's generator: costs, histories, generation rate, map."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_tpad.errors import InputError
from recbole_tpad.evaluation.projection import Labelled, item_map
from recbole_tpad.files import sha256_json, write_json
from recbole_tpad.store.item_embeddings import ItemEmbeddings


def generator_entry(
    store: ItemEmbeddings, items: Sequence[Labelled], cache: Path
) -> dict[str, Any]:
    """Return a store's entry under `generators` in the results file.

    The generator's own account is `run.json` in the store's folder. A store without one (imported
    vectors) gets an entry with the manifest's generator name and no stages.

    Args:
        store: the item embeddings.
        items: the catalogue, for the map's titles and categories.
        cache: folder that keeps computed maps, by content.

    Raises:
        InputError: a `run.json` that is not a JSON object.
    """
    file = store.path / "run.json"
    told: dict[str, Any] = {}
    if file.exists():
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"Cannot read {file}: {error}. Delete it, or make the store anew with "
                "`recbole-tpad embed`."
            ) from error
        if not isinstance(told, dict):
            raise InputError(f"{file} must hold a JSON object. Delete it or make the store anew.")
    return {
        "generator": told.get("generator") or store.manifest.generator,
        "seconds": told.get("seconds"),
        "stages": told.get("stages") or [],
        "generation_rate": told.get("generation_rate"),
        "warnings": told.get("warnings") or [],
        "map": _cached_map(store, items, cache),
    }


def _cached_map(
    store: ItemEmbeddings, items: Sequence[Labelled], cache: Path
) -> dict[str, Any] | None:
    # Titles and categories are part of the map, so they are part of its name.
    shown = [[item.item_id, item.title, item.category] for item in items]
    file = cache / f"map-{sha256_json([store.sha256, shown])[:16]}.json"
    if file.exists():
        content: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8"))
        return content
    made = item_map(store, items)
    write_json(file, made)
    return made
