"""Frozen multimodal item embeddings for RecBole's sequential recommenders."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "load_run",
    "objective_function",
    "register",
    "run_recbole",
    "unregister",
]

_HOMES = {
    "load_run": "recbole_tpad.bridge.saved_runs",
    "objective_function": "recbole_tpad.bridge.runner",
    "register": "recbole_tpad.bridge.registration",
    "run_recbole": "recbole_tpad.bridge.runner",
    "unregister": "recbole_tpad.bridge.registration",
}


def __getattr__(name: str) -> Any:
    # Lazy: `import recbole_tpad` must stay light and must not import recbole.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'recbole_tpad' has no attribute '{name}'")
