"""Commands on recommenders: run, evaluate, report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from recbole_tpad.cli.parser import Commands, Overrides, add_dataset
from recbole_tpad.errors import InputError


def add_commands(commands: Commands) -> None:
    """Add this module's commands."""
    run = commands.add(
        "run",
        _run,
        "Train and test one recommender.",
        keys="Any RecBole key: --learning_rate=0.003",
    )
    add_dataset(run)
    run.add_argument("--model", required=True)
    run.add_argument("--item_embeddings", help="store name or path")
    run.add_argument("--config_files", help="YAML files, separated by spaces")
    run.add_argument("--saved", action="store_true", help="keep the best checkpoint")
    evaluate = commands.add(
        "evaluate",
        _evaluate,
        "Run a suite: models x item embeddings x seeds, with a report.",
        keys="Any RecBole key, for every run: --epochs=20",
    )
    add_dataset(evaluate)
    evaluate.add_argument("--suite", required=True, help="preset name or YAML path")
    evaluate.add_argument("--seeds", type=int, help="number of seeds; default: the suite's")
    evaluate.add_argument("--jobs", type=int, default=1, help="runs at a time")
    evaluate.add_argument("--output", type=Path, help="folder for results.json and report.html")
    report = commands.add("report", _report, "Write report.html from results.json.")
    report.add_argument("results", type=Path)
    report.add_argument("--output", type=Path)


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
    for name, value in result.adjustments.items():
        print(f"  {name} {value:.4g}")
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
