"""Progress is a bar on a terminal, and a line a minute in a log."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from dataset_converters.progress import progress

ROOT = Path(__file__).resolve().parents[2]
COUNT = """
from dataset_converters.progress import progress
assert list(progress(range(3), desc="counting", delay=0, wanted={wanted})) == [0, 1, 2]
with progress(total=2, desc="by hand", delay=0, leave=True, wanted={wanted}) as bar:
    bar.update(2 - bar.n)
    bar.set_postfix(done=2)
"""


def run(stderr: int, wanted: bool) -> bytes:
    done = subprocess.run(
        [sys.executable, "-c", COUNT.format(wanted=wanted)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=stderr,
        check=True,
        timeout=60,
    )
    return done.stderr or b""


@pytest.mark.parametrize("wanted", [True, False])
def test_only_a_terminal_shows_bars(wanted: bool) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))  # a new one has no place for anything
    try:
        run(theirs, wanted)
        os.write(theirs, b"end")
        shown = b""
        while not shown.endswith(b"end"):
            shown += os.read(ours, 1 << 16)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (b"counting" in shown) == (b"by hand" in shown) == wanted


def test_a_log_of_short_work_stays_empty() -> None:
    assert run(subprocess.PIPE, True) == b""


def test_a_log_of_long_work_gets_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 100_000, 25))  # seconds; every look at the clock takes 25
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert list(progress(range(6), desc="counting", unit="item")) == list(range(6))
    assert capsys.readouterr().err == (
        "counting: 3 of 6 items, 01:15 so far, 01:15 left\n"
        "counting: 6 of 6 items, 02:30 so far, 00:00 left\n"
    )
    with progress(total=4_000_000, initial=1_000_000, unit="B", unit_scale=True) as bar:
        bar.set_postfix(dead=2)
        for _ in range(3):
            bar.update(500_000)
    said = "progress: 2.50MB of 4.00MB, 01:15 so far, 01:15 left (dead=2)\n"
    assert capsys.readouterr().err == said
    for row in progress(iter("abc"), desc="unsized"):
        assert row
    assert capsys.readouterr().err == "unsized: 3, 01:15 so far\n"
    assert list(progress(range(9), wanted=False)) == list(range(9))
    assert capsys.readouterr().err == ""


def test_every_bar_is_made_here() -> None:
    sources = [
        p for part in ("recbole_tpad", "dataset_converters") for p in (ROOT / part).rglob("*.py")
    ]
    makers = {p.name for p in sources if re.search(r"\bt(?:qdm|range)\(", p.read_text())}
    assert makers == {"progress.py"}
