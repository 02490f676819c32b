"""Changes to a finished model's scores: co-occurrence kernels, own items, cold items."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.recommenders.context_kernel import (
    ContextKernel,
    kernel_settings,
    similarity_kernel,
)
from recbole_tpad.recommenders.fused_tables import FusedItemEmbedding
from recbole_tpad.recommenders.item_features import Settings, load_item_features
from recbole_tpad.recommenders.item_graph import cooccurrence_counts
from recbole_tpad.recommenders.sessions import training_item_counts, training_sessions

COLD_MODES = ("score", "calibrated", "exclude")
HISTORY_MODES = ("score", "calibrated")
# The weight of each kernel, and the matrices it goes through (see `ContextKernel`).
KERNELS: Mapping[str, tuple[str, str]] = {
    "embedding_kernel": ("kernel_weight", "FK"),
    "cooccurrence_kernel": ("cooccurrence_weight", "F"),
    "similarity_kernel": ("similarity_weight", "K"),
}
NEED_EMBEDDINGS = {"embedding_kernel", "similarity_kernel"}
# Keys that RecBole's own line would ignore, with the value that asks for nothing.
ADJUSTMENT_KEYS: Mapping[str, Any] = {
    "cold_items": "score",  # whatever the default is, which RecBole's own line has no use for
    "history_items": "score",
    "embedding_kernel": False,
    "cooccurrence_kernel": False,
    "similarity_kernel": False,
}


class ScoreAdjustments(nn.Module):
    """score + Σ weight · kernel + shift of the session's own items; cold items shifted or left out.

    Weights and shifts are 0 until they are fitted after training; they are kept in checkpoints.
    Cold items that are to be shifted are left out until then, so that the epoch and the weights
    are not chosen among scores that nothing in training holds where they are.

    Args:
        cold: items without a training interaction, (n_items,), padding left out.
        mode: ``score`` leaves cold items as they are, ``calibrated`` adds `cold_shift` to their
            scores, ``exclude`` makes them −inf.
        kernels: by the name of their weight: ``kernel_weight``, ``cooccurrence_weight``,
            ``similarity_weight``.
        own_items: add ``history_shift`` to the scores of items that are in the context.

    Attributes:
        terms: names of the weights above that are in use; each is a buffer, ().
        kernel_decay: of the context in all kernels, 1 until it is fitted.
    """

    kernel_decay: Tensor
    cold_shift: Tensor
    cold: Tensor

    def __init__(
        self,
        cold: Tensor,
        mode: str,
        kernels: Mapping[str, ContextKernel],
        own_items: bool = False,
    ) -> None:
        super().__init__()
        self.mode, self.kernels = mode, dict(kernels)
        self.terms = (*self.kernels, "history_shift") if own_items else tuple(self.kernels)
        for name in self.terms:
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("cold_shift", torch.zeros(()))
        self.leave_cold_out()
        self.register_buffer("kernel_decay", torch.ones(()))
        self.register_buffer("cold", cold, persistent=False)

    def leave_cold_out(self) -> None:
        """Take back the shift of cold items; in mode ``calibrated`` they are out until the next."""
        self.cold_shift.fill_(float("-inf") if self.mode == "calibrated" else 0.0)

    def term(self, name: str, item_seq: Tensor) -> Tensor:
        """Return what the weight `name` multiplies, (B, n_items).

        Args:
            name: one of `terms`.
            item_seq: context, 0 for padding, (B, L).
        """
        if name in self.kernels:
            return self.kernels[name].log_scores(item_seq, float(self.kernel_decay))
        own = torch.zeros(item_seq.shape[0], len(self.cold), device=item_seq.device)
        own.scatter_(1, item_seq, 1.0)  # once, however often an item occurs
        own[:, 0] = 0.0
        return own

    def forward(self, scores: Tensor, item_seq: Tensor) -> Tensor:
        """Return the adjusted scores, (B, n_items).

        Args:
            scores: the model's, (B, n_items).
            item_seq: context, 0 for padding, (B, L).
        """
        for name in self.terms:
            weight = float(getattr(self, name))
            if weight:
                scores = torch.add(scores, self.term(name, item_seq), alpha=weight)
        shift = float(self.cold_shift)
        if self.mode == "exclude" or shift == float("-inf"):
            return scores.masked_fill(self.cold, float("-inf"))
        return scores + shift * self.cold.to(scores.dtype) if shift else scores


def attach_score_adjustments(model: Any, config: Any, dataset: Any) -> ScoreAdjustments | None:
    """Let a model's ``full_sort_predict`` and ``predict`` return adjusted scores.

    Args:
        model: a RecBole sequential model with full ranking.
        config: keys ``cold_items``, ``history_items``, ``embedding_kernel``,
            ``cooccurrence_kernel``, ``similarity_kernel``, ``kernel_temperature``,
            ``kernel_neighbours``, and ``item_embeddings`` for what needs them.
        dataset: RecBole's built training data set.

    Returns:
        The new module ``model.score_adjustments``, or None where the keys ask for nothing.

    Raises:
        InputError: bad values, or a kernel or a calibration without the item embeddings it needs.
    """
    config = Settings(config)
    name = type(model).__name__
    trained = training_item_counts(dataset) > 0
    mode = _cold_mode(config, model, bool(trained[1:].all()))
    own_items = _mode(config, "history_items", HISTORY_MODES) == "calibrated"
    wanted = {key for key in KERNELS if config[key]}
    if name == "CoOccurrence" and config["item_embeddings"] is not None:
        wanted.add("similarity_kernel")  # what it uses them for
    if mode == "score" and not (own_items or wanted):
        return None
    if config["item_embeddings"] is None and (wanted & NEED_EMBEDDINGS or mode == "calibrated"):
        key = min(wanted & NEED_EMBEDDINGS, default="cold_items 'calibrated'")
        instead = " cooccurrence_kernel needs none." if wanted & NEED_EMBEDDINGS else ""
        raise InputError(f"{key} needs item_embeddings; {name} runs without.{instead}")
    if name == "CoOccurrence" and wanted - {"similarity_kernel"}:
        key = min(wanted - {"similarity_kernel"})
        raise InputError(
            f"CoOccurrence counts by itself; leave {key} out. With item embeddings it adds "
            "similarity_kernel."
        )
    cold = torch.from_numpy(~trained)
    cold[0] = False
    kernels = _build_kernels(wanted, config, dataset, trained)
    device = next(model.parameters()).device
    found = ScoreAdjustments(cold, mode, kernels, own_items).to(device)
    model.score_adjustments = found
    model.__class__ = _adjusted(model.__class__)
    return found


def _mode(config: Settings, key: str, known: tuple[str, ...]) -> str:
    mode = str(config[key])
    if mode not in known:
        raise InputError(
            f"{key}='{mode}' is unknown.{nearest(mode, known)} Known: {', '.join(known)}."
        )
    return mode


def _cold_mode(config: Settings, model: Any, none_cold: bool) -> str:
    """Return ``cold_items``; where it is null, ``calibrated`` if unseen rows are like the others.

    That is so in DIMO and in fused tables: there a shift found on the validation part gives the
    test part's lists the share that was asked for. With MMSBR it gives them twice that.
    """
    if config["cold_items"] is not None:
        return _mode(config, "cold_items", COLD_MODES)
    alike = getattr(model, "unseen_rows_alike", False) or any(
        isinstance(module, FusedItemEmbedding) for module in model.modules()
    )
    known = alike and config["item_embeddings"] is not None
    return "calibrated" if known and not none_cold else "score"


def _build_kernels(
    wanted: set[str], config: Settings, dataset: Any, trained: Any
) -> dict[str, ContextKernel]:
    temperature, neighbours = kernel_settings(config)
    # Each matrix once, whichever kernels share it.
    factors: dict[str, Any] = {}
    if wanted - {"similarity_kernel"}:
        factors["F"] = cooccurrence_counts(training_sessions(dataset)[1], dataset.item_num)
    if wanted & NEED_EMBEDDINGS:
        features = load_item_features(config, dataset)
        if features is None:
            raise AssertionError("a named store always gives features")
        factors["K"] = similarity_kernel(
            features.rows, np.asarray(trained), temperature, neighbours
        )
    return {
        weight: ContextKernel(*(factors[factor] for factor in used))
        for key, (weight, used) in KERNELS.items()
        if key in wanted
    }


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
