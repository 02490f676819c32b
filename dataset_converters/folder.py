"""Writes a data set folder: RecBole's files, item content, the split and their fingerprints."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dataset_converters.errors import InputError
from dataset_converters.files import atomic_folder, sha256_file, write_json
from dataset_converters.item_content import ITEM_COUNTS, ITEM_HEADER, ItemRow, item_row
from dataset_converters.item_content import ItemContent as ItemContent
from dataset_converters.reading import Rejection, SourceFile
from dataset_converters.split import PARTS, Split, SplitRule, cut_parts, split_sha256

FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Read as "no value" by pandas, which RecBole reads its files with.
READ_AS_MISSING = frozenset(
    {"#N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A"}
    | {"NA", "NULL", "NaN", "None", "n/a", "nan", "null", "[PAD]"}
)

Sessions = Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class FilterStep:
    """What one filter left over, for the report and for explaining an empty result."""

    filter: str
    sessions_left: int | None
    interactions_left: int
    interactions_removed: int


@dataclass
class Funnel:
    """The filters applied so far and what each of them removed."""

    interactions: int
    steps: list[FilterStep] = field(default_factory=list)

    def step(self, name: str, interactions: int, sessions: int | None = None) -> None:
        """Record a filter's result.

        Raises:
            InputError: nothing is left (every step so far is listed).
        """
        removed = self.interactions - interactions
        self.steps.append(FilterStep(name, sessions, interactions, removed))
        self.interactions = interactions
        if interactions == 0:
            told = "; ".join(
                f"{s.filter}: {s.interactions_removed} removed, {s.interactions_left} left"
                for s in self.steps
            )
            raise InputError(f"No interaction is left after the filters ({told}). Loosen them.")


@dataclass(frozen=True)
class Conversion:
    """Everything a data set folder is written from."""

    name: str
    release: str
    sessions: str
    split_rule: SplitRule | Literal["given"]
    split: Split
    contents: Mapping[str, ItemContent]
    sources: Sequence[SourceFile]
    options: Mapping[str, Any]
    counts: Mapping[str, int]
    filters: Sequence[FilterStep]
    augment: bool = True
    max_len: int = 50
    rejections: Sequence[Rejection] = ()


@dataclass(frozen=True, slots=True)
class ConversionSummary:
    """What a conversion wrote; `counts` are those of ``dataset.json``.

    `truncated` are the sources of which only a part could be read.
    """

    name: str
    path: Path
    counts: dict[str, int]
    filters: tuple[FilterStep, ...]
    truncated: tuple[SourceFile, ...] = ()


def check_id(value: str, kind: str, where: str) -> None:
    """Refuse an id that RecBole's files cannot carry.

    Raises:
        InputError: white space, a double quote, or a word that is read as a missing value.
    """
    unpaired = value.encode("utf-8", "ignore").decode() != value
    if value.split() != [value] or '"' in value or unpaired:
        raise InputError(
            f"{where}: the {kind} {value!r} is empty or has white space, a double quote or half a "
            "character in it, which RecBole's files cannot carry. Rename it in the source."
        )
    if value in READ_AS_MISSING:
        raise InputError(
            f"{where}: the {kind} {value!r} is read as a missing value by RecBole's file reader. "
            "Rename it in the source."
        )


def target_path(data_path: Path, name: str, *, overwrite: bool) -> Path:
    """Return the folder to write, before any work is done.

    Raises:
        InputError: `name` cannot be a folder name, or the folder exists and `overwrite` is false.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"The data set name {name!r} may have letters, digits, '.', '_' and '-' only, and "
            "starts with a letter or digit."
        )
    path = data_path / name
    if path.exists() and not overwrite:
        raise InputError(
            f"{path} exists already. Choose another data set name, or replace it with --overwrite."
        )
    return path


def write_folder(conversion: Conversion, data_path: Path, *, overwrite: bool) -> ConversionSummary:
    """Write ``<data_path>/<name>/`` as a whole or not at all.

    Raises:
        InputError: see `target_path`.
    """
    path = target_path(data_path, conversion.name, overwrite=overwrite)
    parts = cut_parts(conversion.split, max_len=conversion.max_len, augment=conversion.augment)
    in_train = {item for _, session in parts["train"] for item in session}
    with atomic_folder(path) as folder:
        item_ids, counts = _write_interactions(folder / f"{conversion.name}.inter", conversion)
        for part in PARTS:
            counts |= _write_part(folder, conversion, part, parts[part], in_train)
        items = (conversion.contents.get(i, ItemContent(i)) for i in item_ids)
        counts |= write_items(folder, conversion.name, map(item_row, items))
        counts["items_in_train"] = len(in_train)
        longest = max(len(items) for sessions in parts.values() for _, items in sessions)
        write_split_json(
            folder,
            rule=conversion.split_rule,
            sessions=conversion.sessions,
            augmented=conversion.augment,
            max_len=min(conversion.max_len, longest - 1),
            counts=counts,
            fingerprints={part: split_sha256(sessions) for part, sessions in parts.items()},
        )
        write_rejections(folder, conversion.rejections)
        counts = {**conversion.counts, **counts}
        write_dataset_json(
            folder,
            name=conversion.name,
            release=conversion.release,
            sources=conversion.sources,
            options=conversion.options,
            filters=conversion.filters,
            counts=counts,
        )
    return ConversionSummary(conversion.name, path, counts, tuple(conversion.filters))


def write_rejections(folder: Path, rejections: Sequence[Rejection]) -> None:
    """Write ``rejected.jsonl`` where there is anything to say."""
    if rejections:
        _write_jsonl(folder / "rejected.jsonl", map(asdict, rejections))


def write_dataset_json(
    folder: Path,
    *,
    name: str,
    release: str,
    sources: Sequence[SourceFile],
    options: Mapping[str, Any],
    filters: Sequence[FilterStep],
    counts: Mapping[str, int],
) -> None:
    """Write ``dataset.json``, last: it holds the hashes of the other files."""
    files = {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
    write_json(
        folder / "dataset.json",
        {
            "format": FORMAT,
            "name": name,
            "source": {"release": release, "files": [asdict(source) for source in sources]},
            "options": dict(options),
            "filters": [asdict(step) for step in filters],
            "counts": dict(counts),
            "files": files,
        },
    )


def write_split_json(
    folder: Path,
    *,
    rule: str,
    sessions: str,
    augmented: bool,
    max_len: int,
    counts: Mapping[str, int],
    fingerprints: Mapping[str, str],
) -> None:
    """Write ``split.json``.

    Args:
        max_len: of the longest list in the files. Models pad every list to it, and 50 positions
            for sessions of eight items cost sixfold.
        counts: of the folder; its sessions and interactions a part are used.
        fingerprints: of each part.
    """
    write_json(
        folder / "split.json",
        {
            "format": FORMAT,
            "rule": rule,
            "sessions": sessions,
            "augmented": augmented,
            "max_len": max_len,
            "parts": {
                part: {
                    "sessions": counts[f"sessions_{part}"],
                    "interactions": counts[f"interactions_{part}"],
                    "sha256": fingerprints[part],
                }
                for part in PARTS
            },
            "items": counts["items"],
            "items_in_train": counts["items_in_train"],
        },
    )


def _write_interactions(path: Path, conversion: Conversion) -> tuple[list[str], dict[str, int]]:
    """Write every kept interaction; return the sorted item ids and counts."""
    occurring: set[str] = set()
    owners: set[int] = set()
    counts = dict.fromkeys(
        ("sessions", "interactions", "sessions_with_repeated_item", "sessions_with_one_time"), 0
    )
    timed = conversion.split.everything[0].table.times is not None
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.write("session_id:token\titem_id:token" + ("\ttimestamp:float" * timed) + "\n")
        for part in conversion.split.everything:
            for index in part.indices.tolist():
                session_id = part.table.session_id(index)
                items = part.table.session_items(index)
                times = part.table.session_times(index)
                if times is None:
                    lines = [f"{session_id}\t{item}\n" for item in items]
                else:
                    rows = zip(items, times, strict=True)
                    lines = [f"{session_id}\t{item}\t{time}\n" for item, time in rows]
                    counts["sessions_with_one_time"] += len(set(times)) == 1
                out.writelines(lines)
                owners.add(int(part.table.owners[index]))
                occurring.update(items)
                counts["sessions"] += 1
                counts["interactions"] += len(items)
                counts["sessions_with_repeated_item"] += len(set(items)) < len(items)
    counts["users"] = len(owners)
    counts["items"] = len(occurring)
    return sorted(occurring), counts


def _write_part(
    folder: Path, conversion: Conversion, part: str, sessions: Sessions, in_train: Container[str]
) -> dict[str, int]:
    """Write a part's benchmark file, and for valid and test the cold slice; return counts."""
    augment = conversion.augment and part == "train"
    path = folder / f"{conversion.name}.{part}.inter"
    rows = _write_benchmark(path, sessions, augment=augment, max_len=conversion.max_len)
    counts = {
        f"sessions_{part}": len(sessions),
        f"interactions_{part}": sum(len(items) for _, items in sessions),
        f"rows_{part}": rows,
        f"target_repeats_last_{part}": sum(items[-1] == items[-2] for _, items in sessions),
    }
    if part != "train":
        cold = [session for session in sessions if session[1][-1] not in in_train]
        path = folder / f"{conversion.name}.{part}-cold.inter"
        _write_benchmark(path, cold, augment=False, max_len=conversion.max_len)
        counts[f"rows_{part}_cold"] = len(cold)
    return counts


def _write_benchmark(path: Path, sessions: Sessions, *, augment: bool, max_len: int) -> int:
    """Write RecBole benchmark rows, lists cut to their last `max_len` items; return their number.

    RecBole itself keeps the first entries of an over-long list, hence the cut here.
    """
    rows = 0
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.write(BENCHMARK_HEADER)
        for session_id, items in sessions:
            for target in range(1 if augment else len(items) - 1, len(items)):
                context = " ".join(items[max(0, target - max_len) : target])
                out.write(f"{session_id}\t{context}\t{items[target]}\n")
                rows += 1
    return rows


BENCHMARK_HEADER = "session_id:token\titem_id_list:token_seq\titem_id:token\n"


def write_items(folder: Path, name: str, rows: Iterable[ItemRow]) -> dict[str, int]:
    """Write ``items.jsonl`` and the ``.item`` file; return how many items have what."""
    seen: Counter[str] = Counter()
    with (
        (folder / "items.jsonl").open("w", encoding="utf-8", newline="\n") as contents,
        (folder / f"{name}.item").open("w", encoding="utf-8", newline="\n") as features,
    ):
        features.write(ITEM_HEADER)
        for present, cells, line in rows:
            contents.write(line + "\n")
            features.write(cells + "\n")
            seen[present] += 1
    return {
        count: sum(n for present, n in seen.items() if present[place] == "1")
        for place, count in enumerate(ITEM_COUNTS)
    }


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
