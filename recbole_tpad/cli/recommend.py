"""Commands on recommenders: run, exec, explain, evaluate, report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_tpad.cli.parser import Commands, Overrides, add_dataset
from recbole_tpad.errors import InputError

if TYPE_CHECKING:
    from recbole_tpad.bridge.runner import RunResult


def add_commands(commands: Commands) -> None:
    """Add this module's commands."""
    run = commands.add(
        "run",
        _run,
        "Train and test one recommender.",
        keys="Any RecBole key: --learning_rate=0.003",
    )
    add_dataset(run)
    run.add_argument("--model", help="name, or FILE.py of your own; required unless --checkpoint")
    run.add_argument("--item_embeddings", help="store name or path")
    run.add_argument("--config_files", help="YAML files, separated by spaces")
    run.add_argument("--saved", action="store_true", help="keep the best checkpoint")
    run.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="test this saved run; nothing is trained"
    )
    run.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="read a pickled checkpoint (.pth); that executes any code in it",
    )
    rerank = commands.add(
        "rerank",
        _rerank,
        "Re-rank the best items of a saved run with an image-text-to-text model.",
        keys="Any key of the re-ranker's YAML: --top_k=10 --backbone.model=FOLDER",
    )
    add_dataset(rerank)
    rerank.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    rerank.add_argument("--model", metavar="FILE.py", help="where the run's model is your own")
    rerank.add_argument("--reranker", default="qwen2vl", help="preset name or YAML path")
    execute = commands.add(
        "exec", _exec, "Run a stock RecBole script, such as run_recbole.py, that finds our models."
    )
    execute.add_argument("script", type=Path, metavar="SCRIPT")
    execute.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on as they are")
    explain = commands.add("explain", _explain, "Say why a saved DIMO run recommends what it does.")
    explain.add_argument("checkpoint", type=Path, help="the .safetensors file of 'run --saved'")
    explain.add_argument("--session", action="append", help="a test session's id; repeatable")
    explain.add_argument("--sessions", type=int, default=3, help="or: how many of the first ones")
    explain.add_argument("--top", type=int, default=5, help="recommendations a session")
    explain.add_argument("--data_path", type=Path, help="where the data sets are now")
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
    evaluate.add_argument("--dry-run", action="store_true", help="print the runs and their time")
    report = commands.add("report", _report, "Write report.html from results.json.")
    report.add_argument("results", type=Path)
    report.add_argument("--output", type=Path)


def _run(args: argparse.Namespace, overrides: Overrides) -> None:
    from recbole_tpad.bridge.config import parse_value
    from recbole_tpad.bridge.runner import evaluate_saved_run, run

    config = {key: parse_value(value) for key, value in overrides.items()}
    files = args.config_files.split() if args.config_files else None
    chosen = {"dataset": args.dataset, "data_path": str(args.data_path)}
    for key in ("model", "item_embeddings"):
        if getattr(args, key) is not None:
            chosen[key] = getattr(args, key)
    if args.checkpoint is not None:
        if files or args.saved:
            raise InputError(
                "--checkpoint tests a saved run: leave out --config_files and --saved."
            )
        result = evaluate_saved_run(
            args.checkpoint, {**config, **chosen}, trust_checkpoint=args.trust_checkpoint
        )
    elif args.trust_checkpoint:
        raise InputError("--trust-checkpoint needs --checkpoint FILE.")
    elif args.model is None:
        raise InputError("--model is required (or --checkpoint, to test a saved run).")
    else:
        result = run({**config, **chosen}, config_file_list=files, saved=args.saved)
    _print_result(result)


def _print_result(result: RunResult) -> None:
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    print(f"{result.model} + {result.item_embeddings or 'no item embeddings'}: {metrics}")
    print(
        f"  {result.epochs} epochs (best {result.best_epoch}), {result.seconds:.1f} s, "
        f"{result.parameters:,} parameters, loss {result.loss}, a session's own items "
        f"{'left out of' if result.mask_history else 'kept in'} the ranking"
    )
    if result.latency_ms is not None:
        print(f"  {result.latency_ms:.2f} ms a request")
    if result.rerank is not None:
        before = "  ".join(f"{n} {v:.4f}" for n, v in result.rerank["base_metrics"].items())
        print(
            f"  re-ranked the best {result.rerank['top_k']} of {result.rerank['sessions']} "
            f"sessions (recall ceiling {result.rerank['recall_ceiling']:.4f}); before: {before}"
        )
    for name, value in result.adjustments.items():
        print(f"  {name} {value:.4g}")
    if result.checkpoint:
        print(f"  checkpoint {result.checkpoint}")


def _rerank(args: argparse.Namespace, overrides: Overrides) -> None:
    from recbole_tpad.bridge.runner import evaluate_saved_run
    from recbole_tpad.generators.registry import parse_overrides

    settings = {"preset": args.reranker, **parse_overrides(overrides)}
    keys = {"dataset": args.dataset, "data_path": str(args.data_path), "rerank": settings}
    if args.model is not None:
        keys["model"] = args.model
    _print_result(evaluate_saved_run(args.checkpoint, keys))


def _exec(args: argparse.Namespace, _: Overrides) -> None:
    from recbole_tpad.bridge.registration import run_script

    run_script(args.script, args.arguments)


def _explain(args: argparse.Namespace, _: Overrides) -> None:
    from recbole_tpad.evaluation.explain import explain_sessions

    moved = {} if args.data_path is None else {"data_path": str(args.data_path)}
    found = explain_sessions(
        args.checkpoint, args.session or args.sessions, top=args.top, config_dict=moved
    )
    for session in found:
        print(f"Session {session.session_id}: {' | '.join(session.context_titles)}")
        for item in session.items:
            hit = "  <- the item that followed" if item.item_id == session.target else ""
            added = round(item.adjustment, 2)
            more = f" + adjustments {added:.2f}" if added else ""
            print(
                f"  {item.rank}. {item.title}: {item.sentence} (score {item.score:.2f} = ID "
                f"{item.id_share:.2f} + content {item.modality_share:.2f}{more}){hit}"
            )


def _evaluate(args: argparse.Namespace, overrides: Overrides) -> None:
    from recbole_tpad.bridge.config import parse_value
    from recbole_tpad.evaluation.grid import evaluate, plan
    from recbole_tpad.evaluation.table import plain_table
    from recbole_tpad.report import write_report

    keys = {key: parse_value(value) for key, value in overrides.items()}
    given = (args.data_path, args.dataset, args.suite)
    if args.dry_run:
        print(plan(*given, seeds=args.seeds, jobs=args.jobs, overrides=keys))
        return
    results = evaluate(
        *given, seeds=args.seeds, jobs=args.jobs, output_dir=args.output, overrides=keys
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
