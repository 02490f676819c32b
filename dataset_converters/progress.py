"""Progress for whoever watches: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
EVERY = 60.0  # seconds between two lines of a log


def progress(rows: Iterable[T] | None = None, *, wanted: bool = True, **how: Any) -> tqdm[T]:
    """A bar over rows, or one to be updated by hand; where stderr is no terminal, lines.

    A bar comes after three seconds and goes when the work is done, unless told otherwise. A line
    comes every minute: work of less than a minute leaves a log alone.

    Args:
        rows: to go through; None for a bar that is updated by hand.
        wanted: False is silent everywhere.
        how: as for tqdm.
    """
    if wanted and not sys.stderr.isatty():
        return _Lines(rows, **how)
    return tqdm(rows, disable=not wanted, **{"delay": 3, "leave": False, **how})


class _Lines(tqdm):  # type: ignore[misc]  # tqdm has no types
    """Counts as a bar does, and writes lines.

    Disabled as a bar: tqdm's lock and its thread, which a fork may copy in any state, stay unused.
    """

    def __init__(self, rows: Iterable[Any] | None, **how: Any) -> None:
        super().__init__(rows, disable=True, **how)
        sized = len(rows) if isinstance(rows, Sized) else None
        self.total = how.get("total", sized)
        self.postfix = ""
        self._name = how.get("desc") or "progress"
        self._unit = how.get("unit", "")
        self._scaled = bool(how.get("unit_scale"))
        self._first = self.n
        self._started = self._last = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        assert self.iterable is not None
        for row in self.iterable:
            yield row
            self.update()

    def update(self, n: float | None = 1) -> bool | None:
        self.n += n or 0
        now = time.monotonic()
        if now - self._last >= EVERY:
            self._last = now
            print(self._line(now - self._started), file=sys.stderr, flush=True)
        return None

    def _line(self, passed: float) -> str:
        text = f"{self._name}: {self._amount(self.n)}"
        left = ""
        if self.total:
            text += f" of {self._amount(self.total)}"
            done = self.n - self._first
            if done > 0 and self.n <= self.total:
                left = f", {tqdm.format_interval(passed * (self.total - self.n) / done)} left"
        unit = f" {self._unit}s" if self._unit and not self._scaled else ""
        told = f" ({self.postfix})" if self.postfix else ""
        return f"{text}{unit}, {tqdm.format_interval(passed)} so far{left}{told}"

    def _amount(self, number: float) -> str:
        if self._scaled:
            return f"{tqdm.format_sizeof(number)}{self._unit}"
        return f"{number:,}"
