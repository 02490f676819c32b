"""Durable file writing and content hashes; defined in `dataset_converters`, the lowest layer."""

from dataset_converters.files import (
    atomic_folder,
    atomic_path,
    sha256_file,
    sha256_json,
    sync_file,
    write_json,
)

__all__ = [
    "atomic_folder",
    "atomic_path",
    "sha256_file",
    "sha256_json",
    "sync_file",
    "write_json",
]
