"""What a stage recorded, step by step, as files that others read: JSON lines and TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

_FLUSH_SECONDS = 1.0
Step = Mapping[str, float]


class Journal:
    """``steps.jsonl``, one line a step, written while the stage runs.

    Args:
        folder: made if need be.
        history: steps done before, by a run that was killed; lines beyond them are dropped.
        enabled: False for all but one of several processes: nothing is written.
    """

    def __init__(self, folder: Path, history: Sequence[Step], *, enabled: bool = True) -> None:
        self._flushed = time.monotonic()
        self._file: IO[str] | None = None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "steps.jsonl").open("w", encoding="utf-8")
        for step in history:
            self._file.write(json.dumps(step) + "\n")
        self._file.flush()

    def write(self, step: Step) -> None:
        """Add a step's line; it is on disk a second later at most, or at the end."""
        if self._file is None:
            return
        self._file.write(json.dumps(step) + "\n")
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


def write_tensorboard(folder: Path, stage: str, history: Sequence[Step]) -> None:
    """Write a finished stage's history as TensorBoard events, in place of earlier ones.

    Args:
        folder: log directory.
        stage: prefix of the curves' names.
        history: with the key ``step``.
    """
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:  # type: ignore[no-untyped-call]
        for step in history:
            for name, value in step.items():
                if name != "step":
                    writer.add_scalar(  # type: ignore[no-untyped-call]
                        f"{stage}/{name}", value, int(step["step"])
                    )
