"""The demo command."""

from __future__ import annotations

import argparse
from pathlib import Path

from recbole_tpad.cli.parser import Commands, Overrides


def add_commands(commands: Commands) -> None:
    """Add this module's command."""
    demo = commands.add("demo", _demo, "Run the whole line on a small shop it makes itself.")
    demo.add_argument("--folder", type=Path, default=Path("demo"))
    demo.add_argument("--seed", type=int, default=7)
    demo.add_argument("--jobs", type=int, default=None, help="runs at a time; default: all cores")


def _demo(args: argparse.Namespace, _: Overrides) -> None:
    from recbole_tpad.demo.line import run_demo

    run_demo(args.folder, seed=args.seed, jobs=args.jobs)
