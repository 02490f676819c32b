"""Imports only point down: nothing below the recommenders needs RecBole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW = ["data", "store", "objectives", "backbones", "stages", "keywords", "generators"]


@pytest.mark.parametrize("package", ["", *BELOW])
def test_nothing_below_the_recommenders_imports_recbole(package: str) -> None:
    """Imports every module of a layer in one fresh process and looks for RecBole."""
    base = ROOT / ("dataset_converters" if not package else f"recbole_tpad/{package}")
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(base.rglob("*.py"))
    ]
    code = (
        f"import importlib, sys\nfor name in {['recbole_tpad', *modules]!r}:\n"
        "    importlib.import_module(name)\n"
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
    assert done.stdout.strip().splitlines()[-1] == "[]"
