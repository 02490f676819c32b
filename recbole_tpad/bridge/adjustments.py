"""Fits what is added to a trained model's scores, and counts the two errors on cold items."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_tpad.bridge.batches import list_field
from recbole_tpad.bridge.checkpoints import read_checkpoint, save_checkpoint
from recbole_tpad.bridge.scoring import rank_variants
from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.cold_items import (
    ColdErrors,
    calibrated_shift,
    cold_errors,
    entry_shifts,
)
from recbole_tpad.recommenders.row_smoothing import AUTO, RowSmoothing
from recbole_tpad.recommenders.score_adjustments import ScoreAdjustments
from recbole_tpad.recommenders.sessions import training_item_counts

logger = logging.getLogger("recbole_tpad")
_FLOODED, _MANY_TIMES = 0.1, 3  # from where on cold items are too many (assumption)

KERNEL_WEIGHTS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# In units of the model's score, which for cross-entropy are nats.
HISTORY_SHIFTS = (0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0, -8.0, 0.5, 1.0, 2.0, 4.0, 8.0)
KERNEL_DECAYS = (1.0, 0.8, 0.6, 0.4)
ROW_STRENGTHS = (0.0, 0.3, 1.0, 3.0, 10.0)
_CHOICES = {
    "row_smoothing": ROW_STRENGTHS,
    "kernel_weight": KERNEL_WEIGHTS,
    "cooccurrence_weight": KERNEL_WEIGHTS,
    "similarity_weight": KERNEL_WEIGHTS,
    "kernel_decay": KERNEL_DECAYS,
    "history_shift": HISTORY_SHIFTS,
}
_CONTEXTS = 4000
_ROWS = 256


def check_adjustments(config: Any) -> None:
    """Refuse, before training, what could not be chosen after it.

    Raises:
        InputError: own items are to be moved, and the ranking leaves them out.
    """
    if config["history_items"] == "calibrated" and config["mask_history"]:
        raise InputError(
            "history_items 'calibrated' moves a session's own items, and mask_history leaves them "
            "out of the ranking. Drop one of the two keys."
        )


def fit_adjustments(
    config: Any, model: Any, trainer: Any, loaders: Any, *, saved: bool
) -> dict[str, float]:
    """Choose rows' smoothing, kernels' weights and the shift of own items on validation.

    Last comes the shift of cold items.

    Args:
        config: keys ``kernel_weight``, ``cooccurrence_weight``, ``similarity_weight``,
            ``kernel_decay``, ``history_shift`` and ``cold_share``; null: choose, estimate;
            ``row_smoothing`` ``auto``: choose.
        model: the trained model.
        trainer: its `SessionTrainer`.
        loaders: its data.
        saved: the checkpoint exists and is to hold the fitted numbers.

    Returns:
        What was chosen, by name; empty where the model has no adjustments.

    Raises:
        InputError: a weight or a share that is out of range.
    """
    found: ScoreAdjustments | None = getattr(model, "score_adjustments", None)
    smoothing = next((m for m in model.modules() if isinstance(m, RowSmoothing) and m.free), None)
    if found is None and smoothing is None:
        return {}
    model.eval()
    if found is not None:
        found.leave_cold_out()
    chosen = _fit_weights(config, found, smoothing, trainer, loaders.valid)
    if found is not None and found.mode == "calibrated":
        valid, given = loaders.valid._dataset, config["cold_share"]
        if given is None:
            share = float(found.cold.cpu()[valid.inter_feat[valid.iid_field]].float().mean())
        else:
            share = float(given)
        if not 0 <= share <= 1:
            raise InputError(f"cold_share={given} must be in [0, 1].")
        k = max(config["topk"])
        found.cold_shift.zero_()
        shifts = [
            entry_shifts(scores, found.cold, k)
            for scores in _validation_scores(config, model, loaders.valid)
        ]
        chosen["cold_share"] = share
        chosen["cold_shift"] = calibrated_shift(torch.cat(shifts), share)
        found.cold_shift.fill_(chosen["cold_shift"])
    if saved:
        _, state = read_checkpoint(trainer.saved_model_file)
        state.pop("format")
        save_checkpoint(trainer.saved_model_file, model, {**state, "adjustments": chosen})
    return chosen


def _fit_weights(
    config: Any,
    found: ScoreAdjustments | None,
    smoothing: RowSmoothing | None,
    trainer: Any,
    valid: Any,
) -> dict[str, float]:
    """Set and return the weights: given ones as they are, the others chosen on validation.

    One at a time, the others held, twice where there are several; of equal ones the first choice.
    """
    numbers = {} if smoothing is None else {"row_smoothing": smoothing.strength}
    if found is not None:
        names = [*found.terms, *(["kernel_decay"] if found.kernels else [])]
        numbers |= {name: getattr(found, name) for name in names}
    chosen: dict[str, float] = {}
    for name, number in numbers.items():
        if config[name] not in (None, AUTO):
            chosen[name] = _given(name, config[name])
        # The first choice changes nothing; an earlier fit of this model is no place to start from.
        number.fill_(chosen.get(name, _CHOICES[name][0]))
    free = [name for name in numbers if name not in chosen]
    sign = 1.0 if trainer.valid_metric_bigger else -1.0
    for _ in range(min(2, len(free))):
        for name in free:
            if found is None or name == "row_smoothing":
                scores = _scores_by_number(numbers[name], _CHOICES[name], trainer, valid)
            else:
                scores = _scores_by_choice(config, found, trainer, valid, name)
            # max keeps the first of equals.
            best = max(range(len(scores)), key=lambda k: sign * scores[k])
            chosen[name] = _CHOICES[name][best]
            numbers[name].fill_(chosen[name])
            logger.info(
                "%s %g by %s %.4f", name, chosen[name], config["valid_metric"], scores[best]
            )
    return {name: chosen[name] for name in numbers}


def _given(name: str, value: Any) -> float:
    number = float(value)
    right, wanted = math.isfinite(number) and number >= 0, "0 or more"
    if name == "history_shift":
        right, wanted = math.isfinite(number), "a finite number"
    elif name == "kernel_decay":
        right, wanted = 0 < number <= 1, "in (0, 1]"
    if not right:
        raise InputError(f"{name}={value} must be {wanted}.")
    return number


def _scores_by_number(
    number: Tensor, choices: Sequence[float], trainer: Any, valid: Any
) -> list[float]:
    """Return the validation score under each choice of what the model's own scores depend on."""
    scores = []
    for choice in choices:
        number.fill_(choice)
        scores.append(trainer._score(trainer._recbole_result(trainer.rank(valid))))
    return scores


def _scores_by_choice(
    config: Any, found: ScoreAdjustments, trainer: Any, valid: Any, name: str
) -> list[float]:
    """Return the validation score under each choice; the model scores each row once."""
    field, choices = list_field(config), _CHOICES[name]
    held = {term: float(getattr(found, term)) for term in found.terms}
    # What the choice changes is left out of the model's scores and added here.
    changed = [term for term in found.kernels if held[term]] if name == "kernel_decay" else [name]
    for term in changed:
        getattr(found, term).fill_(0.0)

    def weighted(scores: Tensor, batch: Any) -> Iterator[Tensor]:
        if name != "kernel_decay":
            term = found.term(name, batch[field])
            for weight in choices:
                yield torch.add(scores, term, alpha=weight)
            return
        for decay in choices:
            found.kernel_decay.fill_(decay)
            total = scores.clone()
            for kernel in changed:
                total.add_(found.term(kernel, batch[field]), alpha=held[kernel])
            yield total

    rankings = rank_variants(
        trainer.model, config, trainer.device, valid, weighted, variants=len(choices)
    )
    if name == "kernel_decay":
        for term in changed:
            getattr(found, term).fill_(held[term])
    return [trainer._score(trainer._recbole_result(ranking)) for ranking in rankings]


@torch.no_grad()
def _validation_scores(config: Any, model: Any, valid: Any) -> Iterator[Tensor]:
    """Yield scores, (rows, n_items), on at most `_CONTEXTS` contexts of the validation part.

    Not on training sessions: a model knows those by heart, and no unseen item is among them.
    """
    rng = np.random.default_rng(int(config["seed"]))
    picked = np.sort(rng.permutation(len(valid._dataset))[:_CONTEXTS])
    for start in range(0, len(picked), _ROWS):
        batch = valid.collate_fn(picked[start : start + _ROWS])[0].to(config["device"])
        scores = model.full_sort_predict(batch)
        yield _candidates(config, scores, batch, valid._dataset)


def _candidates(config: Any, scores: Tensor, batch: Any, dataset: Any) -> Tensor:
    scores = scores.detach().reshape(-1, dataset.item_num).clone()
    scores[:, 0] = float("-inf")
    if config["mask_history"]:
        scores.scatter_(1, batch[dataset.iid_field + config["LIST_SUFFIX"]], float("-inf"))
    return scores


@torch.no_grad()
def cold_rates(config: Any, model: Any, loaders: Any) -> dict[str, dict[str, float]]:
    """Return the two errors on the test part, by the slice of targets they are about.

    ``warm``: ``flooding``, the share of rows with a trained target that show a cold item in the
    top k. ``unseen``: ``burying``, the share of rows with a cold target that is not in the top k
    though among the best k of the cold items. k is the largest of ``topk``. Empty without item
    embeddings or cold targets.
    """
    train, test = loaders.train._dataset, loaders.test._dataset
    cold = torch.from_numpy(training_item_counts(train) == 0).to(config["device"])
    cold[0] = False
    targets = test.inter_feat[test.iid_field].numpy()
    if config["item_embeddings"] is None or not bool(cold.cpu()[targets].any()):
        return {}
    model.eval()
    k = max(config["topk"])
    total = ColdErrors(0, 0, 0, 0, 0, 0)
    for rows in np.array_split(np.arange(len(targets)), max(1, len(targets) // _ROWS)):
        batch = loaders.test.collate_fn(rows)[0].to(config["device"])
        scores = _scores_with_target(config, model, batch, test)
        total += cold_errors(scores, batch[test.iid_field], cold, k)
    return {
        "warm": {f"flooding@{k}": total.flooded / max(total.warm_rows, 1)},
        "unseen": {
            f"burying@{k}": total.buried / max(total.cold_rows, 1),
            f"cold_places@{k}": total.cold_slots / max(total.slots, 1),
        },
    }


def flooding_warning(slices: Mapping[str, Mapping[str, float]], k: int) -> str | None:
    """Return what to do where cold items take far more places than targets are cold, else None.

    Args:
        slices: ``rows`` of each slice of the test part, with what `cold_rates` returns.
        k: the largest of ``topk``.
    """
    flooded = slices["warm"].get(f"flooding@{k}", 0.0)
    places = slices["unseen"].get(f"cold_places@{k}", 0.0)
    share = slices["unseen"]["rows"] / sum(own["rows"] for own in slices.values())
    if flooded < _FLOODED or places < _MANY_TIMES * share:
        return None
    return (
        f"Items without a training interaction take {places:.1%} of the places, and {flooded:.0%} "
        f"of the lists for other targets show one, but {share:.1%} of the test targets are such. "
        "The model's scores say little about them: cold_items=calibrated gives them the share that "
        "they have among the validation part's targets, cold_items=exclude leaves them out."
    )


def _scores_with_target(config: Any, model: Any, batch: Any, dataset: Any) -> Tensor:
    raw = model.full_sort_predict(batch).detach().reshape(-1, dataset.item_num)
    target = batch[dataset.iid_field].unsqueeze(1)
    own = raw.gather(1, target)
    return _candidates(config, raw, batch, dataset).scatter_(1, target, own)
