"""The store's manifest: what the vectors are and what exactly they were made from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recbole_tpad.errors import InputError
from recbole_tpad.files import sha256_json

FORMAT = 2
ROLES = ("K0", "K1", "T", "other")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Provenance of a store; equal inputs give equal bytes (timings live in ``run.json``).

    Attributes:
        role: ``K0``/``K1`` (knowledge tower before/after alignment), ``T`` (transition tower,
            never an item embedding for serving) or ``other``.
        generator: name of the generator preset.
        dataset: name of the data set.
        split_fingerprint: SHA-256 of the training part the generator saw; None: no sessions used.
        items: number of rows.
        modalities: modality name → dimension.
        dtype: element type on disk.
        shard_items: rows of every file of vectors but a modality's last.
        inputs: name → SHA-256 of everything that determined the vectors.
        files: file name → SHA-256 of the store's own files.
        format: of the store.
    """

    role: str
    generator: str
    dataset: str
    split_fingerprint: str | None
    items: int
    modalities: dict[str, int]
    dtype: str
    shard_items: int
    inputs: dict[str, str]
    files: dict[str, str]
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InputError(f"Unknown store role '{self.role}'; known: {', '.join(ROLES)}.")

    @property
    def sha256(self) -> str:
        """SHA-256 of the manifest's content: it names the store's exact vectors."""
        return sha256_json(asdict(self))

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as a JSON mapping, its own hash first."""
        return {"sha256": self.sha256, **asdict(self)}

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read ``manifest.json``.

        Raises:
            InputError: absent, not JSON, another format, missing keys, or edited since.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(
                f"{path.parent} is not an item-embedding store: it has no {path.name}. "
                "Make one with 'recbole-tpad embed'."
            ) from error
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} is damaged ({error}). Run 'recbole-tpad embed' again."
            ) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise InputError(
                f"{path} has format {found!r}; this version reads format {FORMAT}. Make the store "
                "again with 'recbole-tpad embed' (or 'embeddings import')."
            )
        own = content.pop("sha256", None)
        known = set(cls.__dataclass_fields__)
        missing, extra = known - set(content), set(content) - known
        if missing or extra:
            raise InputError(
                f"{path}: missing keys {sorted(missing)}, unknown keys {sorted(extra)}; "
                "the manifest is damaged or was edited. Run 'recbole-tpad embed' again."
            )
        manifest = cls(**content)
        if manifest.sha256 != own:
            raise InputError(
                f"{path} is not what was written (its SHA-256 differs): it was edited or damaged. "
                "Run 'recbole-tpad embed' again."
            )
        return manifest
