"""One writer a store: an advisory lock that the operating system drops with the process."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole_tpad.errors import InputError
from recbole_tpad.store.shards import naming_disk_errors

_held: set[Path] = set()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Be the only process that writes a store; leftovers of killed writers are removed.

    May be entered again by the process that holds it.

    Raises:
        InputError: another process is writing it, or its folder cannot be written to.
    """
    path = path.absolute()
    if path in _held:
        yield
        return
    file = path.with_name(f".{path.name}.lock")
    with naming_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(file, path)
    _held.add(path)
    try:
        _tidy(path)
        yield
    finally:
        _held.discard(path)
        file.unlink(missing_ok=True)  # while the lock is held: nobody else can take this file
        os.close(descriptor)


def recover(path: Path) -> None:
    """Put back a store whose writer was killed between the two renames of a replacement."""
    if not path.exists() and any(p.name.endswith(".old") for p in _leftovers(path)):
        with writing(path):
            pass


def _tidy(path: Path) -> None:
    for leftover in _leftovers(path):
        if leftover.name.endswith(".old") and not path.exists():
            leftover.replace(path)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _leftovers(path: Path) -> list[Path]:
    """Temporary folders of `atomic_folder`; nobody but the holder of the lock has one."""
    if not path.parent.is_dir():
        return []
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.(tmp|old)")
    return [p for p in path.parent.iterdir() if ours.fullmatch(p.name)]


def _acquire(file: Path, path: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 64).decode(errors="replace").strip()
            os.close(descriptor)
            raise InputError(
                f"Another process ({holder or 'unknown'}) is writing {path}. Wait until it has "
                "finished, or choose another --name."
            ) from error
        try:
            same = os.path.samestat(os.fstat(descriptor), file.stat())
        except FileNotFoundError:
            same = False
        if same:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode())
            return descriptor
        os.close(descriptor)  # its last holder has just removed it; take the new one
