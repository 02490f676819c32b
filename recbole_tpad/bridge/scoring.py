"""Scores of an evaluation part, batch by batch, and the ranks that follow from them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_tpad.bridge.batches import list_field, shuffled, trimmed
from recbole_tpad.bridge.ranking import (
    Ranking,
    refuse_constant,
    rows_per_batch,
    sorted_ranks,
    target_ranks,
)
from recbole_tpad.errors import InputError
from recbole_tpad.progress import progress

# What a click model's layers hold at a place of a history: a few activations of about 300 wide.
_BYTES_A_PLACE = 4096


# The C library maps larger tensors anew each time, and faulting their pages in takes a CPU as long
# as the arithmetic (measured: 512 rows of 4,345 items twice as fast as 4,096). But rows share a
# model's pass over its item table: at least so many.
_CPU_BATCH_BYTES, _CPU_LEAST_ROWS = 8 * 2**20, 64
# Further copies of a batch's scores where each is ranked in several variants.
_VARIANTS_SHARE = 0.6


def rank_part(
    model: Any, config: Any, device: torch.device, eval_data: Any, show_progress: bool = False
) -> Ranking:
    """Rank every row's target among all items.

    Rows are scored in the order of their length, so that little padding is computed; the result is
    in the order of the data set.

    Args:
        model: a RecBole model; it is switched to evaluation.
        config: keys ``mask_history``, ``rank_memory_mb``, ``eval_batch_size``,
            ``rank_by_counting``, ``trim_padding``.
        device: of the model.
        eval_data: RecBole's full-ranking loader of a sequential model.
        show_progress: a progress bar.

    Raises:
        EvaluationError: NaN scores, or the same score for all items in every row.
        InputError: the model cannot score, or the loader samples candidates.
    """
    (found,) = rank_variants(model, config, device, eval_data, None, show_progress=show_progress)
    return found


@torch.no_grad()
def rank_variants(
    model: Any,
    config: Any,
    device: torch.device,
    eval_data: Any,
    change: Callable[[Tensor, Any], Iterator[Tensor]] | None,
    *,
    variants: int = 1,
    show_progress: bool = False,
) -> list[Ranking]:
    """Rank as `rank_part` does under several changes of the same scores, which are computed once.

    Args:
        model, config, device, eval_data, show_progress: see `rank_part`.
        change: called with a batch's scores, (B, n_items), and the batch; yields `variants` new
            tensors like the scores. None ranks the scores themselves.
        variants: how many.

    Returns:
        A ranking for each variant.
    """
    if not isinstance(eval_data, FullSortEvalDataLoader):
        raise InputError(
            "eval_args: mode samples candidates; results here are full rankings. Leave mode out."
        )
    model.eval()
    dataset = eval_data._dataset
    rows_of = dataset.inter_feat
    order = np.arange(len(rows_of))
    if config["trim_padding"] is not False:
        order = np.argsort(rows_of[config["ITEM_LIST_LENGTH_FIELD"]].numpy(), kind="stable")
    ranks = np.zeros((variants, len(order)), dtype=np.int64)
    constant = np.zeros((variants, len(order)), dtype=np.bool_)
    order_of = torch.Generator().manual_seed(int(config["seed"]))
    ranked = target_ranks if config["rank_by_counting"] is not False else sorted_ranks
    share = 1.0 if change is None else _VARIANTS_SHARE
    for rows in progress(
        list(evaluation_batches(config, order, dataset.item_num, share)),
        desc="Ranking",
        wanted=show_progress,
        delay=0,
    ):
        interaction = trimmed(config, eval_data.collate_fn(rows)[0].to(device))
        if config["shuffle_history"]:
            interaction = shuffled(config, interaction, order_of)
        scores = scores_of(model, config, interaction, dataset.item_num)
        targets = interaction[config["ITEM_ID_FIELD"]]
        history = interaction[list_field(config)] if config["mask_history"] else None
        changed = iter((scores,)) if change is None else change(scores, interaction)
        for variant, own in enumerate(changed):
            found, same = ranked(own, targets, history)
            ranks[variant, rows] = found.cpu().numpy()
            constant[variant, rows] = same.cpu().numpy()
    for alike in constant:
        refuse_constant(alike, str(config["model"]))
    targets, sessions = (rows_of[f].numpy() for f in (dataset.iid_field, dataset.uid_field))
    return [Ranking(found, targets, sessions) for found in ranks]


@torch.no_grad()
def request_milliseconds(
    model: Any, config: Any, device: torch.device, eval_data: Any, requests: int
) -> float | None:
    """Return the median time to score all items for one session and take the best ten.

    Sessions come one at a time, as requests do; the first one, which warms up, does not count.

    Args:
        model, config, device, eval_data: see `rank_part`.
        requests: how many sessions to time; 0 measures nothing and returns None.
    """
    rows = min(requests, len(eval_data._dataset.inter_feat))
    if rows <= 0:
        return None
    model.eval()
    n_items = eval_data._dataset.item_num
    times = []
    for row in [0, *range(rows)]:
        interaction = trimmed(config, eval_data.collate_fn(np.array([row]))[0].to(device))
        started = time.perf_counter()
        best = scores_of(model, config, interaction, n_items).topk(min(10, n_items)).indices
        best.cpu()  # waits for the device
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[1:])


def evaluation_batches(config: Any, order: Any, n_items: int, share: float = 1.0) -> Iterator[Any]:
    """Cut the rows of `order` into batches whose scores fit into a share of the memory budget."""
    budget = share * (config["rank_memory_mb"] or 512)
    size = rows_per_batch(n_items, budget, int(config["eval_batch_size"]))
    if torch.device(config["device"]).type == "cpu":
        size = min(size, max(_CPU_LEAST_ROWS, _CPU_BATCH_BYTES // (4 * n_items)))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def scores_of(model: Any, config: Any, interaction: Any, n_items: int) -> Tensor:
    """Return a model's scores of all items, (rows, n_items).

    Raises:
        InputError: the model has neither ``full_sort_predict`` nor ``predict``.
    """
    try:
        scores = model.full_sort_predict(interaction)
    except NotImplementedError:
        scores = _scores_by_pair(model, config, interaction, n_items)
    found: Tensor = scores.detach().reshape(-1, n_items)
    return found if found.dtype.is_floating_point else found.float()


def _scores_by_pair(model: Any, config: Any, interaction: Any, n_items: int) -> Tensor:
    """Score every item with every session by `predict`, for models that only judge pairs (DIN)."""
    items = torch.arange(n_items, device=interaction[config["ITEM_ID_FIELD"]].device)
    width = interaction[list_field(config)].shape[1]
    budget = (config["rank_memory_mb"] or 512) * 2**20
    at_once = max(1, budget // (width * _BYTES_A_PLACE))
    found = []
    for session in range(len(interaction)):
        row = interaction[session : session + 1]
        for part in torch.split(items, at_once):
            pairs = row.repeat_interleave(len(part))
            pairs.update(Interaction({config["ITEM_ID_FIELD"]: part}))
            try:
                found.append(model.predict(pairs).reshape(-1))
            except NotImplementedError as error:
                raise InputError(
                    f"{config['model']} has neither full_sort_predict nor predict; it cannot be "
                    "ranked."
                ) from error
    return torch.cat(found)
