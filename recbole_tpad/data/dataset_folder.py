"""A data set folder as the later stages see it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from dataset_converters.images import read_records
from dataset_converters.reading import read_jsonl
from dataset_converters.split import PARTS, split_sha256
from recbole_tpad.data.item import Item
from recbole_tpad.errors import InputError, nearest

FORMAT = 1
_COLUMNS = ["session_id:token", "item_id_list:token_seq", "item_id:token"]


class DatasetFolder:
    """Items, sessions and split of ``<data_path>/<name>/``; never writes. Made by `open`."""

    def __init__(self, path: Path, name: str, split: dict[str, Any]) -> None:
        self.path = path
        self.name = name
        self._split = split

    @classmethod
    def open(cls, data_path: str | Path, name: str) -> DatasetFolder:
        """Open a data set folder.

        Raises:
            InputError: no such folder (the nearest known name is suggested), another format, or a
                missing file.
        """
        path = Path(data_path) / name
        if not (path / "dataset.json").is_file():
            known = sorted(p.parent.name for p in Path(data_path).glob("*/dataset.json"))
            raise InputError(
                f"No data set '{name}' in {data_path}.{nearest(name, known)} "
                + (f"Known: {', '.join(known)}." if known else "Convert one first.")
            )
        for file in ("dataset.json", "split.json"):
            found = _read_json(path / file).get("format")
            if found != FORMAT:
                raise InputError(
                    f"{path / file} has format {found!r}; this version reads format {FORMAT}. "
                    "Convert the data set again."
                )
        folder = cls(path, name, _read_json(path / "split.json"))
        needed = ["items.jsonl", *(f"{name}.{part}.inter" for part in PARTS)]
        absent = [file for file in needed if not (path / file).is_file()]
        if absent:
            raise InputError(f"{path} lacks {', '.join(absent)}. Convert the data set again.")
        return folder

    @property
    def split_fingerprint(self) -> str:
        """SHA-256 of the training part, as recorded in ``split.json``."""
        return self._part("train")["sha256"]  # type: ignore[no-any-return]  # from JSON

    @cached_property
    def items(self) -> list[Item]:
        """Every item of the data set, sorted by id, with its image and keywords where there are.

        Raises:
            InputError: a damaged or incomplete line.
        """
        images = read_records(self.path)
        keywords = self._keywords()
        items = []
        for number, record in read_jsonl(self.path / "items.jsonl"):
            try:
                item_id = record["item_id"]
                image = images.get(item_id)
                shown = image is not None and image["status"] == "ok"
                items.append(
                    Item(
                        item_id=item_id,
                        title=record["title"],
                        brand=record["brand"],
                        category=record["category"],
                        description=record["description"],
                        price=record["price"],
                        image=self.path / image["file"] if image and shown else None,
                        keywords=keywords.get(item_id, ()),
                        features=tuple(record.get("features", ())),
                        category_path=tuple(record.get("category_path", ())),
                    )
                )
            except KeyError as error:
                raise InputError(
                    f"{self.path / 'items.jsonl'}, line {number}: no key {error}."
                ) from error
        return items

    @cached_property
    def item_ids(self) -> list[str]:
        """Ids of `items`, in the same order."""
        return [item.item_id for item in self.items]

    def train_sessions(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (session id, item ids) of the training part, in file order."""
        return self.sessions("train")

    def sessions(self, part: str) -> Iterator[tuple[str, list[str]]]:
        """Yield (session id, item ids) of "train", "valid" or "test", in file order.

        A session is its first row's list followed by the target of each of its rows; so for valid
        and test it is the context and the target.

        Raises:
            InputError: an unknown part, or a row that has not three columns.
        """
        self._part(part)
        return self._sessions(self.path / f"{self.name}.{part}.inter")

    def _sessions(self, path: Path) -> Iterator[tuple[str, list[str]]]:
        current: str | None = None
        items: list[str] = []
        with path.open(encoding="utf-8", newline="\n") as rows:
            header = next(rows, "").rstrip("\n").split("\t")
            if header != _COLUMNS:
                raise InputError(f"{path}: the header must be {', '.join(_COLUMNS)}.")
            for number, row in enumerate(rows, start=2):
                cells = row.rstrip("\n").split("\t")
                if len(cells) != len(_COLUMNS):
                    raise InputError(f"{path}, line {number}: {len(cells)} columns, not 3.")
                session_id, context, target = cells
                if session_id != current:
                    if current is not None:
                        yield current, items
                    current, items = session_id, context.split(" ")
                items.append(target)
        if current is not None:
            yield current, items

    def train_item_counts(self) -> Counter[str]:
        """Return the number of training interactions of each item that has any."""
        counts: Counter[str] = Counter()
        for _, items in self.train_sessions():
            counts.update(items)
        return counts

    def verify_split(self) -> None:
        """Recompute the training part's fingerprint from its file.

        Raises:
            InputError: the file is not the one that was written with ``split.json``.
        """
        found = split_sha256(self.train_sessions())
        if found != self.split_fingerprint:
            raise InputError(
                f"{self.path / f'{self.name}.train.inter'} does not match split.json (fingerprint "
                f"{found[:12]}…, recorded {self.split_fingerprint[:12]}…): the training part was "
                "changed after the conversion. Convert the data set again."
            )

    def _part(self, part: str) -> dict[str, Any]:
        parts: dict[str, dict[str, Any]] = self._split.get("parts", {})
        if part not in parts:
            raise InputError(
                f"{self.path / 'split.json'} has no part '{part}'.{nearest(part, parts)} "
                f"Known: {', '.join(parts)}."
            )
        return parts[part]

    def _keywords(self) -> dict[str, tuple[str, ...]]:
        path = self.path / "keywords.jsonl"
        if not path.is_file():
            return {}
        found: dict[str, tuple[str, ...]] = {}
        for number, record in read_jsonl(path):
            try:
                found[record["item_id"]] = tuple(record["keywords"])
            except KeyError as error:
                raise InputError(f"{path}, line {number}: no key {error}.") from error
        return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object.")
    return content
