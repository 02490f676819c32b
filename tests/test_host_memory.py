"""The allocator keeps what a step frees, and nothing is touched that the user has set."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Page faults of 20 allocations of 40 MB that are written to and freed, after as many.
COUNT = """
import resource, sys
from recbole_tpad.host_memory import keep_freed_memory
told = keep_freed_memory(sys.argv[1])
import torch
for turn in range(40):
    if turn == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000)
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(device: str, **environment: str) -> tuple[bool, int]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, device],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    told, count = done.stdout.split()
    return told == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_freed_memory_is_used_again() -> None:
    pages = 20 * 40_000_000 // os.sysconf("SC_PAGE_SIZE")
    told, count = faults("cpu")
    assert told
    assert count < pages / 10
    told, count = faults("cuda")
    assert not told
    assert count > pages / 600  # huge pages of 2 MB at the largest
    assert faults("cpu", MALLOC_TRIM_THRESHOLD_="131072")[0] is False
