"""What the commands share: the parser class, the table of commands, common options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from recbole_tpad.errors import InputError

Overrides = dict[str, str]
Command = Callable[[argparse.Namespace, Overrides], None]


class Parser(argparse.ArgumentParser):
    """Reports bad arguments as `InputError`.

    Attributes:
        commands: the sub-parsers by name, of the program's own parser.
    """

    commands: dict[str, argparse.ArgumentParser]

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and exiting."""
        raise InputError(f"{message}. See '{self.prog} --help'.")


class Commands:
    """The commands of a parser, by name.

    Attributes:
        parsers: name → its parser.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._sub = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
        self.parsers: dict[str, argparse.ArgumentParser] = {}

    def add(
        self, name: str, command: Command | None, text: str, *, keys: str = ""
    ) -> argparse.ArgumentParser:
        """Add a command.

        Args:
            name: what the user types.
            command: called with the parsed arguments and the ``--key=value`` overrides; None for
                a command whose sub-commands set their own.
            text: one line of help.
            keys: what ``--key=value`` arguments mean here; empty refuses them.
        """
        made = self._sub.add_parser(
            name, help=text, description=text, epilog=keys or None, allow_abbrev=False
        )
        made.set_defaults(command=command, takes_keys=bool(keys))
        self.parsers[name] = made
        return made


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add ``--dataset`` and ``--data_path``."""
    parser.add_argument("--dataset", required=True, metavar="NAME")
    parser.add_argument(
        "--data_path", type=Path, default=Path("dataset"), help="folder of data sets"
    )
