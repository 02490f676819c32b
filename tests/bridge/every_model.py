"""What every sequential model does here; as a program it rewrites the table in docs/models.md.

Usage: ``PYTHONPATH=tests python tests/bridge/every_model.py``, in the repository.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_data import planted_sessions, write_data_set

from recbole_tpad.bridge.batches import TRIMMED
from recbole_tpad.bridge.models import OUR_MODELS, builtin_models
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
MODEL_KEYS: dict[str, dict[str, Any]] = {
    "GRU4RecCPR": {"reranker_CAN_NUM": 10},
    "S3Rec": {"pretrain_epochs": 1},
    "SASRecCPR": {"reranker_CAN_NUM": 10},
}


def write_shop(data_path: Path) -> None:
    """A data set with item features and a store of random vectors, everything seen in training."""
    train, valid, test = planted_sessions(N_ITEMS, 60)
    folder = write_data_set(data_path, "shop", train, valid, test, max_len=10)
    ids = sorted({item for part in (train, valid, test) for _, items in part for item in items})
    lines = ["item_id:token\ttitle:token_seq\tbrand:token\tcategory:token\tprice:float"]
    lines += [f"{item}\tmug {item}\tb{k % 3}\tc{k % 4}\t{k}.5" for k, item in enumerate(ids)]
    (folder / "shop.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
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
    plain = outcome(model, data_path, None)
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
