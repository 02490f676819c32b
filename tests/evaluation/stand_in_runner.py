"""Runners for tests: importable by name, as the pool's processes need them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Return made-up metrics, leave a trace of the call, or fail as the config says."""
    print(f"training {config['model']}")
    trace = config.get("trace")
    if trace:
        with Path(trace).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {config['model']} {config['item_embeddings']}\n")
    behaviour = config.get("behaviour")
    if behaviour == "raise":
        raise ValueError("planted failure")
    if behaviour == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "wait":
        time.sleep(60)
    score = float("nan") if behaviour == "nan" else 0.1 + 0.01 * config["seed"]
    score += 0.05 * (config["item_embeddings"] is not None)
    metrics = {"HR@5": score, "HR@10": 2 * score, "NDCG@5": score / 2, "NDCG@10": score / 2}
    return {
        "model": config["model"],
        "ranks": [1 + (7 * k + config["seed"]) % 20 for k in range(34)],
        "target_counts": [9] * 30 + [2] * 3 + [0],
        "metrics": metrics,
        "valid": metrics,
        "slices": {
            "warm": {"rows": 30, **metrics},
            "rare": {"rows": 3, **metrics, "HR@10": 0.3},
            "unseen": {"rows": 1, **metrics, "HR@10": 0.1},
        },
        "seconds": 0.5,
        "peak_mb": 100.0,
        "loss": "CE",
        "parameters": 10,
        "epochs": 1,
        "best_epoch": 0,
        "curve": [{"epoch": 0, "train_loss": float("nan"), "valid": metrics}],
    }
