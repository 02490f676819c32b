"""Frozen multimodal item embeddings for RecBole's sequential recommenders."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "register", "run_recbole"]


def __getattr__(name: str) -> Any:
    # Lazy: `import recbole_tpad` must stay light and must not import recbole.
    if name == "run_recbole":
        from recbole_tpad.bridge.runner import run_recbole

        return run_recbole
    if name == "register":
        from recbole_tpad.bridge.registration import register

        return register
    raise AttributeError(f"module 'recbole_tpad' has no attribute '{name}'")
