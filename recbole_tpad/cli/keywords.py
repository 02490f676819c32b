"""The keywords command: ask a model, take a file or the metadata, compare, report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_tpad.cli.parser import Commands, Overrides, add_dataset
from recbole_tpad.errors import InputError, nearest

if TYPE_CHECKING:
    from recbole_tpad.data import DatasetFolder
    from recbole_tpad.keywords.annotator import Annotator
    from recbole_tpad.keywords.cache import AnswerCache
    from recbole_tpad.keywords.openai import OpenAIAnnotator

ANNOTATORS = ("openai", "local", "metadata", "file")
# Options that only some annotators read; given to another one they are refused.
_ASKING = ("model", "count", "image_size", "max_image_bytes", "max_tokens", "prompt", "cache")
_OWN: Mapping[str, tuple[str, ...]] = {
    "openai": (
        *_ASKING,
        *("base_url", "key_env", "temperature", "concurrency", "retries", "repairs"),
        *("timeout", "max_wait", "price_input", "price_output", "budget", "processes"),
        "dry_run",
    ),
    "local": (*_ASKING, "revision", "device", "dtype", "batch_size"),
    "metadata": ("count", "min_items"),
    "file": ("file",),
}


def add_command(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add("keywords", _keywords, "Attach visual keywords to a data set.")
    add_dataset(parser)
    parser.add_argument("--annotator", choices=ANNOTATORS, help="default: file, with --file")
    parser.add_argument("--file", type=Path, help="CSV (item_id,keywords) or JSON lines")
    parser.add_argument("--name", help="keep the result under this name; default: the annotator's")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N items, as a trial")
    parser.add_argument("--language", default="en", help="of keywords and lemmas; none: no lemmas")
    parser.add_argument(
        "--stop_words", type=Path, metavar="FILE", help="phrases to drop, one a line"
    )
    parser.add_argument(
        "--normalise",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="Unicode form, lower case, lemmas, stop list; default: yes, but for --file",
    )
    parser.add_argument("--report", action="store_true", help="describe the present keywords")
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="agreement of two results: names under which they are kept, or files",
    )
    _add_asking(parser)
    _add_endpoint(parser)


def _add_asking(parser: argparse.ArgumentParser) -> None:
    # Defaults are those of the settings classes; None leaves an option to them.
    asking = parser.add_argument_group("openai and local")
    asking.add_argument("--model", help="the endpoint's model, or a local folder or hub id")
    asking.add_argument("--prompt", type=Path, metavar="FILE", help="another question")
    asking.add_argument("--count", type=int, metavar="N", help="keywords an item; default: 8")
    asking.add_argument("--cache", type=Path, metavar="DIR", help="default: in the data set folder")
    whole = {
        "image_size": "longest side of what is sent, in pixels; default: 512",
        "max_image_bytes": "larger files are not read; default: 50,000,000",
        "max_tokens": "of one answer; default: 200, local 120",
    }
    for name, text in whole.items():
        asking.add_argument(f"--{name}", type=int, metavar="N", help=text)
    local = parser.add_argument_group("local")
    local.add_argument("--revision", help="commit of a hub id")
    local.add_argument("--device", help="default: the first GPU, else the CPU")
    local.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    local.add_argument("--batch_size", type=int, metavar="N", help="images at a time; default: 8")
    metadata = parser.add_argument_group("metadata")
    metadata.add_argument(
        "--min_items", type=int, metavar="N", help="leave out words of fewer items; default: 2"
    )


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    endpoint = parser.add_argument_group("openai")
    endpoint.add_argument(
        "--base-url", "--base_url", dest="base_url", metavar="URL", help="such as https://host/v1"
    )
    endpoint.add_argument(
        "--key_env", metavar="NAME", help="variable that holds the key; default: OPENAI_API_KEY"
    )
    endpoint.add_argument(
        "--dry-run",
        "--dry_run",
        dest="dry_run",
        action="store_true",
        default=None,
        help="say what it would take, and send nothing",
    )
    whole = {
        "concurrency": "requests at a time; default: 16",
        "retries": "further attempts after a passing failure; default: 5",
        "repairs": "further questions after an unusable answer; default: 2",
        "processes": "that send; more than 1 for endpoints that answer at once; default: 1",
    }
    numbers = {
        "timeout": "seconds for one request; default: 60",
        "max_wait": "longest wait in seconds before a retry; default: 300",
        "temperature": "default: 0",
        "price_input": "per million prompt tokens",
        "price_output": "per million completion tokens",
        "budget": "most to spend on this data set's answers, earlier runs included",
    }
    for name, text in whole.items():
        endpoint.add_argument(f"--{name}", type=int, metavar="N", help=text)
    for name, text in numbers.items():
        endpoint.add_argument(f"--{name}", type=float, metavar="X", help=text)


def _keywords(args: argparse.Namespace, _: Overrides) -> None:
    from recbole_tpad.data import DatasetFolder

    folder = DatasetFolder.open(args.data_path, args.dataset)
    if args.compare or args.report:
        if args.annotator or args.file:
            raise InputError("--compare and --report look at what is there: give no annotator.")
        if args.compare:
            _compare(args, folder)
        if args.report:
            _report(args, folder)
        return
    if args.annotator is None:
        args.annotator = "file"
    _check_options(args)
    if args.annotator in ("openai", "local"):
        from recbole_tpad.keywords.cache import AnswerCache

        with AnswerCache(args.cache or folder.path / "keywords") as cache:
            if args.dry_run:
                print(_openai(args, folder, cache).price(folder.items[: args.limit]))
            elif args.annotator == "openai":
                _annotate(args, folder, _openai(args, folder, cache))
            else:
                _annotate(args, folder, _local(args, folder, cache))
    else:
        _annotate(args, folder, _metadata(args) if args.annotator == "metadata" else _file(args))


def _annotate(args: argparse.Namespace, folder: DatasetFolder, annotator: Annotator) -> None:
    from recbole_tpad.data.normalisation import Normaliser, read_stop_phrases
    from recbole_tpad.keywords.annotate import annotate

    wanted = args.annotator != "file" if args.normalise is None else args.normalise
    stop = read_stop_phrases(args.stop_words) if args.stop_words else frozenset()
    rules = Normaliser(args.language, stop, enabled=wanted)
    report = annotate(folder, annotator, normaliser=rules, name=args.name, limit=args.limit)
    print(report)
    if report.stopped:
        from recbole_tpad.keywords.dispatch import BUDGET_REACHED

        told = f"The run ended early: {report.stopped} What is answered is kept."
        if report.stopped != BUDGET_REACHED:
            raise InputError(told)
        print(told, file=sys.stderr)


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that the chosen annotator would ignore."""
    own = _OWN[args.annotator]
    for name in dict.fromkeys(option for options in _OWN.values() for option in options):
        if name not in own and getattr(args, name) is not None:
            takers = [f"'{a}'" for a in ANNOTATORS if name in _OWN[a]]
            shown = {"base_url": "base-url", "dry_run": "dry-run"}.get(name, name)
            raise InputError(
                f"The annotator '{args.annotator}' does not read --{shown}; "
                f"{' and '.join(takers)} {'do' if len(takers) > 1 else 'does'}."
            )
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit must be at least 1, not {args.limit}.")


def _given(args: argparse.Namespace, *names: str, **renamed: str) -> dict[str, Any]:
    """The options that were given, under the names of a settings class."""
    pairs = [(name, name) for name in names] + list(renamed.items())
    values = {field: getattr(args, name) for field, name in pairs}
    return {field: value for field, value in values.items() if value is not None}


def _question(args: argparse.Namespace) -> dict[str, Any]:
    """Prompt and image limits, for the annotators that ask a model."""
    from recbole_tpad.keywords.prompt import KeywordPrompt, read_prompt
    from recbole_tpad.keywords.questions import ImageLimits

    asked = {"language": args.language, **_given(args, "count")}
    if args.prompt:
        asked["template"] = read_prompt(args.prompt)
    return {
        "prompt": KeywordPrompt(**asked),
        "limits": ImageLimits(**_given(args, size="image_size", max_bytes="max_image_bytes")),
    }


def _openai(args: argparse.Namespace, folder: DatasetFolder, cache: AnswerCache) -> OpenAIAnnotator:
    from recbole_tpad.keywords.dispatch import Patience
    from recbole_tpad.keywords.endpoint import EndpointSettings
    from recbole_tpad.keywords.openai import OpenAIAnnotator
    from recbole_tpad.keywords.pricing import Prices

    if (args.price_input is None) != (args.price_output is None):
        raise InputError("Give both prices: --price_input and --price_output.")
    prices = None if args.price_input is None else Prices(args.price_input, args.price_output)
    names = ("base_url", "key_env", "timeout", "temperature", "max_tokens", "budget", "processes")
    settings = EndpointSettings(args.model or "", prices=prices, **_given(args, *names))
    patience = Patience(**_given(args, "concurrency", "retries", "repairs", "max_wait"))
    return OpenAIAnnotator(folder.path, cache, settings, patience=patience, **_question(args))


def _local(args: argparse.Namespace, folder: DatasetFolder, cache: AnswerCache) -> Annotator:
    from recbole_tpad.keywords.local import LocalAnnotator, LocalSettings, load_model

    names = ("revision", "device", "dtype", "batch_size", "max_tokens")
    settings = LocalSettings(args.model or "", **_given(args, *names))
    asked = _question(args)
    return LocalAnnotator(folder.path, cache, load_model(settings), settings, **asked)


def _metadata(args: argparse.Namespace) -> Annotator:
    from recbole_tpad.keywords.metadata import MetadataAnnotator, MetadataSettings

    settings = MetadataSettings(language=args.language, **_given(args, "count", "min_items"))
    return MetadataAnnotator(settings)


def _file(args: argparse.Namespace) -> Annotator:
    from recbole_tpad.keywords.file import FileAnnotator

    if args.file is None:
        raise InputError("The annotator 'file' needs --file PATH (CSV or JSON lines).")
    return FileAnnotator(args.file)


def _report(args: argparse.Namespace, folder: DatasetFolder) -> None:
    from recbole_tpad.data.normalisation import check_language
    from recbole_tpad.keywords.vocabulary import vocabulary

    check_language(args.language)
    keywords = {item.item_id: item.keywords for item in folder.items}
    print(vocabulary(keywords, folder.items, args.language))


def _compare(args: argparse.Namespace, folder: DatasetFolder) -> None:
    from recbole_tpad.data.normalisation import check_language
    from recbole_tpad.keywords.agreement import agreement
    from recbole_tpad.keywords.file import read_keywords

    check_language(args.language)
    known = set(folder.item_ids)
    first, second = (read_keywords(_kept(folder.path, name), known)[0] for name in args.compare)
    print(agreement(first, second, language=args.language))


def _kept(folder: Path, name: str) -> Path:
    """The file of a kept result, or a file of that path."""
    kept = folder / "keywords"
    if (kept / f"{name}.jsonl").is_file():
        return kept / f"{name}.jsonl"
    if Path(name).is_file():
        return Path(name)
    names = sorted(p.stem for p in kept.glob("*.json"))
    raise InputError(
        f"'{name}' is neither a kept result of this data set nor a file.{nearest(name, names)} "
        f"Kept: {', '.join(names) or 'none'}."
    )
