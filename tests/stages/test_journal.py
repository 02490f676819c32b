"""Step records as files."""

from __future__ import annotations

import json
from pathlib import Path

from recbole_tpad.stages.journal import Journal, write_tensorboard

STEPS = [{"step": k, "loss": 1.0 / (k + 1), "mi_lower": 0.5 * k} for k in range(5)]


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_one_line_a_step(tmp_path: Path) -> None:
    with Journal(tmp_path / "a", []) as journal:
        for step in STEPS:
            journal.write(step)
    assert lines(tmp_path / "a") == STEPS


def test_a_resumed_run_drops_what_it_will_repeat(tmp_path: Path) -> None:
    with Journal(tmp_path, []) as journal:
        for step in STEPS[:4]:
            journal.write({**step, "loss": 9.0})
    with Journal(tmp_path, STEPS[:2]) as journal:
        for step in STEPS[2:]:
            journal.write(step)
    assert lines(tmp_path) == STEPS


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "a", STEPS, enabled=False) as journal:
        journal.write(STEPS[0])
    assert not (tmp_path / "a").exists()


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_tensorboard(tmp_path, "alignment", [{"step": 0, "loss": 3.0}])
    write_tensorboard(tmp_path, "alignment", STEPS)  # in place of the first
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"alignment/loss", "alignment/mi_lower"}
    curve = [(e.step, round(e.value, 6)) for e in found.Scalars("alignment/mi_lower")]
    assert curve == [(k, 0.5 * k) for k in range(5)]
