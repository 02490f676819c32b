"""Hashes of image files; a file that has not changed is read once a process."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from recbole_tpad.files import sha256_file


def image_sha256(path: Path) -> str:
    """Return the hex SHA-256 of an image's bytes, read again when size or time of it change."""
    found = path.stat()
    return _sha256(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1 << 21)
def _sha256(path: Path, size: int, changed: int) -> str:
    return sha256_file(path)
