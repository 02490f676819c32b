"""Changes to a finished model's scores: a co-occurrence kernel, and a shift of cold items."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.recommenders.embedding_kernel import EmbeddingKernel
from recbole_tpad.recommenders.item_features import Settings, load_item_features
from recbole_tpad.recommenders.sessions import training_item_counts, training_sessions

COLD_MODES = ("score", "calibrated", "exclude")


class ScoreAdjustments(nn.Module):
    """score + kernel_weight · kernel, and cold items shifted or left out.

    Weight and shift are 0 until they are fitted after training; they are kept in checkpoints.

    Attributes:
        mode: ``score`` leaves cold items as they are, ``calibrated`` adds `cold_shift` to their
            scores, ``exclude`` makes them −inf.
        kernel: None where ``embedding_kernel`` is off.
        cold: items without a training interaction, (n_items,), padding left out.
    """

    kernel_weight: Tensor
    cold_shift: Tensor
    cold: Tensor

    def __init__(self, cold: Tensor, mode: str, kernel: EmbeddingKernel | None) -> None:
        super().__init__()
        self.mode, self.kernel = mode, kernel
        self.register_buffer("kernel_weight", torch.zeros(()))
        self.register_buffer("cold_shift", torch.zeros(()))
        self.register_buffer("cold", cold, persistent=False)

    def forward(self, scores: Tensor, item_seq: Tensor) -> Tensor:
        """Return the adjusted scores, (B, n_items).

        Args:
            scores: the model's, (B, n_items).
            item_seq: context, 0 for padding, (B, L).
        """
        weight, shift = float(self.kernel_weight), float(self.cold_shift)
        if self.kernel is not None and weight:
            scores = torch.add(scores, self.kernel.log_scores(item_seq), alpha=weight)
        if self.mode == "exclude":
            return scores.masked_fill(self.cold, float("-inf"))
        return scores + shift * self.cold.to(scores.dtype) if shift else scores


def attach_score_adjustments(model: Any, config: Any, dataset: Any) -> ScoreAdjustments | None:
    """Let a model's ``full_sort_predict`` and ``predict`` return adjusted scores.

    Args:
        model: a RecBole sequential model with full ranking.
        config: keys ``cold_items``, ``embedding_kernel``, ``kernel_temperature``,
            ``kernel_neighbours``, and ``item_embeddings`` for what needs them.
        dataset: RecBole's built training data set.

    Returns:
        The new module ``model.score_adjustments``, or None where the keys ask for nothing.

    Raises:
        InputError: bad values, or a kernel or a calibration without item embeddings.
    """
    config = Settings(config)
    mode, wanted = str(config["cold_items"]), bool(config["embedding_kernel"])
    if mode not in COLD_MODES:
        raise InputError(
            f"cold_items='{mode}' is unknown.{nearest(mode, COLD_MODES)} "
            f"Known: {', '.join(COLD_MODES)}."
        )
    if mode == "score" and not wanted:
        return None
    name = type(model).__name__
    if config["item_embeddings"] is None and (wanted or mode == "calibrated"):
        key = "embedding_kernel" if wanted else "cold_items 'calibrated'"
        raise InputError(f"{key} needs item_embeddings; {name} runs without.")
    if wanted and name == "CoOccurrence":
        raise InputError("CoOccurrence has a kernel of its own; leave embedding_kernel out.")
    trained = training_item_counts(dataset) > 0
    cold = torch.from_numpy(~trained)
    cold[0] = False
    kernel = _build_kernel(config, dataset, trained) if wanted else None
    found = ScoreAdjustments(cold, mode, kernel).to(next(model.parameters()).device)
    model.score_adjustments = found
    model.__class__ = _adjusted(model.__class__)
    return found


def _build_kernel(config: Any, dataset: Any, trained: Any) -> EmbeddingKernel:
    temperature, neighbours = float(config["kernel_temperature"]), int(config["kernel_neighbours"])
    if temperature <= 0 or neighbours < 1:
        raise InputError(
            f"kernel_temperature={temperature} must be positive and kernel_neighbours="
            f"{neighbours} at least 1."
        )
    features = load_item_features(config, dataset)
    if features is None:
        raise AssertionError("a named store always gives features")
    _, sessions = training_sessions(dataset)
    return EmbeddingKernel(sessions, features.rows, np.asarray(trained), temperature, neighbours)


@cache
def _adjusted(base: type) -> type:
    """Return a subclass whose scores pass through ``score_adjustments``."""

    def full_sort_predict(self: Any, interaction: Any) -> Tensor:
        scores = base.full_sort_predict(self, interaction)  # type: ignore[attr-defined]
        scores = scores.view(-1, self.n_items)
        found: Tensor = self.score_adjustments(scores, interaction[self.ITEM_SEQ])
        return found

    def predict(self: Any, interaction: Any) -> Tensor:
        scores = full_sort_predict(self, interaction)
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)

    return type(
        base.__name__,
        (base,),
        {
            "__module__": base.__module__,
            "__doc__": base.__doc__,
            "full_sort_predict": full_sort_predict,
            "predict": predict,
        },
    )
