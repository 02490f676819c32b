"""Commands on item embeddings: embed."""

from __future__ import annotations

import argparse
import sys

from recbole_tpad.cli.parser import Commands, Overrides, add_dataset


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
