"""Actions that look at a store: embeddings info, verify, diff, search."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_tpad.cli.parser import Command, Overrides, add_dataset
from recbole_tpad.errors import InputError

if TYPE_CHECKING:
    from recbole_tpad.data import AtomicFolder, DatasetFolder, Item
    from recbole_tpad.store import ItemEmbeddings

_ROLES = {
    "K0": "knowledge tower before alignment",
    "K1": "knowledge tower after alignment",
    "T": "transition tower: a teacher, never an item embedding",
    "other": "no tower",
}
_SHOWN = 12  # items of a page for which nothing was asked


def add_looking(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this module's actions."""

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(command=command)
        add_dataset(made)
        made.add_argument("--name", required=True, help="store name")
        return made

    info = add("info", _info, "Say what a store is and what it was made from.")
    info.add_argument("--json", action="store_true", help="print the manifest itself")
    add("verify", _verify, "Recompute a store's hashes and compare it with the data set.")
    diff = add("diff", _diff, "Compare two stores: provenance, items, vectors.")
    diff.add_argument("--other", required=True, help="name or path of the second store")
    search = add("search", _search, "Print the items nearest to some items, with their titles.")
    asked = search.add_mutually_exclusive_group()
    asked.add_argument("--item", action="append", help="item id; may be given several times")
    asked.add_argument("--title", help="items whose title has all of these words")
    search.add_argument("--top", type=int, default=10, help="neighbours of each (default 10)")
    search.add_argument("--modalities", help="separated by commas; default: all")
    search.add_argument("--output", type=Path, help="write a page with thumbnails (.html)")


def _open(args: argparse.Namespace) -> tuple[DatasetFolder | AtomicFolder, ItemEmbeddings]:
    from recbole_tpad.data import open_items
    from recbole_tpad.store import find_store

    folder = open_items(args.data_path, args.dataset)
    return folder, find_store(folder.path, args.name)


def _info(args: argparse.Namespace, _: Overrides) -> None:
    from recbole_tpad.generators.embed import read_run

    folder, store = _open(args)
    manifest = store.manifest
    if args.json:
        print(json.dumps(manifest.to_json(), indent=1, ensure_ascii=False))
        return
    size = sum((store.path / name).stat().st_size for name in manifest.files)
    sizes = ", ".join(f"{name} {dim}" for name, dim in manifest.modalities.items())
    print(f"{store.path}")
    print(f"  role       {manifest.role} ({_ROLES[manifest.role]})")
    print(f"  made by    {manifest.generator}, for data set '{manifest.dataset}'")
    print(f"  items      {manifest.items:,}")
    print(f"  vectors    {sizes}; {manifest.dtype}, {size / 1e6:,.1f} MB in all")
    print(f"  sessions   {_sessions(store, folder)}")
    print(f"  sha256     {store.sha256}")
    print("  made from")
    width = max(map(len, manifest.inputs), default=0)
    for name, value in manifest.inputs.items():
        print(f"    {name:<{width}}  {value[:16]}{'…' if len(value) > 16 else ''}")
    run = read_run(store)
    if run.get("stages"):
        print("  took")
    for stage in run.get("stages", []):
        print(f"    {stage['name']}: {stage['seconds']:.1f} s")
    for update in run.get("updates", []):
        print(
            f"  updated    {update['new']:,} new, {update['changed']:,} changed, "
            f"{update['removed']:,} removed items in {update['seconds']:.1f} s"
        )
    for reason in (run.get("updates") or [{}])[-1].get("retrain", []):
        print(f"  re-train   {reason}")


def _sessions(store: ItemEmbeddings, folder: DatasetFolder | AtomicFolder) -> str:
    fingerprint = store.manifest.split_fingerprint
    if fingerprint is None:
        return "none were read"
    same = fingerprint == folder.split_fingerprint
    which = "that of the data set" if same else "NOT that of the data set: runs refuse this store"
    return f"training part {fingerprint[:16]}…, {which}"


def _verify(args: argparse.Namespace, _: Overrides) -> None:
    from recbole_tpad.store import verify_embeddings

    folder, store = _open(args)
    for line in verify_embeddings(store, folder):
        print(f"{store.path.name}: {line}")


def _diff(args: argparse.Namespace, _: Overrides) -> None:
    from recbole_tpad.store import compare_stores, find_store, open_store

    folder, store = _open(args)
    path = Path(args.other)
    other = open_store(path) if path.name != args.other else find_store(folder.path, args.other)
    for line in compare_stores(store, other).lines(store.path.name, other.path.name):
        print(line)


def _search(args: argparse.Namespace, _: Overrides) -> None:
    from recbole_tpad.data import AtomicFolder
    from recbole_tpad.store import nearest_items

    if args.top < 1:
        raise InputError(f"--top {args.top} must be at least 1.")
    if args.output is not None and args.output.suffix != ".html":
        raise InputError(f"--output {args.output}: the page is HTML; give a name in .html.")
    folder, store = _open(args)
    # A data set of plain RecBole has ids only.
    known = () if isinstance(folder, AtomicFolder) else folder.items
    items = {item.item_id: item for item in known}
    asked = _asked(args, store, items)
    modalities = args.modalities.split(",") if args.modalities else None
    found = nearest_items(store, asked, args.top, modalities)
    for item_id, neighbours in found.items() if args.output is None else ():
        print(f"{item_id}  {_title(items, item_id)}")
        for neighbour in neighbours:
            title = _title(items, neighbour.item_id)
            print(f"  {neighbour.cosine:6.3f}  {neighbour.item_id}  {title}")
    if args.output is not None:
        used = set(found) | {n.item_id for near in found.values() for n in near}
        content = {
            "store": {
                "store": store.path.name,
                "data set": folder.name,
                "items": f"{store.manifest.items:,}",
                "modalities": ", ".join(modalities or store.manifest.modalities),
            },
            "measure": "Cosine of the vectors with every column less its mean and over its "
            "standard deviation in the store: what a recommender's adapter sees.",
            "items": _shown(used, items),
            "found": [
                {"item": i, "neighbours": [(n.item_id, n.cosine) for n in near]}
                for i, near in found.items()
            ],
        }
        _write_page(args.output, content)
        print(args.output)


def _asked(args: argparse.Namespace, store: ItemEmbeddings, items: dict[str, Item]) -> list[str]:
    if args.item:
        return list(dict.fromkeys(args.item))
    held = [i for i in store.item_ids if i in items] or list(store.item_ids)
    if args.title:
        words = args.title.lower().split()
        found = [i for i in held if i in items and all(w in items[i].title.lower() for w in words)]
        if not found:
            raise InputError(f"No item's title has all of: {', '.join(words)}.")
        return found[:_SHOWN]
    if args.output is None:
        raise InputError("Say which items: --item ID or --title WORDS; or --output FILE.html.")
    return held[:: max(1, len(held) // _SHOWN)][:_SHOWN]


def _title(items: dict[str, Item], item_id: str) -> str:
    return items[item_id].title if item_id in items else "(no title)"


def _shown(used: set[str], items: dict[str, Item]) -> dict[str, dict[str, str | None]]:
    from recbole_tpad.data.thumbnails import thumbnail

    return {
        i: {"title": items[i].title, "image": thumbnail(items[i].image)} for i in used if i in items
    }


def _write_page(path: Path, content: Mapping[str, object]) -> None:
    from recbole_tpad.files import atomic_path
    from recbole_tpad.report.neighbours import neighbours_page

    with atomic_path(path) as temporary:
        temporary.write_text(neighbours_page(content), encoding="utf-8")
