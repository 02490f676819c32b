"""This package's command in a forked process: it starts at once, with everything imported."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import torch
from tqdm import tqdm

from recbole_tpad.cli import main
from recbole_tpad.stages.processes import processes


class Forked:
    """A running command; like `subprocess.Popen` as far as tests need it.

    Args:
        arguments: of ``recbole-tpad``.
        output: a file for what it prints.
        environment: variables of its own.
    """

    def __init__(self, arguments: list[str], output: Path, **environment: str) -> None:
        self.output = output
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            with output.open("w", buffering=1) as stream:
                sys.stdout = sys.stderr = stream
                try:
                    os.environ.update(environment, TOKENIZERS_PARALLELISM="false")
                    torch.set_num_threads(1)
                    tqdm.set_lock(
                        threading.RLock()
                    )  # the parent's is shared: kills must not hold it
                    processes.cache_clear()
                    code = main(arguments)
                except BaseException:
                    traceback.print_exc(file=stream)
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> bool:
        """SIGKILL; False if it had ended before."""
        if self.poll() is not None:
            return False
        os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def wait(self, timeout: float = 300) -> int:
        """The exit status, at the latest after some seconds."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"still running after {timeout} s: {self.output.read_text()}")
            time.sleep(0.002)
        assert self.returncode is not None
        return self.returncode

    def finish(self) -> None:
        """Wait for a good end."""
        assert self.wait() == 0, self.output.read_text()[-3000:]
