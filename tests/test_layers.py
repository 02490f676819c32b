"""Imports only point down: nothing below the recommenders needs RecBole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BELOW = ["data", "store", "objectives", "backbones", "stages", "keywords", "generators"]


def imported_by(modules: list[str]) -> list[str]:
    """Import modules in a fresh process; return which of RecBole's are then loaded."""
    code = (
        f"import importlib, sys\nfor name in {modules!r}:\n    importlib.import_module(name)\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] == 'recbole'))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1:]


def test_nothing_below_the_recommenders_imports_recbole() -> None:
    folders = [ROOT / "dataset_converters", *(ROOT / "recbole_tpad" / name for name in BELOW)]
    modules = ["recbole_tpad"]
    for path in sorted(p for folder in folders for p in folder.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        modules.append(name.removesuffix(".__init__"))
    assert imported_by(modules) == ["[]"]


def test_the_package_itself_is_light() -> None:
    code = "import sys, recbole_tpad; print({'torch', 'recbole'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
