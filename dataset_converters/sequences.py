"""Converts item sequences without time stamps (two JSON objects) to a data set folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from dataset_converters.errors import InputError
from dataset_converters.files import sha256_file
from dataset_converters.folder import (
    Conversion,
    ConversionSummary,
    Funnel,
    ItemContent,
    check_id,
    target_path,
    write_folder,
)
from dataset_converters.reading import SourceFile
from dataset_converters.sessions import SessionTable
from dataset_converters.split import split_leave_one_out
from dataset_converters.text import clean_name, clean_text, parse_price

# "Tapes, Adhesives & Sealants" is one name: only a comma without a space after it separates.
_CATEGORY_SEPARATOR = re.compile(r",(?=\S)")


def convert_sequences(
    name: str,
    interactions: Path,
    items: Path,
    data_path: Path,
    *,
    min_session_length: int = 2,
    augment: bool = True,
    max_len: int = 50,
    overwrite: bool = False,
) -> ConversionSummary:
    """Convert sequences to ``<data_path>/<name>/`` with a leave-one-out split.

    Args:
        interactions: a JSON object, user id → list of item ids in time order.
        items: a JSON object, item id → object with any of title, description, brand, price and
            categories (names separated by commas).
        min_session_length: drop shorter sequences.
        augment: one training row for every prefix instead of one a sequence.
        max_len: most context items in a row; the last ones are kept.

    Raises:
        InputError: unreadable or otherwise shaped file, an item without a record, an id RecBole
            cannot read, nothing left, or an existing folder.
    """
    if min_session_length < 2 or max_len < 1:
        raise InputError("min_session_length must be at least 2 and max_len at least 1.")
    target_path(data_path, name, overwrite=overwrite)
    records = _read_object(items)
    contents = {key: _content(key, value, items) for key, value in records.items()}
    table = _read_sequences(interactions, list(contents), items)
    funnel = Funnel(len(table.items))
    users_read, reviews_read = len(table), len(table.items)
    table = table.keep_sessions(table.lengths >= min_session_length)
    funnel.step(f"min_session_length={min_session_length}", len(table.items), len(table))
    conversion = Conversion(
        name=name,
        release="sequences",
        sessions="user",
        split_rule="leave-one-out",
        split=split_leave_one_out(table),
        contents=contents,
        sources=[_source(interactions), _source(items)],
        options={
            "min_session_length": min_session_length,
            "augment": augment,
            "max_len": max_len,
        },
        counts={
            "users_read": users_read,
            "items_read": len(contents),
            "interactions_read": reviews_read,
        },
        filters=funnel.steps,
        augment=augment,
        max_len=max_len,
    )
    return write_folder(conversion, data_path, overwrite=overwrite)


def _source(path: Path) -> SourceFile:
    return SourceFile(path.name, path.stat().st_size, sha256_file(path))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold one JSON object, not a {type(content).__name__}.")
    return content


def _content(item_id: str, record: Any, path: Path) -> ItemContent:
    check_id(item_id, "item id", str(path))
    if not isinstance(record, dict):
        raise InputError(f"{path}: item '{item_id}' is not an object with title, brand and so on.")

    def text(key: str) -> str:
        value = record.get(key)
        return value if isinstance(value, str) else ""

    names = (clean_name(part) for part in _CATEGORY_SEPARATOR.split(text("categories")))
    return ItemContent(
        item_id=item_id,
        title=clean_name(text("title")),
        brand=clean_name(text("brand")),
        category_path=tuple(part for part in names if part),
        description=clean_text(text("description")),
        price=parse_price(record.get("price")),
    )


def _read_sequences(path: Path, item_ids: list[str], items_path: Path) -> SessionTable:
    position = {item_id: index for index, item_id in enumerate(item_ids)}
    users: list[str] = []
    flat: list[int] = []
    offsets = [0]
    for user, sequence in _read_object(path).items():
        check_id(user, "user id", str(path))
        if not isinstance(sequence, list):
            raise InputError(f"{path}: user '{user}' has no list of item ids.")
        for item in sequence:
            index = position.get(str(item))
            if index is None:
                raise InputError(
                    f"{path}: user '{user}' has the item '{item}', which {items_path} lacks. "
                    "Add a record for it (an empty object will do)."
                )
            flat.append(index)
        users.append(user)
        offsets.append(len(flat))
    return SessionTable(
        user_ids=users,
        item_ids=item_ids,
        owners=np.arange(len(users)),
        days=None,
        offsets=np.array(offsets, dtype=np.int64),
        items=np.array(flat, dtype=np.int64),
        times=None,
    )
