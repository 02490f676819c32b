"""Makes our models known to RecBole itself, for scripts that call RecBole's own `run_recbole`."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from recbole_tpad.bridge import shims
from recbole_tpad.bridge.models import OUR_MODELS
from recbole_tpad.errors import InputError
from recbole_tpad.presets import properties_dir, read_preset, read_yaml

_PACKAGE = "recbole.model.sequential_recommender"


class _State:
    """What `register` changed, for `unregister`."""

    original: Any = None
    numpy_names: tuple[str, ...] = ()


def register() -> None:
    """Register DIMO and our other models with RecBole; calling it again changes nothing.

    Afterwards RecBole's ``run_recbole(model="DIMO", …)`` finds them: as modules, with their YAML
    (below the user's configuration), and with a trainer whose checkpoints load on today's torch.
    numpy gets back the names RecBole needs, and ``recbole.quick_start`` is importable where ray is
    not. ``item_embeddings`` for a built-in model is an error there: only
    ``recbole_tpad.run_recbole`` can attach them.
    """
    if _State.original is not None:
        return
    _State.numpy_names = tuple(shims.set_numpy_names())
    import recbole.trainer
    from recbole.config import Config

    from recbole_tpad.bridge.trainer import SessionTrainer

    for name, module in OUR_MODELS.items():
        sys.modules[f"{_PACKAGE}.{name.lower()}"] = importlib.import_module(module)
        setattr(recbole.trainer, f"{name}Trainer", SessionTrainer)
    original = Config._load_internal_config_dict

    def load_with_ours(self: Any, model: str, model_class: Any, dataset: str) -> None:
        original(self, model, model_class, dataset)
        external = self.external_config_dict
        adjusts = external.get("embedding_kernel") or external.get("cold_items", "score") != "score"
        if adjusts and not hasattr(self, "for_json"):
            raise InputError(
                "RecBole's own run_recbole would ignore cold_items and embedding_kernel. "
                "Call recbole_tpad.run_recbole, which takes the same arguments."
            )
        if model in OUR_MODELS:
            overall = read_yaml(properties_dir() / "overall.yaml")
            for key, value in overall.items():
                self.internal_config_dict.setdefault(key, value)
            self.internal_config_dict.update(read_preset("model", model))
        elif (
            external.get("item_embeddings") is not None
            and not hasattr(self, "for_json")
            and not getattr(model_class, "takes_item_embeddings", False)
        ):
            raise InputError(
                f"RecBole's own run_recbole would ignore item_embeddings for {model}. "
                "Call recbole_tpad.run_recbole, which takes the same arguments."
            )

    Config._load_internal_config_dict = load_with_ours
    _State.original = original
    shims.import_quick_start()


def unregister() -> None:
    """Undo `register`; calling it without one changes nothing."""
    if _State.original is None:
        return
    import recbole.trainer
    from recbole.config import Config

    Config._load_internal_config_dict = _State.original
    _State.original = None
    for name in OUR_MODELS:
        sys.modules.pop(f"{_PACKAGE}.{name.lower()}", None)
        if hasattr(recbole.trainer, f"{name}Trainer"):
            delattr(recbole.trainer, f"{name}Trainer")
    shims.remove_numpy_names(list(_State.numpy_names))
    _State.numpy_names = ()
