"""Converts Amazon product reviews (2018 release, as published) to a data set folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from dataset_converters.amazon_records import MetadataRead, read_metadata, read_reviews
from dataset_converters.errors import InputError, nearest
from dataset_converters.folder import (
    Conversion,
    ConversionSummary,
    Funnel,
    ItemContent,
    target_path,
    write_folder,
)
from dataset_converters.reading import RejectionLog
from dataset_converters.sessions import (
    SESSION_RULES,
    Interactions,
    SessionRule,
    SessionTable,
    build_sessions,
)
from dataset_converters.split import (
    SPLIT_RULES,
    Split,
    SplitRule,
    split_dimo,
    split_leave_one_out,
    split_temporal,
)

RELEASES = ("2018",)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class AmazonOptions:
    """Filters and split of a conversion, every default resolved; recorded in ``dataset.json``.

    Attributes:
        drop_repeats: keep one of several reviews of one item by one user at one time stamp.
        needs_text: drop items without title, brand or category.
        needs_image: drop items without an image URL (high resolution, where the metadata tells).
        min_session_length: drop shorter sessions, before and after the item filter.
        min_item_count: drop items with fewer interactions in the remaining sessions, once.
        max_session_length: keep the first so many interactions of a session; None: all.
        augment: one training row for every prefix of a session instead of one a session.
        max_len: most context items in a row; the last ones are kept.
        train_share, valid_share: of the sessions under "temporal". Under "dimo", `valid_share` of
            the published training sessions become the validation part.
    """

    release: str
    sessions: SessionRule
    split: SplitRule
    drop_repeats: bool
    needs_text: bool
    needs_image: bool
    min_session_length: int
    min_item_count: int
    max_session_length: int | None
    augment: bool
    max_len: int
    train_share: float
    valid_share: float
    allow_truncated: bool
    max_rejected: float

    def __post_init__(self) -> None:
        _known("release", self.release, RELEASES)
        _known("sessions", self.sessions, SESSION_RULES)
        _known("split", self.split, SPLIT_RULES)
        longest = self.max_session_length
        if self.min_session_length < 2:
            raise InputError("min_session_length must be at least 2: a context item and a target.")
        if longest is not None and longest < self.min_session_length:
            raise InputError(
                f"max_session_length={longest} is below min_session_length="
                f"{self.min_session_length}: no session can remain."
            )
        if self.min_item_count < 1 or self.max_len < 1:
            raise InputError("min_item_count and max_len must be at least 1.")
        if not 0 <= self.max_rejected < 1:
            raise InputError(f"max_rejected={self.max_rejected} must lie in [0, 1).")


def _known(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(
            f"Unknown {option} '{value}'.{nearest(value, known)} Known: {', '.join(known)}."
        )


def convert_amazon(
    name: str,
    reviews: Path,
    meta: Path,
    data_path: Path,
    *,
    release: str = "2018",
    sessions: SessionRule | None = None,
    split: SplitRule = "temporal",
    drop_repeats: bool | None = None,
    needs_text: bool | None = None,
    needs_image: bool | None = None,
    min_session_length: int = 2,
    min_item_count: int | None = None,
    max_session_length: int | None = None,
    augment: bool | None = None,
    max_len: int = 50,
    train_share: float = 0.8,
    valid_share: float = 0.1,
    allow_truncated: bool = False,
    max_rejected: float = 0.01,
    overwrite: bool = False,
) -> ConversionSummary:
    """Convert a reviews and a metadata file to ``<data_path>/<name>/``.

    Options left at None follow the split rule. "dimo" is the published recipe (DIMO, SIGIR 2024):
    sessions "first-day", items with text and image, 5 interactions an item, the first 20 of a
    session, repeats kept, no augmentation. Otherwise nothing is filtered but repeats, and training
    sessions are augmented; sessions are "user" under "leave-one-out", else "first-day". See
    `AmazonOptions` for each option. Equal input and options give equal bytes.

    Args:
        reviews, meta: gzipped or plain JSON lines (told by content).
        max_session_length: None: 20 under "dimo", else no limit.
        allow_truncated: use the readable part of a cut gzip stream.
        max_rejected: largest share of unusable lines, which go to ``rejected.jsonl``.
        overwrite: replace an existing folder.

    Raises:
        InputError: unusable file, option or id, nothing left after the filters (each filter's
            share is told), too few sessions for the split, or an existing folder.
    """
    paper = split == "dimo"
    options = AmazonOptions(
        release=release,
        sessions=sessions or ("user" if split == "leave-one-out" else "first-day"),
        split=split,
        drop_repeats=_or(drop_repeats, not paper),
        needs_text=_or(needs_text, paper),
        needs_image=_or(needs_image, paper),
        min_session_length=min_session_length,
        min_item_count=_or(min_item_count, 5 if paper else 1),
        max_session_length=20 if paper and max_session_length is None else max_session_length,
        augment=_or(augment, not paper),
        max_len=max_len,
        train_share=train_share,
        valid_share=valid_share,
        allow_truncated=allow_truncated,
        max_rejected=max_rejected,
    )
    target_path(data_path, name, overwrite=overwrite)
    rejections = RejectionLog(limit=max_rejected)
    read = read_reviews(reviews, rejections, allow_truncated=allow_truncated)
    metadata = read_metadata(
        meta, set(read.interactions.item_ids), rejections, allow_truncated=allow_truncated
    )
    funnel = Funnel(len(read.interactions.items))
    kept = filter_items(read.interactions, metadata.contents, options, funnel)
    table = filter_sessions(build_sessions(kept, options.sessions), options, funnel)
    conversion = Conversion(
        name=name,
        release=release,
        sessions=options.sessions,
        split_rule=options.split,
        split=split_sessions(table, options),
        contents=metadata.contents,
        sources=(read.source, metadata.source),
        options=asdict(options),
        counts=_read_counts(read.lines, read.interactions, metadata, rejections),
        filters=funnel.steps,
        augment=options.augment,
        max_len=options.max_len,
        rejections=rejections.entries,
    )
    return write_folder(conversion, data_path, overwrite=overwrite)


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _read_counts(
    lines: int, interactions: Interactions, metadata: MetadataRead, rejections: RejectionLog
) -> dict[str, int]:
    return {
        "review_lines": lines,
        "reviews_read": len(interactions.items),
        "users_read": len(interactions.user_ids),
        "items_read": len(interactions.item_ids),
        "metadata_records": metadata.records,
        "metadata_duplicates": metadata.duplicates,
        "items_without_metadata": len(interactions.item_ids) - len(metadata.contents),
        "titles_of_page_source": metadata.page_source_titles,
        "lines_rejected": len(rejections.entries),
    }


def filter_items(
    interactions: Interactions,
    contents: Mapping[str, ItemContent],
    options: AmazonOptions,
    funnel: Funnel,
) -> Interactions:
    """Drop repeated reviews, and items without the content asked for, before sessions are cut."""
    if options.drop_repeats:
        interactions = interactions.without_repeats()
        funnel.step("drop_repeats", len(interactions.items))
    if options.needs_text:
        interactions = _keep_items(interactions, contents, _has_text)
        funnel.step("needs_text", len(interactions.items))
    if options.needs_image:
        interactions = _keep_items(interactions, contents, lambda item: item.has_large_image)
        funnel.step("needs_image", len(interactions.items))
    return interactions


def _has_text(item: ItemContent) -> bool:
    return bool(item.title and item.brand and item.category)


def _keep_items(
    interactions: Interactions,
    contents: Mapping[str, ItemContent],
    wanted: Callable[[ItemContent], bool],
) -> Interactions:
    flags = [asin in contents and wanted(contents[asin]) for asin in interactions.item_ids]
    return interactions.keep(np.array(flags, dtype=np.bool_)[interactions.items])


def filter_sessions(table: SessionTable, options: AmazonOptions, funnel: Funnel) -> SessionTable:
    """Apply the length and count filters in the published order.

    Short sessions, then rare items (once), then sessions that became short, then the length cut.
    """
    funnel.step(f"sessions={options.sessions}", len(table.items), len(table))
    shortest = options.min_session_length
    table = table.keep_sessions(table.lengths >= shortest)
    funnel.step(f"min_session_length={shortest}", len(table.items), len(table))
    if options.min_item_count > 1:
        table = table.keep_items(table.item_counts() >= options.min_item_count)
        funnel.step(f"min_item_count={options.min_item_count}", len(table.items), len(table))
        table = table.keep_sessions(table.lengths >= shortest)
        funnel.step(f"min_session_length={shortest}", len(table.items), len(table))
    if options.max_session_length is not None:
        table = table.first(options.max_session_length)
        name = f"max_session_length={options.max_session_length}"
        funnel.step(name, len(table.items), len(table))
    return table


def split_sessions(table: SessionTable, options: AmazonOptions) -> Split:
    """Split by the rule of `options`."""
    if options.split == "leave-one-out":
        return split_leave_one_out(table)
    if options.split == "dimo":
        return split_dimo(table, valid_share=options.valid_share)
    return split_temporal(table, train_share=options.train_share, valid_share=options.valid_share)
