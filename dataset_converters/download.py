"""Downloads the images that a data set's metadata names; resumable at any moment."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from PIL import Image

from dataset_converters.download_fetch import Deadline, Fetched, Fetcher, FetchLimits, Target
from dataset_converters.download_image import ImageProblem, prepare_image
from dataset_converters.download_queue import Delivered, DownloadQueue, Job, QueueLimits
from dataset_converters.download_urls import candidates
from dataset_converters.errors import InputError
from dataset_converters.files import atomic_path
from dataset_converters.images import (
    JOURNAL,
    compact_records,
    image_file,
    images_lock,
    is_good,
    read_items,
    read_records,
    write_records,
)
from dataset_converters.progress import progress

_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPEATED = 5  # items with the same bytes before the summary names them
STATUSES = ("ok", "missing", "unreadable", "placeholder", "refused", "failed")


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """Limits of a download; every default is also the command line's.

    Attributes:
        size: longest side of a stored image in pixels; None keeps the size.
        workers, per_host: requests at a time, in all and to one host.
        retries: further attempts at an address after a time-out, a cut answer, 408, 425, 429, 5xx.
        backoff: seconds before the first retry; doubles each time, with a random factor.
        connect_timeout, read_timeout, time_limit: seconds for a connection (each address of the
            host), without a byte, and for one whole answer.
        max_wait: longest wait in seconds, also where a server asks for a longer one.
        max_bytes: of one answer. max_pixels: larger images are not decoded.
        min_side: images with a shorter side stand for missing ones.
        give_up_after: unanswered requests in a row after which a host counts as down.
        allow_private: also fetch from private, loopback and other addresses that are not public.
        retry_dead: also try again what was found missing, unreadable, refused or a placeholder.
    """

    size: int | None = 512
    workers: int = 16
    per_host: int = 4
    retries: int = 4
    backoff: float = 1.0
    connect_timeout: float = 10.0
    read_timeout: float = 20.0
    time_limit: float = 60.0
    max_wait: float = 300.0
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    min_side: int = 8
    give_up_after: int = 20
    allow_private: bool = False
    retry_dead: bool = False

    def __post_init__(self) -> None:
        least = {"size": 16, "workers": 1, "per_host": 1, "give_up_after": 1, "min_side": 1}
        least |= {"max_bytes": 1, "max_pixels": 1}
        positive = ("connect_timeout", "read_timeout", "time_limit")
        for option in fields(self):
            value = getattr(self, option.name)
            if value is None or option.type == "bool":
                continue
            if value < least.get(option.name, 0) or (option.name in positive and value <= 0):
                raise InputError(f"{option.name}={value} is too small.")


@dataclass(frozen=True, slots=True)
class RepeatedImage:
    """The same downloaded bytes for many items: often a "no image" picture."""

    sha256: str
    items: int
    example: str


@dataclass(frozen=True, slots=True)
class DownloadSummary:
    """What a download left: items by status, and what this run did.

    Attributes:
        statuses: status → items, of all items of the data set.
        fetched: images stored by this run; requests: sent by this run.
        repeated: most frequent first.
        hosts_down: host → why it was given up in this run.
    """

    statuses: dict[str, int]
    fetched: int
    requests: int
    repeated: tuple[RepeatedImage, ...]
    hosts_down: dict[str, str]


def download_images(
    dataset_folder: Path,
    options: DownloadOptions | None = None,
    *,
    placeholders: frozenset[str] = frozenset(),
) -> DownloadSummary:
    """Fetch each item's image to ``images/`` and record its status in ``images.jsonl``.

    Per item the addresses of `candidates` in turn, until one gives an image. An address that gives
    none is a status with a reason, never an error. A further run, also after a kill at any moment,
    keeps what is done and takes up: items not tried yet, failed ones, and images whose file is
    gone or changed.

    Args:
        placeholders: SHA-256 of downloaded bytes that stand for a missing image.

    Raises:
        InputError: no data set folder, a broken record, or another download of it is running.
    """
    options = options or DownloadOptions()
    items = read_items(dataset_folder)
    with images_lock(dataset_folder):
        compact_records(dataset_folder, items)
        run = _Run(dataset_folder, options, placeholders, read_records(dataset_folder))
        jobs = [job for item in items if (job := run.job(item)) is not None]
        (dataset_folder / "images").mkdir(exist_ok=True)
        hosts_down = run.run(jobs, len(items))
        records = [run.records[item["item_id"]] for item in items]
        write_records(dataset_folder, records)
    statuses = Counter(record["status"] for record in records)
    return DownloadSummary(
        statuses={status: statuses[status] for status in STATUSES},
        fetched=run.fetched,
        requests=run.requests,
        repeated=_repeated(records),
        hosts_down=hosts_down,
    )


def read_placeholders(path: Path) -> frozenset[str]:
    """Return the SHA-256 sums of a text file: the first word of a line; ``#`` starts a comment.

    Raises:
        InputError: unreadable, or another word.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise InputError(f"Cannot read {path}: {error}.") from error
    found: set[str] = set()
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if words and not _SHA256.fullmatch(words[0].lower()):
            raise InputError(f"{path}, line {number}: '{words[0]}' is no SHA-256 in hex.")
        found.update(word.lower() for word in words[:1])
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class _Stored:
    """An image as it was written: record keys of an item with status "ok"."""

    file: str
    sha256: str
    source_sha256: str
    width: int
    height: int


@dataclass
class _Run:
    """One download: decides what is to do, and records what came."""

    folder: Path
    options: DownloadOptions
    placeholders: frozenset[str]
    records: dict[str, dict[str, Any]]
    fetched: int = 0
    requests: int = 0
    _attempts: dict[str, int] = field(default_factory=dict)

    def job(self, item: dict[str, Any]) -> Job | None:
        """The item's job, or None when its record stands."""
        urls = candidates(item)
        old = self.records.get(item["item_id"])
        if old is not None:
            self._attempts[item["item_id"]] = old.get("attempts", 0)
            if not self._is_open(old, urls):
                return None
        return Job(item["item_id"], urls)

    def _is_open(self, old: dict[str, Any], urls: list[str]) -> bool:
        status = old["status"]
        if status == "ok":
            known = old.get("source_sha256", old["sha256"]) in self.placeholders
            return known or not is_good(self.folder, old)
        if status == "failed" or self.options.retry_dead or old.get("tried") != urls:
            return True
        return status == "refused" and self.options.allow_private

    def run(self, jobs: list[Job], total: int) -> dict[str, str]:
        """Run the jobs with a journal and a progress bar; return the hosts given up."""
        options = self.options
        fetcher = Fetcher(
            FetchLimits(
                connect_timeout=options.connect_timeout,
                read_timeout=options.read_timeout,
                time_limit=options.time_limit,
                max_bytes=options.max_bytes,
                allow_private=options.allow_private,
            )
        )
        limits = QueueLimits(
            workers=options.workers,
            per_host=options.per_host,
            retries=options.retries,
            backoff=options.backoff,
            max_wait=options.max_wait,
            give_up_after=options.give_up_after,
            time_limit=options.time_limit,
        )
        statuses: Counter[str] = Counter()
        with (
            warnings.catch_warnings(),
            (self.folder / JOURNAL).open("a", encoding="utf-8", newline="\n") as journal,
            progress(
                total=total,
                initial=total - len(jobs),
                desc="images",
                unit="item",
                delay=0,
                leave=True,
            ) as bar,
        ):

            def done(job: Job, stored: _Stored | None) -> None:
                record = self._record(job, stored)
                _append(journal, record)
                statuses[record["status"]] += 1
                bar.set_postfix(statuses, refresh=False)
                bar.update()

            def fetch(job: Job, target: Target, deadline: Deadline) -> Delivered:
                return self._deliver(job, fetcher.get(target, deadline))

            queue = DownloadQueue(limits, fetch, done)
            try:
                # Pillow's warning of large images; `max_pixels` decides here.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                queue.run(jobs)
            finally:
                fetcher.close()
        return queue.hosts_down()

    def _deliver(self, job: Job, fetched: Fetched) -> Delivered:
        """In a worker thread: check a fetched body and write the image."""
        if fetched.body is None:
            return Delivered(fetched)
        source = hashlib.sha256(fetched.body).hexdigest()
        if source in self.placeholders:
            return Delivered(fetched, status="placeholder", reason=f"the bytes {source[:12]}…")
        options = self.options
        try:
            image = prepare_image(
                fetched.body,
                size=options.size,
                max_pixels=options.max_pixels,
                min_side=options.min_side,
            )
        except ImageProblem as problem:
            return Delivered(fetched, status=problem.status, reason=str(problem))
        file = image_file(job.item_id, image.extension)
        with atomic_path(self.folder / file) as temporary:
            temporary.write_bytes(image.data)
        sha256 = hashlib.sha256(image.data).hexdigest()
        return Delivered(fetched, _Stored(file, sha256, source, image.width, image.height))

    def _record(self, job: Job, stored: _Stored | None) -> dict[str, Any]:
        status, reason = ("ok", None) if stored is not None else job.verdict()
        old = self.records.get(job.item_id)
        if old is not None and old["file"] and (stored is None or stored.file != old["file"]):
            # A placeholder that was taken for an image, or an image of another format.
            (self.folder / "images" / Path(old["file"]).name).unlink(missing_ok=True)
        record: dict[str, Any] = {
            "item_id": job.item_id,
            "status": status,
            "file": stored.file if stored else None,
            "sha256": stored.sha256 if stored else None,
            "reason": reason,
            "attempts": self._attempts.get(job.item_id, 0) + job.attempts,
            "url": job.used,
            "failures": {url: f"{s}: {why}" for url, (s, why) in job.failures.items()},
            "tried": job.urls,
        }
        if stored is not None:
            record |= {"width": stored.width, "height": stored.height}
            record["source_sha256"] = stored.source_sha256
            self.fetched += 1
            del record["tried"]
        self.requests += job.attempts
        self.records[job.item_id] = record
        return record


def _append(journal: IO[str], record: dict[str, Any]) -> None:
    # In the system's hands after the flush: a killed process loses at most the line it writes.
    journal.write(json.dumps(record, ensure_ascii=False) + "\n")
    journal.flush()


def _repeated(records: list[dict[str, Any]]) -> tuple[RepeatedImage, ...]:
    groups: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if record["status"] == "ok":
            groups[record.get("source_sha256", record["sha256"])].append(record["item_id"])
    found = [
        RepeatedImage(sha256, len(items), items[0])
        for sha256, items in groups.items()
        if len(items) >= _REPEATED
    ]
    return tuple(sorted(found, key=lambda entry: (-entry.items, entry.sha256)))
