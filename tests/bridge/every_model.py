"""What every sequential model does here; as a program it rewrites the table in docs/models.md.

Usage: ``PYTHONPATH=tests python tests/bridge/every_model.py``, in the repository.
"""

from __future__ import annotations

import importlib
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_data import planted_sessions, write_data_set

from recbole_tpad.bridge.batches import TRIMMED
from recbole_tpad.bridge.config import folder_settings
from recbole_tpad.bridge.models import OUR_MODELS, builtin_models
from recbole_tpad.bridge.registration import registered
from recbole_tpad.bridge.runner import run
from recbole_tpad.errors import InputError
from recbole_tpad.store import write_store

DOC = Path(__file__).resolve().parents[2] / "docs" / "models.md"
HEADER = """\
| Model | Trains and is ranked | With item embeddings | Padding cut |
| --- | --- | --- | --- |"""
N_ITEMS = 30
# Small enough for a second; SASRecCPR and GRU4RecCPR rerank 100 items unless told otherwise.
KEYS: dict[str, Any] = {
    "dataset": "shop",
    "epochs": 1,
    "train_batch_size": 128,
    "MAX_ITEM_LIST_LENGTH": 10,
    "show_progress": False,
}
INTER = ["session_id", "item_id_list", "item_id"]
MODEL_KEYS: dict[str, dict[str, Any]] = {
    "GRU4RecCPR": {"reranker_CAN_NUM": 10},
    "GRU4RecKG": {
        "embedding_size": 8,
        "load_col": {"inter": INTER, "vec": ["ent_id", "ent_emb"]},
        "additional_feat_suffix": ["vec"],
        "alias_of_item_id": ["item_id_list", "ent_id"],
        "preload_weight": {"ent_id": "ent_emb"},
    },
    "S3Rec": {"pretrain_epochs": 1},
    "SASRecCPR": {"reranker_CAN_NUM": 10},
}
# Everything that RecBole's KSR asks for: a knowledge graph, and vectors of entities and relations.
KSR_KEYS: dict[str, Any] = {
    "epochs": 1,
    "show_progress": False,
    "state": "ERROR",
    "train_neg_sample_args": None,
    "embedding_size": 8,
    "hidden_size": 8,
    "kg_embedding_size": 8,
    "load_col": {
        "inter": INTER,
        "ent": ["ent_id", "ent_emb"],
        "rel": ["rel_id", "rel_emb"],
        "link": ["item_id", "entity_id"],
        "kg": ["head_id", "relation_id", "tail_id"],
    },
    "additional_feat_suffix": ["ent", "rel"],
    "alias_of_entity_id": ["ent_id"],
    "alias_of_relation_id": ["rel_id"],
    "preload_weight": {"ent_id": "ent_emb", "rel_id": "rel_emb"},
    "eval_args": {"order": "TO", "group_by": "user", "mode": "full"},
}


def write_shop(data_path: Path) -> None:
    """A data set with item features, a knowledge graph, and a store of random vectors.

    Everything is seen in training.
    """
    train, valid, test = planted_sessions(N_ITEMS, 60)
    folder = write_data_set(data_path, "shop", train, valid, test, max_len=10)
    ids = sorted({item for part in (train, valid, test) for _, items in part for item in items})
    lines = ["item_id:token\ttitle:token_seq\tbrand:token\tcategory:token\tprice:float"]
    lines += [f"{item}\tmug {item}\tb{k % 3}\tc{k % 4}\t{k}.5" for k, item in enumerate(ids)]
    (folder / "shop.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_knowledge(folder, ids)
    write_store(
        folder / "embeddings" / "content",
        ids,
        {"text": np.random.default_rng(0).normal(size=(len(ids), 6))},
        role="other",
        generator="random",
        dataset="shop",
        split_fingerprint=None,
        inputs={},
    )


def _write_knowledge(folder: Path, ids: list[str]) -> None:
    """A graph that links every item to one of three brands, and vectors of all its nodes."""
    vectors = np.random.default_rng(1)
    entities = [f"e{k}" for k in range(len(ids))]
    brands = ["b0", "b1", "b2"]

    def vector_lines(names: list[str]) -> list[str]:
        return [f"{n}\t{' '.join(map('{:.3f}'.format, vectors.normal(size=8)))}" for n in names]

    files = {
        "link": ("item_id:token\tentity_id:token", map("\t".join, zip(ids, entities, strict=True))),
        "kg": (
            "head_id:token\trelation_id:token\ttail_id:token",
            [f"{name}\tr{k % 2}\t{brands[k % 3]}" for k, name in enumerate(entities)],
        ),
        "ent": ("ent_id:token\tent_emb:float_seq", vector_lines(entities + brands)),
        "rel": ("rel_id:token\trel_emb:float_seq", vector_lines(["r0", "r1"])),
        "vec": ("ent_id:token\tent_emb:float_seq", vector_lines(ids)),
    }
    for suffix, (header, lines) in files.items():
        text = "\n".join([header, *lines]) + "\n"
        (folder / f"{folder.name}.{suffix}").write_text(text, encoding="utf-8")


def recboles_own(model: str, data_path: Path) -> str:
    """Run KSR in RecBole itself, with everything it asks for; ``yes``, or RecBole's own error."""
    settings = {**folder_settings(data_path / "shop"), **KSR_KEYS, "data_path": str(data_path)}
    with registered(), torch.random.fork_rng():
        stock = importlib.import_module("recbole.quick_start").run_recbole
        try:
            stock(model=model, dataset="shop", config_dict=settings, saved=False)
        except RuntimeError as error:
            said = str(error).replace("\n", " ")
            return f"no: RecBole's own error: {type(error).__name__}: {said}"
    return "yes"


def outcome(model: str, data_path: Path, store: str | None) -> str:
    """Train a model for an epoch and rank; ``yes``, or why not."""
    keys = {**KEYS, **MODEL_KEYS.get(model, {}), "model": model, "data_path": str(data_path)}
    try:
        with torch.random.fork_rng():
            result = run({**keys, "item_embeddings": store})
    except InputError as error:
        message = str(error)
    except Exception as error:
        # Whatever RecBole or the model raises is the answer.
        message = f"RecBole's own error: {type(error).__name__} {error}"
    else:
        return "yes" if result.hr > 0 else "yes, but hits nothing"
    message = re.sub(rf"^(RecBole's )?{model} (cannot take item_embeddings: |is )", "", message)
    message = re.split(r"(?<=[a-z'\"])[.;] |\n| Use a model", message)[0].strip().rstrip(".")
    return "no: " + message.replace("|", "/").replace(str(data_path), "<data_path>")[:160]


def row(model: str, data_path: Path) -> str:
    """The model's line of the table."""
    plain = recboles_own(model, data_path) if model == "KSR" else outcome(model, data_path, None)
    fused = outcome(model, data_path, "content") if plain == "yes" else "-"
    return f"| {model} | {plain} | {fused} | {'yes' if model in TRIMMED else 'no'} |"


def models() -> list[str]:
    """Every model of the table, ours first."""
    return [*sorted(OUR_MODELS), *builtin_models()]


def committed() -> dict[str, str]:
    """The lines of the table in docs/models.md, by model."""
    lines = DOC.read_text(encoding="utf-8").splitlines()
    return {line.split(" | ")[0].lstrip("| "): line for line in lines if line.startswith("| ")}


def main() -> None:
    """Rewrite the table."""
    with tempfile.TemporaryDirectory() as folder:
        write_shop(Path(folder))
        lines = []
        for model in models():
            lines.append(row(model, Path(folder)))
            print(lines[-1], flush=True)
    text = DOC.read_text(encoding="utf-8")
    table = HEADER + "\n" + "\n".join(lines) + "\n"
    before, _, rest = text.partition("| Model |")
    after = rest.partition("\n\n")[2]
    DOC.write_text(before + table + ("\n" + after if after else ""), encoding="utf-8")


if __name__ == "__main__":
    main()
