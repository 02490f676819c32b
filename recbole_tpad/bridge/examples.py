"""What a trained model recommends to a few test sessions, in item ids that outlive the run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_tpad.bridge.batches import list_field, trimmed
from recbole_tpad.bridge.ranking import target_ranks
from recbole_tpad.bridge.scoring import scores_of


@torch.no_grad()
def example_sessions(
    model: Any, config: Any, device: torch.device, eval_data: Any, count: int, top: int = 10
) -> list[dict[str, Any]]:
    """Recommend to test sessions spread evenly over the part, the same for every model.

    Args:
        model, config, device, eval_data: see `scoring.rank_part`.
        count: sessions; 0 gives none.
        top: recommendations a session.

    Returns:
        Entries with the tokens ``session``, ``context`` (oldest first), ``target``, its ``rank``,
        and ``top``; DIMO with two views adds ``reasons``, one for each of ``top``: ``reason``,
        ``item`` (of the context) and ``times``, see `recommenders.dimo.Explanation`.
    """
    dataset = eval_data._dataset
    n_rows, n_items = len(dataset.inter_feat), dataset.item_num
    count, top = min(count, n_rows), min(top, n_items - 1)
    if count <= 0:
        return []
    model.eval()
    rows = np.unique(np.linspace(0, n_rows - 1, count).round().astype(np.int64))
    interaction = trimmed(config, eval_data.collate_fn(rows)[0].to(device))
    targets = interaction[config["ITEM_ID_FIELD"]]
    history = interaction[list_field(config)]
    scores = scores_of(model, config, interaction, n_items).float().clone()
    ranks, _ = target_ranks(scores.clone(), targets, history if config["mask_history"] else None)
    best = _candidates(scores, history if config["mask_history"] else None).topk(top).indices
    lengths = interaction[config["ITEM_LIST_LENGTH_FIELD"]]
    items, sessions = (dataset.field2id_token[f] for f in (dataset.iid_field, dataset.uid_field))
    found: list[dict[str, Any]] = []
    for row in range(len(rows)):
        context = history[row, : int(lengths[row])].tolist()
        entry: dict[str, Any] = {
            "session": str(sessions[int(interaction[dataset.uid_field][row])]),
            "context": [str(items[i]) for i in context],
            "target": str(items[int(targets[row])]),
            "rank": int(ranks[row]),
            "top": [str(items[i]) for i in best[row].tolist()],
        }
        if getattr(model, "two_views", False):
            repeated = history[row : row + 1].expand(top, -1)
            reasons = model.explain(repeated, lengths[row].expand(top), best[row])
            entry["reasons"] = [
                {"reason": r.reason, "item": str(items[r.context_item]), "times": r.shared_sessions}
                for r in reasons
            ]
        found.append(entry)
    return found


def _candidates(scores: Tensor, history: Tensor | None) -> Tensor:
    scores[:, 0] = -torch.inf
    return scores if history is None else scores.scatter(1, history, -torch.inf)
