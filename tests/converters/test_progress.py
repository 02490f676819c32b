"""Progress bars are seen on a terminal and leave logs alone."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

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


def test_a_log_stays_empty() -> None:
    assert run(subprocess.PIPE, True) == b""


def test_every_bar_is_made_here() -> None:
    sources = [
        p for part in ("recbole_tpad", "dataset_converters") for p in (ROOT / part).rglob("*.py")
    ]
    makers = {p.name for p in sources if re.search(r"\bt(?:qdm|range)\(", p.read_text())}
    assert makers == {"progress.py"}
