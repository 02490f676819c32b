"""The command line: parses arguments, calls one function, turns InputError into exit status 2.

Each module adds its commands. Heavy imports happen inside the commands, so that ``--help`` and bad
arguments answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

import recbole_tpad
from recbole_tpad.cli import data, demo, embeddings, recommend
from recbole_tpad.cli.parser import Command, Commands, Overrides, Parser
from recbole_tpad.errors import InputError, nearest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program name; None takes the program's own.

    Returns:
        0; 2 for bad input, after one readable message (a traceback only with ``--debug``); 130
        when interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # What follows a script is the script's own.
    own = 2 if given[:1] == ["exec"] else len(given)
    debug = "--debug" in given[:own]
    given = [a for a in given[:own] if a != "--debug"] + given[own:]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of the hub and transformers
    # From peft's use of transformers; nothing a user could act on.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    try:
        run_command(given)
    except InputError as error:
        if debug:
            traceback.print_exc()
        print(f"recbole-tpad: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("recbole-tpad: interrupted; finished work is kept.", file=sys.stderr)
        return 130
    return 0


def run_command(arguments: list[str]) -> None:
    """Parse and run one command line; what `main` does without its error handling.

    Raises:
        InputError: bad arguments or bad input.
    """
    parsed, overrides = _parse(arguments)
    command: Command = parsed.command
    command(parsed, overrides)


def _parse(given: list[str]) -> tuple[argparse.Namespace, Overrides]:
    parser = build_parser()
    commands = parser.commands
    if given and not given[0].startswith("-") and given[0] not in commands:
        raise InputError(
            f"Unknown command '{given[0]}'.{nearest(given[0], commands)} "
            f"Known: {', '.join(commands)}."
        )
    parsed, rest = parser.parse_known_args(given)
    overrides: Overrides = {}
    for argument in rest:
        key, separator, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not separator or not key:
            raise InputError(
                f"Unknown argument '{argument}'.{nearest(argument, _options(parser, given))} "
                "Configuration keys are given as --key=value."
            )
        if not parsed.takes_keys:
            raise InputError(
                f"Unknown option '--{key}'.{nearest('--' + key, _options(parser, given))}"
            )
        if key in overrides and overrides[key] != value:
            raise InputError(f"--{key} is given twice: {overrides[key]} and {value}.")
        overrides[key] = value
    return parsed, overrides


def _options(parser: Parser, given: list[str]) -> list[str]:
    found = list(parser._option_string_actions)
    commands = parser.commands
    if given and given[0] in commands:
        found += commands[given[0]]._option_string_actions
    return found


def build_parser() -> Parser:
    """Return the parser; its ``commands`` are the sub-parsers by name."""
    parser = Parser(
        prog="recbole-tpad",
        description="Multimodal item embeddings for RecBole's sequential recommenders.",
        epilog="--debug shows the traceback of an error.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=recbole_tpad.__version__)
    commands = Commands(parser)
    parser.commands = commands.parsers
    for module in (data, embeddings, recommend, demo):
        module.add_commands(commands)
    return parser
