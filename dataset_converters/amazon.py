"""Converts Amazon product reviews (releases of 2014, 2018 and 2023) to a data set folder."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from dataset_converters.amazon_detection import find_release
from dataset_converters.amazon_records import Release
from dataset_converters.database import MEMORY, Database, open_database
from dataset_converters.errors import InputError
from dataset_converters.files import atomic_folder
from dataset_converters.folder import (
    ConversionSummary,
    Funnel,
    target_path,
    write_dataset_json,
    write_rejections,
    write_split_json,
)
from dataset_converters.item_table import MetadataRead, read_metadata
from dataset_converters.reading import RejectionLog, SourceFile
from dataset_converters.review_table import OddIds, name_users, read_reviews
from dataset_converters.session_rules import SessionCut
from dataset_converters.session_table import (
    SessionFilters,
    build_sessions,
    cut_events,
    filter_events,
    filter_reviews,
    number_sessions,
)
from dataset_converters.split_tables import DIMO_TRAIN, SplitOptions, parse_ratio, split_sessions
from dataset_converters.table_folder import items_beside, write_tables

_T = TypeVar("_T")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class AmazonOptions:
    """Filters and split of a conversion, every default resolved; recorded in ``dataset.json``.

    Attributes:
        drop_repeats: keep one of several reviews of one item by one user at one time stamp.
        needs_text: drop items without title, brand or category.
        needs_image: drop items without an image URL (high resolution, where the metadata tells).
        drop_consecutive: keep one of several interactions in a row with one item in a session.
        min_session_length: drop shorter sessions, before and after the item filter.
        min_item_count: drop items with fewer interactions in the remaining sessions.
        iterate_filters: repeat the two filters above until they remove nothing (a k-core); else
            each item is looked at once.
        max_session_length: keep the first so many interactions of a session; None: all.
        augment: one training row for every prefix of a session instead of one a session.
        max_len: most context items in a row; the last ones are kept.
        train_share, valid_share, ratio_order, seed: see `SplitOptions`.
    """

    release: str
    sessions: str
    split: str
    drop_repeats: bool
    needs_text: bool
    needs_image: bool
    drop_consecutive: bool
    min_session_length: int
    min_item_count: int
    iterate_filters: bool
    max_session_length: int | None
    augment: bool
    max_len: int
    train_share: float
    valid_share: float
    ratio_order: str
    seed: int
    allow_truncated: bool
    max_rejected: float

    def __post_init__(self) -> None:
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

    @property
    def filters(self) -> SessionFilters:
        return SessionFilters(
            drop_repeats=self.drop_repeats,
            needs_text=self.needs_text,
            needs_image=self.needs_image,
            drop_consecutive=self.drop_consecutive,
            min_session_length=self.min_session_length,
            min_item_count=self.min_item_count,
            iterate=self.iterate_filters,
            max_session_length=self.max_session_length,
        )

    @property
    def splitting(self) -> SplitOptions:
        return SplitOptions(
            self.split, self.train_share, self.valid_share, self.ratio_order, self.seed
        )


def convert_amazon(
    name: str,
    reviews: Path,
    meta: Path,
    data_path: Path,
    *,
    release: str | None = None,
    sessions: str | None = None,
    split: str = "temporal",
    drop_repeats: bool | None = None,
    needs_text: bool | None = None,
    needs_image: bool | None = None,
    drop_consecutive: bool = False,
    min_session_length: int = 2,
    min_item_count: int | None = None,
    iterate_filters: bool = False,
    max_session_length: int | None = None,
    augment: bool | None = None,
    max_len: int = 50,
    train_share: float = 0.8,
    valid_share: float = 0.1,
    ratio: str | None = None,
    ratio_order: str = "shuffled",
    seed: int = 0,
    allow_truncated: bool = False,
    max_rejected: float = 0.01,
    memory: str = MEMORY,
    exact: bool = False,
    overwrite: bool = False,
) -> ConversionSummary:
    """Convert a reviews and a metadata file to ``<data_path>/<name>/``.

    Options left at None follow the split rule. "dimo" is the published recipe (DIMO, SIGIR 2024):
    sessions "first-day", items with text and image, 5 interactions an item, the first 20 of a
    session, repeats kept, no augmentation. Otherwise nothing is filtered but repeats, and training
    sessions are augmented; sessions are "user" under "leave-one-out", else "first-day". See
    `AmazonOptions` for each option. Equal input and options give equal bytes.

    Args:
        reviews, meta: JSON lines or one JSON array, gzipped or plain (told by content); in the
            2014 release also Python dict literals.
        release: "2014", "2018" or "2023"; None: told by content.
        sessions: see `SessionCut`, for instance "day" or "gap:30m".
        split: "temporal", "dimo", "leave-one-out" or "ratio", see `split_tables`.
        max_session_length: None: 20 under "dimo", else no limit.
        ratio: sets `train_share` and `valid_share`, written like "8:1:1".
        allow_truncated: use the readable part of a cut gzip stream.
        max_rejected: largest share of unusable lines, which go to ``rejected.jsonl``.
        memory: of the database; what does not fit is spilled to a hidden folder in `data_path`.
        exact: read every line with Python's parser. Slower, and the same result.
        overwrite: replace an existing folder.

    Raises:
        InputError: unusable file, option or id, nothing left after the filters (each filter's
            share is told), too few sessions for the split, an existing folder, a full disk.
    """
    paper = split == "dimo"
    if ratio is not None:
        train_share, valid_share = parse_ratio(ratio)
    cut = SessionCut.parse(sessions or ("user" if split == "leave-one-out" else "first-day"))
    splitting = SplitOptions(split, train_share, valid_share, ratio_order, seed)
    target_path(data_path, name, overwrite=overwrite)
    found = find_release(reviews, meta, release)
    options = AmazonOptions(
        release=found.name,
        sessions=cut.name,
        split=split,
        drop_repeats=_or(drop_repeats, not paper),
        needs_text=_or(needs_text, paper),
        needs_image=_or(needs_image, paper),
        drop_consecutive=drop_consecutive,
        min_session_length=min_session_length,
        min_item_count=_or(min_item_count, 5 if paper else 1),
        iterate_filters=iterate_filters,
        max_session_length=20 if paper and max_session_length is None else max_session_length,
        augment=_or(augment, not paper),
        max_len=max_len,
        train_share=splitting.train_share,
        valid_share=splitting.valid_share,
        ratio_order=ratio_order,
        seed=seed,
        allow_truncated=allow_truncated,
        max_rejected=max_rejected,
    )
    raw = _Raw(reviews, meta, found, allow_truncated, exact)
    for looks in (False, True):
        with _disk_full_named(data_path), open_database(data_path, name, memory) as database:
            rejections = RejectionLog(limit=max_rejected)
            try:
                read = _read(raw, database, rejections, look_at_ids=looks)
            except OddIds:  # ids with a space, an accent or an escape: rare in published files
                continue
            return _convert(name, read, data_path, options, cut, database, rejections, overwrite)
    raise RuntimeError("ids were looked at, and still are odd")


@dataclass(frozen=True, slots=True)
class _Raw:
    reviews: Path
    meta: Path
    release: Release
    allow_truncated: bool
    exact: bool


@dataclass(frozen=True, slots=True)
class _Read:
    release: Release
    lines: int
    source: SourceFile
    metadata: MetadataRead


def _read(raw: _Raw, database: Database, rejections: RejectionLog, *, look_at_ids: bool) -> _Read:
    truncated, exact = raw.allow_truncated, raw.exact
    lines, source = read_reviews(
        raw.reviews,
        raw.release,
        database,
        rejections,
        allow_truncated=truncated,
        exact=exact,
        look_at_ids=look_at_ids,
    )
    # One thread for the metadata, whose rows must stay in the file's order, one for the names.
    with (
        database.one_thread(),
        database.beside(partial(name_users, looked_at=look_at_ids or exact)),
    ):
        metadata = read_metadata(
            raw.meta, raw.release, database, rejections, allow_truncated=truncated, exact=exact
        )
    return _Read(raw.release, lines, source, metadata)


def _convert(
    name: str,
    read: _Read,
    data_path: Path,
    options: AmazonOptions,
    cut: SessionCut,
    database: Database,
    rejections: RejectionLog,
    overwrite: bool,
) -> ConversionSummary:
    release = read.release
    counts = _read_counts(read.lines, read.metadata, rejections, database)
    funnel = Funnel(counts["reviews_read"])
    filter_reviews(database, options.filters, funnel)
    cut_events(database, cut, funnel)
    if options.split == "dimo":
        number_sessions(database, DIMO_TRAIN)
    filter_events(database, options.filters, funnel)
    with items_beside(database, release) as items:
        build_sessions(database, cut, release.ticks, options.max_session_length, funnel)
        split_sessions(database, options.splitting)
        path = target_path(data_path, name, overwrite=overwrite)
        with atomic_folder(path) as folder:
            written = write_tables(
                database, folder, name, items, augment=options.augment, max_len=options.max_len
            )
            write_split_json(
                folder,
                rule=options.split,
                sessions=options.sessions,
                augmented=options.augment,
                max_len=written.longest_list,
                counts=written.counts,
                fingerprints=written.fingerprints,
            )
            write_rejections(folder, rejections.entries)
            counts |= written.counts
            sources: tuple[SourceFile, ...] = (read.source, read.metadata.source)
            write_dataset_json(
                folder,
                name=name,
                release=release.name,
                sources=sources,
                options=asdict(options),
                filters=funnel.steps,
                counts=counts,
            )
    cut_short = tuple(source for source in sources if source.truncated_after is not None)
    return ConversionSummary(name, path, counts, tuple(funnel.steps), cut_short)


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _read_counts(
    lines: int, metadata: MetadataRead, rejections: RejectionLog, database: Database
) -> dict[str, int]:
    reviews, users, items = (
        int(database.value(f"SELECT count(*) FROM {table}"))
        for table in ("reviews", "user_names", "item_names")
    )
    return {
        "review_lines": lines,
        "reviews_read": reviews,
        "users_read": users,
        "items_read": items,
        "metadata_records": metadata.records,
        "metadata_duplicates": metadata.duplicates,
        "items_without_metadata": items - int(database.value("SELECT count(*) FROM items")),
        "titles_of_page_source": metadata.page_source_titles,
        "lines_rejected": len(rejections.entries),
    }


@contextmanager
def _disk_full_named(data_path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise InputError(
            f"No space left under {data_path} ({error.strerror}). Nothing was written under the "
            "data set's name. Free disk space, or choose another data_path."
        ) from error
