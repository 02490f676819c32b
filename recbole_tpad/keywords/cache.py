"""Answers that were paid for: append-only, by content, for several processes at a time.

``answers.jsonl`` holds one record a line; nothing in it is ever changed. A record's key is the hash
of what the answer depends on, so a changed image, text, prompt or model has another key. A process
that is about to ask locks one byte of ``answers.lock`` at an offset made from the key: the
operating system takes the lock away when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from recbole_tpad.errors import InputError

RECORDS = "answers.jsonl"
LOCKS = "answers.lock"
_SYNC_SECONDS = 5.0


class AnswerCache:
    """The cache in a folder; open for as long as a run lasts. Use as a context manager.

    Not for several threads. Open one folder once a process: byte locks belong to the process and
    end when any descriptor of the lock file is closed.

    Args:
        folder: made where absent.

    Attributes:
        largest_prompt: most prompt tokens of any record.
        cut: lines that a killed process left unfinished; they are passed over.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORDS
        self.cut = 0
        self.largest_prompt = 0
        self._records: dict[str, dict[str, Any]] = {}
        self._spent: dict[str, float] = {"prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0}
        self._claimed: set[str] = set()
        self._read_to = 0
        self._synced = time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            self._locks = os.open(folder / LOCKS, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"Cannot write answers to {folder}: {error.strerror}.") from error
        self.refresh()

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Sync to disk and let go of every claim."""
        os.fsync(self._file)
        os.close(self._file)
        os.close(self._locks)

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the answer to a question, or None."""
        return self._records.get(key)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield every answer."""
        yield from self._records.values()

    @property
    def spent(self) -> dict[str, float]:
        """Tokens and cost of everything ever recorded here, unusable answers included."""
        return dict(self._spent)

    def claim(self, key: str) -> bool:
        """Reserve a question for this process.

        Returns:
            False where another process holds it, or where its answer is there by now.
        """
        if key in self._claimed:
            return True
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(key))
        except (BlockingIOError, PermissionError):
            return False
        self._claimed.add(key)
        # Whoever held it before may have answered since this process last looked.
        self.refresh()
        if key in self._records:
            self.release(key)
            return False
        return True

    def release(self, key: str) -> None:
        """Give a claimed question back."""
        if key in self._claimed:
            self._claimed.discard(key)
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _offset(key))

    def add(self, record: dict[str, Any]) -> None:
        """Append a record. One with ``keywords`` answers its ``key``; others only say what was
        spent."""
        line = (json.dumps(record, ensure_ascii=True) + "\n").encode()
        with self._appending():
            end = os.fstat(self._file).st_size
            whole = end == 0 or os.pread(self._file, 1, end - 1) == b"\n"
            # A record that another process was killed in must not take this one with it.
            written = line if whole else b"\n" + line
            if os.write(self._file, written) != len(written):
                raise InputError(f"{self.path} cannot be written: is the disk full?")
            if whole and end == self._read_to:
                self._read_to += len(written)
                self._take(record)
            else:
                self.refresh()
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def refresh(self) -> None:
        """Take over what other processes appended."""
        size = os.fstat(self._file).st_size
        if size <= self._read_to:
            return
        data = os.pread(self._file, size - self._read_to, self._read_to)
        complete, separator, _ = data.rpartition(b"\n")
        self._read_to += len(complete) + len(separator)
        for line in complete.split(b"\n"):
            try:
                record = json.loads(line) if line else None
            except ValueError:
                record = None
                self.cut += 1
            if isinstance(record, dict):
                self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        for name in self._spent:
            self._spent[name] += record.get(name) or 0
        self.largest_prompt = max(self.largest_prompt, record.get("prompt_tokens") or 0)
        keywords, key = record.get("keywords"), record.get("key")
        if isinstance(key, str) and isinstance(keywords, list):
            self._records.setdefault(key, record)

    @contextmanager
    def _appending(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


def _offset(key: str) -> int:
    return int(key[:15], 16)  # < 2^60: fits every system's file offsets
