"""RecBole's own trainers on today's torch, for stock runs of RecBole's own models."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch

_WRITTEN = "_recbole_tpad_written"


def reading_its_own_file(trainer: type) -> dict[str, Callable[..., Any]]:
    """Return the two methods by which a trainer reads back the best epoch it wrote itself.

    RecBole saves a pickle and reads it with ``torch.load``, which refuses pickles since torch 2.6:
    a run then fails after its training. The trainer that wrote a file, and that has seen nobody
    change it since, may read it; every other file is torch's own decision.

    Args:
        trainer: RecBole's ``Trainer``.

    Returns:
        ``_save_checkpoint`` and ``evaluate``.
    """
    save: Callable[..., Any] = vars(trainer)["_save_checkpoint"]
    evaluate: Callable[..., Any] = vars(trainer)["evaluate"]

    @wraps(save)
    def _save_checkpoint(self: Any, epoch: int, *args: Any, **kwargs: Any) -> None:
        file = kwargs.get("saved_model_file", self.saved_model_file)
        save(self, epoch, *args, **kwargs)
        vars(self).setdefault(_WRITTEN, {})[str(file)] = _state(file)

    @wraps(evaluate)
    def evaluated(
        self: Any,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: Any = None,
        show_progress: bool = False,
    ) -> Any:
        file = str(model_file or self.saved_model_file)
        known = vars(self).get(_WRITTEN, {}).get(file)
        if eval_data and load_best_model and known is not None and known == _state(file):
            found = torch.load(file, map_location=self.device, weights_only=False)
            self.model.load_state_dict(found["state_dict"])
            self.model.load_other_parameter(found.get("other_parameter"))
            self.logger.info("Loading model structure and parameters from %s", file)
            load_best_model = False
        return evaluate(self, eval_data, load_best_model, model_file, show_progress)

    return {"_save_checkpoint": _save_checkpoint, "evaluate": evaluated}


def _state(file: Any) -> tuple[int, int, int] | None:
    """What tells that a file has been written again; None where there is none."""
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
