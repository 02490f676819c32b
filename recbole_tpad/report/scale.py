"""Linear scales with round tick values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps the interval [low, high] linearly to [start, end] on the page."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, wanted: int = 4) -> list[float]:
        """Return round values inside the interval, about `wanted` of them."""
        step = _round_step((self.high - self.low) / max(1, wanted))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def fitted(
    values: Iterable[float], start: float, end: float, *, from_zero: bool = False, ticks: int = 4
) -> Scale:
    """Return a scale whose ends are round values around all of `values`."""
    found = list(values) or [0.0]
    low, high = min(found), max(found)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-12:
        margin = abs(high) * 0.1 or 1.0
        low, high = (0.0 if from_zero else low - margin), high + margin
    step = _round_step((high - low) / max(1, ticks))
    return Scale(
        math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, end
    )


def log_ticks(low: float, high: float) -> list[float]:
    """Return round values between two powers of ten (their exponents), at most about six.

    1, 2 and 5 of each decade where there are few decades, else their beginnings alone.
    """
    decades = range(math.floor(low), math.ceil(high) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [
            step * 10.0**decade
            for decade in decades
            for step in steps
            if low <= math.log10(step) + decade <= high
        ]
        if len(found) <= 6:
            return found
    return found[:: math.ceil(len(found) / 6)]


def tick_text(value: float, step_of: list[float]) -> str:
    """Return a tick's label with the decimals that tell neighbouring ticks apart."""
    step = min((b - a for a, b in itertools.pairwise(step_of)), default=abs(value) or 1.0)
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if step < 1e-5:
        return f"{value:.3g}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    if step > 0 and abs(round(step, decimals) - step) > step * 1e-6:
        decimals += 1
    return f"{value:.{decimals}f}"


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0):
        if factor * power >= rough * (1 - 1e-9):
            return factor * power
    return 10.0 * power
