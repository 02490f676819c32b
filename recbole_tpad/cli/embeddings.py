"""Commands on item embeddings: embed, embeddings."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from recbole_tpad.cli.looking import add_looking
from recbole_tpad.cli.parser import Command, Commands, Overrides, add_dataset
from recbole_tpad.errors import InputError


def add_commands(commands: Commands) -> None:
    """Add this module's commands."""
    embed = commands.add(
        "embed",
        _embed,
        "Make item embeddings with a generator.",
        keys="Any key of the generator's YAML: --knowledge.loop.steps=500",
    )
    add_dataset(embed)
    embed.add_argument("--generator", required=True, help="preset name or YAML path")
    embed.add_argument("--name", help="store name; default: the generator's")
    embed.add_argument(
        "--dry-run",
        action="store_true",
        help="print items, tokens, operations, expected time, memory, disk; load nothing",
    )
    embed.add_argument(
        "--update",
        action="store_true",
        help="encode only new and changed items with the store's own tower, drop deleted ones",
    )
    embeddings = commands.add(
        "embeddings", None, "Bring, take, check, compare and search item embeddings."
    )
    actions = embeddings.add_subparsers(title="actions", required=True, metavar="ACTION")
    _add_exchange(actions)
    add_looking(actions)


def _add_exchange(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(command=command)
        add_dataset(made)
        made.add_argument("--name", required=True, help="store name")
        return made

    bring = add("import", _import, "Make a store from npy, npz, safetensors, parquet or text.")
    bring.add_argument("--array", type=Path, required=True, help="file of vectors")
    bring.add_argument("--ids", type=Path, help="item ids in the order of the rows")
    bring.add_argument("--id_column", help="array or column of the file that holds the ids")
    bring.add_argument("--drop_extra", action="store_true", help="leave out unknown items")
    bring.add_argument("--allow_zero", action="store_true", help="accept rows of zeros")
    bring.add_argument("--overwrite", action="store_true")
    take = add("export", _export, "Write a store's vectors; the suffix decides the format.")
    take.add_argument(
        "--output", type=Path, required=True, help=".npy .npz .safetensors .parquet .itememb"
    )
    take.add_argument("--modalities", help="separated by commas; default: all")


def _embed(args: argparse.Namespace, overrides: Overrides) -> None:
    from recbole_tpad.generators.embed import embed, plan_embedding, read_run
    from recbole_tpad.generators.registry import parse_overrides

    if args.update:
        _update(args, overrides)
        return
    if args.dry_run:
        values = parse_overrides(overrides)
        for line in plan_embedding(args.data_path, args.dataset, args.generator, overrides=values):
            print(line)
        return
    store = embed(
        args.data_path,
        args.dataset,
        args.generator,
        name=args.name,
        overrides=parse_overrides(overrides),
    )
    if os.environ.get("RANK", "0") != "0":  # another process of a launcher speaks
        return
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


def _update(args: argparse.Namespace, overrides: Overrides) -> None:
    from recbole_tpad.generators.update import plan_update, update

    if overrides:
        raise InputError(
            f"--update encodes with the store's own tower and settings; --{next(iter(overrides))} "
            "would change them. Leave it out, or embed without --update."
        )
    name = args.name or Path(args.generator).stem
    if args.dry_run:
        print("\n".join(plan_update(args.data_path, args.dataset, name)))
        return
    done = update(args.data_path, args.dataset, name)
    if os.environ.get("RANK", "0") == "0":
        manifest = done.store.manifest
        print(f"{done.store.path}: {manifest.items:,} items, role {manifest.role}")
        for line in done.lines():
            print(f"  {line}")


def _import(args: argparse.Namespace, _: Overrides) -> None:
    from recbole_tpad.store import import_embeddings

    store = import_embeddings(
        args.data_path,
        args.dataset,
        args.name,
        args.array,
        ids=args.ids,
        id_column=args.id_column,
        drop_extra=args.drop_extra,
        allow_zero=args.allow_zero,
        overwrite=args.overwrite,
    )
    manifest = store.manifest
    sizes = ", ".join(f"{name} {dim}" for name, dim in manifest.modalities.items())
    print(f"{store.path}: {manifest.items:,} items, {sizes}, role {manifest.role}")


def _export(args: argparse.Namespace, _: Overrides) -> None:
    from recbole_tpad.data import open_items
    from recbole_tpad.store import export_embeddings, find_store

    store = find_store(open_items(args.data_path, args.dataset).path, args.name)
    modalities = args.modalities.split(",") if args.modalities else None
    for path in export_embeddings(store, args.output, modalities):
        print(path)
