"""What a request costs when a table is read, and when a language model runs: same shop, one go.

TPAD and TPAD-NA (tables of `tpad-tiny`), NoteLLM2-NE (encodes the session at the request) and DIMO
re-ranked by a random Qwen2-VL of a few million parameters. Weights are random and small: the ratios
say how the systems stand to each other at this size, the times nothing about real ones.

    python perf/comparison_costs.py --folder DIR [--prepare]

With --prepare only the data set, models and item embeddings are made (minutes); without, what is
missing of them, and then the measurement. Finished work in DIR is kept.

Last line: JSON with, per system, one-time seconds, milliseconds a request and its ratio to DIMO
with TPAD's table, peak memory in MB, and for the re-ranker the recall ceiling.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from dataset_converters.amazon import convert_amazon
from dataset_converters.images import attach_images
from recbole_tpad.backbones.tiny import train_tokenizer
from recbole_tpad.data import DatasetFolder
from recbole_tpad.demo.shop import make_shop
from recbole_tpad.evaluation import evaluate
from recbole_tpad.files import atomic_folder
from recbole_tpad.generators.embed import embed, read_run
from recbole_tpad.keywords.annotate import annotate_from_file

NAME = "shop"
CONTROL = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT = ["<|im_start|>", "<|im_end|>"]
STEPS: dict[str, Any] = {
    "knowledge": {"loop": {"steps": 60}},
    "transition": {"loop": {"steps": 40}},
    "alignment": {"loop": {"steps": 30}},
}
NOTE: dict[str, Any] = {"compression": {"loop": {"steps": 40}}}


def make_data_set(folder: Path) -> DatasetFolder:
    """A shop of 200 items and 1,500 sessions."""
    data_path = folder / "dataset"
    if not (data_path / NAME / "keywords.jsonl").is_file():
        shop = make_shop(folder / "raw", items=200, users=600, sessions=1500)
        convert_amazon(NAME, shop.reviews, shop.meta, data_path, sessions="day", overwrite=True)
        attach_images(data_path / NAME, shop.images)
        annotate_from_file(data_path, NAME, shop.keywords)
    return DatasetFolder.open(data_path, NAME)


def make_qwen(folder: Path, dataset: DatasetFolder) -> Path:
    """A random Qwen2-VL of width 256 and four layers, with a tokenizer of the catalogue."""
    target = folder / "qwen2vl"
    if target.is_dir():
        return target
    texts = [f"{i.title} {i.brand}" for i in dataset.items]
    tokenizer = train_tokenizer(texts, 2000)
    tokenizer.add_special_tokens({"additional_special_tokens": [*CONTROL, *CHAT]})
    start, end, image, video = (tokenizer.convert_tokens_to_ids(t) for t in CONTROL)
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config={
                "hidden_size": 256,
                "intermediate_size": 768,
                "num_hidden_layers": 4,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 4096,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 0,
                "rope_parameters": {
                    "rope_type": "default",
                    "mrope_section": [4, 6, 6],
                    "rope_theta": 10000.0,
                },
            },
            vision_config={
                "depth": 2,
                "embed_dim": 64,
                "hidden_size": 256,
                "num_heads": 4,
                "mlp_ratio": 2,
                "patch_size": 8,
            },
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=start,
            vision_end_token_id=end,
        )
    )
    processor = Qwen2VLImageProcessorPil(
        patch_size=8, size={"shortest_edge": 1024, "longest_edge": 1024}
    )
    with atomic_folder(target) as made:
        for part in (model, tokenizer, processor):
            part.save_pretrained(made)
    return target


def main() -> None:
    """Prepare, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--requests", type=int, default=60)
    args = parser.parse_args()
    dataset = make_data_set(args.folder)
    model = make_qwen(args.folder, dataset)
    generators: dict[str, dict[str, Any]] = {
        "tpad": {"generator": "tpad-tiny", **STEPS},
        "tpad-na": {"generator": "tpad-tiny", **STEPS, "no_alignment": True},
        "notellm2": {"generator": "notellm2-tiny", **NOTE},
    }
    one_time = {}
    for name, settings in generators.items():
        preset, own = settings["generator"], {k: v for k, v in settings.items() if k != "generator"}
        store = embed(args.folder / "dataset", NAME, preset, name=name, overrides=own)
        # Of all stages: a cached one keeps the time it took.
        one_time[name] = sum(stage["seconds"] for stage in read_run(store)["stages"])
        print(f"{name}: {one_time[name]:.1f} s once", flush=True)
    if args.prepare:
        return
    backbone = {"model": str(model), "dtype": "float32"}
    rerank = {"preset": "qwen2vl", "backbone": backbone}
    results = evaluate(
        args.folder / "dataset",
        NAME,
        {
            "name": "comparison-costs",
            "models": ["DIMO", "NoteLLM2NE"],
            "item_embeddings": ["none", "tpad", "tpad-na", "notellm2"],
            "generators": generators,
            "variants": {
                "re-ranked": {
                    "models": ["DIMO"],
                    "item_embeddings": ["tpad"],
                    "config": {"rerank": rerank},
                }
            },
            "seeds": 1,
            "config": {
                "epochs": 2,
                "train_batch_size": 256,
                "latency_sessions": args.requests,
                "mask_history": True,
            },
            "model_config": {
                "DIMO": {"n_layers": 1, "embedding_size": 64},
                "NoteLLM2NE": {"encoder_settings": NOTE},
            },
        },
        output_dir=args.folder,
    )
    rows = json.loads(results.read_text())["rows"]
    failed = [row for row in rows if row["error"]]
    if failed:
        raise SystemExit(f"{failed[0]['model']}: {failed[0]['error']}")
    base = next(
        r["latency_ms"] for r in rows if r["model"] == "DIMO" and r["item_embeddings"] == "tpad"
    )
    found = {}
    for row in rows:
        again = row["rerank"] or {}
        once = one_time.get(row["item_embeddings"], 0.0) + again.get("one_time_seconds", 0.0)
        found[f"{row['model']} + {row['item_embeddings'] or 'none'}"] = {
            "one_time_seconds": round(once, 1),
            "request_ms": round(row["latency_ms"], 2),
            "times_dimo_with_tpad": round(row["latency_ms"] / base, 1),
            "peak_mb": round(row["peak_mb"]),
            **({"recall_ceiling": round(again["recall_ceiling"], 3)} if again else {}),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
