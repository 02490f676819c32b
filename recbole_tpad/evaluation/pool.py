"""Runs jobs in fresh processes, a few at a time; a job that dies is a result, not an end.

Each run gets its own process, forked from a server that has imported torch and RecBole once. So a
run's peak memory is its own, nothing leaks from one run to the next, and a crash or an
out-of-memory kill ends that run only.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from recbole_tpad.files import write_json

_LESS_MEMORY = (
    "If there was too little memory: lower --jobs, train_batch_size, or rank_memory_mb for the "
    "ranking."
)

Runner = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Job:
    """A config to run; the outcome is written to `output` and everything printed to `log`."""

    config: Mapping[str, Any]
    output: Path
    log: Path


def run_jobs(
    jobs: Sequence[Job], runner: Runner, *, parallel: int, threads: int
) -> Iterator[tuple[int, str | None]]:
    """Run all jobs and yield (index, error) as each ends; error None: `output` was written.

    Args:
        jobs: what to run, started in this order.
        runner: importable function from a config to a `RunResult` or a mapping with a row's keys.
        parallel: processes at a time.
        threads: compute threads of each process.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        # This module, too: unpickling a job imports it and with it torch, seconds a run.
        context.set_forkserver_preload([__name__, runner.__module__])
    waiting = list(enumerate(jobs))[::-1]
    running: dict[int, tuple[int, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                index, job = waiting.pop()
                job.log.parent.mkdir(parents=True, exist_ok=True)
                process = context.Process(target=_run_job, args=(job, runner, threads), daemon=True)
                process.start()
                running[process.sentinel] = (index, process)
            for sentinel in wait(list(running)):
                index, process = running.pop(int(sentinel))  # type: ignore[arg-type]
                process.join()
                yield index, _outcome(process.exitcode, jobs[index])
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


def _outcome(exitcode: int | None, job: Job) -> str | None:
    if exitcode == 0 and job.output.exists():
        return None
    if exitcode is not None and exitcode < 0:
        hint = f" {_LESS_MEMORY}" if exitcode == -9 else ""
        return f"The run's process was ended by signal {-exitcode}.{hint}"
    return f"The run's process ended with status {exitcode} and without a result."


def _run_job(job: Job, runner: Runner, threads: int) -> None:
    """Body of a run's process."""
    _end_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with job.log.open("w", encoding="utf-8", buffering=1) as log:
        # Also what C code prints, hence the descriptors and not only sys.stdout.
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            _limit_threads(threads)
            started = time.perf_counter()
            try:
                outcome = _as_mapping(runner(dict(job.config)))
            except Exception as error:
                # Every failure of a run is reported as its row; the traceback is in its log.
                traceback.print_exc()
                message = str(error).strip() or "no message"
                name = type(error).__name__
                if isinstance(error, MemoryError) or "memory" in message.lower():
                    message += f" {_LESS_MEMORY}"
                outcome = {
                    "error": message if name == "InputError" else f"{name}: {message}",
                    "seconds": time.perf_counter() - started,
                }
            write_json(job.output, outcome)


def _limit_threads(threads: int) -> None:
    # torch may have read its own number of threads in the server already.
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def _end_with_parent() -> None:
    """Leave no training behind when the suite's own process is killed."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _as_mapping(result: Any) -> dict[str, Any]:
    """A run's row: of the bridge's result, or of a mapping that is one already.

    With the rank and the training frequency of each test row's target, for comparing runs.
    """
    row = result
    if hasattr(result, "to_row"):
        of_rows = {name: getattr(result, name).tolist() for name in ("ranks", "target_counts")}
        row = {**result.to_row(), **of_rows}
    if not isinstance(row, Mapping):
        raise TypeError(f"The runner returned a {type(result).__name__}, not a result.")
    return dict(row)
