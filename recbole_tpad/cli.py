"""The command line: parses arguments, calls one function, turns InputError into exit status 2.

Heavy imports happen inside the commands, so that ``--help`` and bad arguments answer at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import recbole_tpad
from recbole_tpad.errors import InputError, nearest

Overrides = dict[str, str]
Command = Callable[[argparse.Namespace, Overrides], None]


class _Parser(argparse.ArgumentParser):
    """Reports bad arguments as `InputError`, with the nearest known choice."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See '{self.prog} --help'.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program name; None takes the program's own.

    Returns:
        0; 2 for bad input, after one readable message (a traceback only with ``--debug``); 130
        when interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
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
    commands = parser.commands  # type: ignore[attr-defined]  # set by build_parser
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


def _options(parser: argparse.ArgumentParser, given: list[str]) -> list[str]:
    found = list(parser._option_string_actions)
    commands = parser.commands  # type: ignore[attr-defined]
    if given and given[0] in commands:
        found += commands[given[0]]._option_string_actions
    return found


# -- commands ------------------------------------------------------------------------------------


def _convert_amazon(args: argparse.Namespace, _: Overrides) -> None:
    from dataset_converters.amazon import convert_amazon

    summary = convert_amazon(
        args.dataset,
        args.reviews,
        args.meta,
        args.data_path,
        release=args.release,
        sessions=args.sessions,
        split=args.split,
        min_session_length=args.min_session_length,
        min_item_count=args.min_item_count,
        max_session_length=args.max_session_length,
        augment=args.augment,
        max_len=args.max_len,
        allow_truncated=args.allow_truncated,
        max_rejected=args.max_rejected,
        overwrite=args.overwrite,
    )
    print(summary_text(summary.path, summary.counts))


def _convert_sequences(args: argparse.Namespace, _: Overrides) -> None:
    from dataset_converters.sequences import convert_sequences

    summary = convert_sequences(
        args.dataset,
        args.interactions,
        args.items,
        args.data_path,
        augment=args.augment is not False,
        max_len=args.max_len,
        overwrite=args.overwrite,
    )
    print(summary_text(summary.path, summary.counts))


def summary_text(path: Path, counts: dict[str, int]) -> str:
    """One paragraph on a conversion."""
    return (
        f"{path}: {counts['sessions']:,} sessions, {counts['interactions']:,} interactions, "
        f"{counts['items']:,} items ({counts['items_in_train']:,} of them in training); "
        f"train/valid/test sessions {counts['sessions_train']:,}/{counts['sessions_valid']:,}/"
        f"{counts['sessions_test']:,}"
    )


def _images(args: argparse.Namespace, _: Overrides) -> None:
    from dataset_converters.images import attach_images
    from recbole_tpad.data import DatasetFolder

    folder = DatasetFolder.open(args.data_path, args.dataset)
    counts = attach_images(folder.path, args.source)
    print(
        f"{folder.path / 'images'}: {counts.ok:,} items with an image ({counts.copied:,} copied "
        f"now), {counts.missing:,} without, {counts.unreadable:,} unreadable"
    )


def _keywords(args: argparse.Namespace, _: Overrides) -> None:
    from recbole_tpad.keywords.file import annotate_from_file

    if args.file is None:
        raise InputError("The annotator 'file' needs --file PATH (CSV or JSON lines).")
    print(annotate_from_file(args.data_path, args.dataset, args.file))


def _embed(args: argparse.Namespace, overrides: Overrides) -> None:
    from recbole_tpad.generators.embed import embed, read_run
    from recbole_tpad.generators.registry import parse_overrides

    store = embed(
        args.data_path,
        args.dataset,
        args.generator,
        name=args.name,
        overrides=parse_overrides(overrides),
    )
    manifest = store.manifest
    sizes = ", ".join(f"{name} {dim}" for name, dim in manifest.modalities.items())
    print(f"{store.path}: {manifest.items:,} items, {sizes}, role {manifest.role}")
    run = read_run(store)
    for stage in run.get("stages", []):
        print(f"  {stage['name']}: {stage['seconds']:.1f} s")
    rate = run.get("generation_rate")
    if rate:
        print(
            f"  Generation Rate on {rate['items']} held-out items: {rate['recall']:.3f} "
            f"(chance {rate['chance']:.3f}, with shuffled images {rate['shuffled_images']:.3f})"
        )
    for warning in run.get("warnings", []):
        print(f"  warning: {warning}", file=sys.stderr)


def _run(args: argparse.Namespace, overrides: Overrides) -> None:
    from recbole_tpad.bridge.config import parse_value
    from recbole_tpad.bridge.runner import run

    config = {key: parse_value(value) for key, value in overrides.items()}
    files = args.config_files.split() if args.config_files else None
    chosen = {"model": args.model, "dataset": args.dataset, "data_path": str(args.data_path)}
    if args.item_embeddings is not None:
        chosen["item_embeddings"] = args.item_embeddings
    result = run({**config, **chosen}, config_file_list=files, saved=args.saved)
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    print(f"{result.model} + {result.item_embeddings or 'no item embeddings'}: {metrics}")
    print(
        f"  {result.epochs} epochs (best {result.best_epoch}), {result.seconds:.1f} s, "
        f"{result.parameters:,} parameters, loss {result.loss}"
    )
    if result.checkpoint:
        print(f"  checkpoint {result.checkpoint}")


def _evaluate(args: argparse.Namespace, overrides: Overrides) -> None:
    from recbole_tpad.bridge.config import parse_value
    from recbole_tpad.evaluation.grid import evaluate
    from recbole_tpad.evaluation.table import plain_table
    from recbole_tpad.report import write_report

    results = evaluate(
        args.data_path,
        args.dataset,
        args.suite,
        seeds=args.seeds,
        jobs=args.jobs,
        output_dir=args.output,
        overrides={key: parse_value(value) for key, value in overrides.items()},
    )
    report = write_report(results, results.with_name("report.html"))
    print(plain_table(results))
    print(f"\n{results}\n{report}")
    failed = [row for row in json.loads(results.read_text())["rows"] if row["error"]]
    if failed:
        first = failed[0]
        raise InputError(
            f"{len(failed)} runs failed and are marked in the table, first {first['model']} with "
            f"{first['item_embeddings'] or 'no item embeddings'}: {first['error']}"
        )


def _report(args: argparse.Namespace, _: Overrides) -> None:
    from recbole_tpad.report import write_report

    print(write_report(args.results, args.output or args.results.with_name("report.html")))


def _demo(args: argparse.Namespace, _: Overrides) -> None:
    from recbole_tpad.demo.line import run_demo

    run_demo(args.folder, seed=args.seed, jobs=args.jobs)


# -- parsers -------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with one sub-parser a command."""
    parser = _Parser(
        prog="recbole-tpad",
        description="Multimodal item embeddings for RecBole's sequential recommenders.",
        epilog="--debug shows the traceback of an error.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=recbole_tpad.__version__)
    sub = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands: dict[str, argparse.ArgumentParser] = {}
    parser.commands = commands  # type: ignore[attr-defined]

    def add(name: str, command: Command | None, text: str, *, keys: str = "") -> _Parser:
        made: _Parser = sub.add_parser(
            name, help=text, description=text, epilog=keys or None, allow_abbrev=False
        )
        made.set_defaults(command=command, takes_keys=bool(keys))
        commands[name] = made
        return made

    convert = add("convert", None, "Turn raw files into a data set folder.")
    _add_converters(convert)
    images = add("images", _images, "Attach item images to a data set.")
    _add_dataset(images)
    images.add_argument(
        "--from",
        dest="source",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with files named like the item ids or like the metadata's image URLs",
    )
    keywords = add("keywords", _keywords, "Attach visual keywords to a data set.")
    _add_dataset(keywords)
    keywords.add_argument("--annotator", choices=["file"], default="file")
    keywords.add_argument("--file", type=Path, help="CSV (item_id,keywords) or JSON lines")
    embed = add(
        "embed",
        _embed,
        "Make item embeddings with a generator.",
        keys="Any key of the generator's YAML: --knowledge.loop.steps=500",
    )
    _add_dataset(embed)
    embed.add_argument("--generator", required=True, help="preset name or YAML path")
    embed.add_argument("--name", help="store name; default: the generator's")
    run = add(
        "run",
        _run,
        "Train and test one recommender.",
        keys="Any RecBole key: --learning_rate=0.003",
    )
    _add_dataset(run)
    run.add_argument("--model", required=True)
    run.add_argument("--item_embeddings", help="store name or path")
    run.add_argument("--config_files", help="YAML files, separated by spaces")
    run.add_argument("--saved", action="store_true", help="keep the best checkpoint")
    evaluate = add(
        "evaluate",
        _evaluate,
        "Run a suite: models x item embeddings x seeds, with a report.",
        keys="Any RecBole key, for every run: --epochs=20",
    )
    _add_dataset(evaluate)
    evaluate.add_argument("--suite", required=True, help="preset name or YAML path")
    evaluate.add_argument("--seeds", type=int, help="number of seeds; default: the suite's")
    evaluate.add_argument("--jobs", type=int, default=1, help="runs at a time")
    evaluate.add_argument("--output", type=Path, help="folder for results.json and report.html")
    report = add("report", _report, "Write report.html from results.json.")
    report.add_argument("results", type=Path)
    report.add_argument("--output", type=Path)
    demo = add("demo", _demo, "Run the whole line on a small shop it makes itself.")
    demo.add_argument("--folder", type=Path, default=Path("demo"))
    demo.add_argument("--seed", type=int, default=7)
    demo.add_argument("--jobs", type=int, default=None, help="runs at a time; default: all cores")
    return parser


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, metavar="NAME")
    parser.add_argument(
        "--data_path", type=Path, default=Path("dataset"), help="folder of data sets"
    )


def _add_converters(parser: argparse.ArgumentParser) -> None:
    sources = parser.add_subparsers(title="sources", required=True, metavar="SOURCE")
    amazon = sources.add_parser(
        "amazon", help="Amazon review files as published", allow_abbrev=False
    )
    amazon.set_defaults(command=_convert_amazon)
    amazon.add_argument("--reviews", type=Path, required=True)
    amazon.add_argument("--meta", type=Path, required=True)
    amazon.add_argument("--release", choices=["2018"], default="2018")
    amazon.add_argument("--sessions", choices=["first-day", "day", "user"])
    amazon.add_argument(
        "--split", choices=["temporal", "dimo", "leave-one-out"], default="temporal"
    )
    amazon.add_argument("--min_session_length", type=int, default=2)
    amazon.add_argument("--max_session_length", type=int)
    amazon.add_argument("--min_item_count", type=int)
    amazon.add_argument("--allow_truncated", action="store_true")
    amazon.add_argument("--max_rejected", type=float, default=0.01)
    sequences = sources.add_parser(
        "sequences", help="JSON files: user -> items, item -> texts", allow_abbrev=False
    )
    sequences.set_defaults(command=_convert_sequences)
    sequences.add_argument("--interactions", type=Path, required=True)
    sequences.add_argument("--items", type=Path, required=True)
    for source in (amazon, sequences):
        _add_dataset(source)
        source.add_argument("--augment", action=argparse.BooleanOptionalAction, default=None)
        source.add_argument("--max_len", type=int, default=50)
        source.add_argument("--overwrite", action="store_true")
