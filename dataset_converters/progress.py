"""Progress bars for whoever watches: on a terminal, never in a log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(rows: Iterable[T] | None = None, *, wanted: bool = True, **how: Any) -> tqdm[T]:
    """A bar over rows, or one to be updated by hand; silent where stderr is no terminal.

    It comes after three seconds and goes when the work is done, unless told otherwise.

    Args:
        rows: to go through; None for a bar that is updated by hand.
        wanted: False is silent on a terminal, too.
        how: as for tqdm.
    """
    return tqdm(rows, disable=None if wanted else True, **{"delay": 3, "leave": False, **how})
