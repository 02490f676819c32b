"""Recommendations of a trained DIMO with the sentence its two views justify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_tpad.bridge.ranking import rows_per_batch
from recbole_tpad.bridge.runner import load_run
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.recommenders.dimo import DIMO, Explanation

_BATCH = 256


@dataclass(frozen=True, slots=True)
class ExplainedItem:
    """One recommended item.

    Attributes:
        rank: 1 is best.
        score: id_share + modality_share, the logit, + adjustment.
        adjustment: what kernels and shifts add to the logit (`ScoreAdjustments`).
        sentence: the reason in words, with titles.
    """

    rank: int
    item_id: str
    title: str
    score: float
    id_share: float
    modality_share: float
    adjustment: float
    reason: str
    context_item: str
    shared_sessions: int
    sentence: str


@dataclass(frozen=True, slots=True)
class ExplainedSession:
    """A test session, its recommendations, and where its true next item ranked among `items`."""

    session_id: str
    context: tuple[str, ...]
    context_titles: tuple[str, ...]
    target: str
    items: tuple[ExplainedItem, ...]


def explain_sessions(
    checkpoint: str | Path,
    sessions: Sequence[str] | int = 3,
    *,
    top: int = 5,
    config_dict: dict[str, Any] | None = None,
) -> list[ExplainedSession]:
    """Explain the best recommendations of a saved DIMO run for sessions of the test part.

    Args:
        checkpoint: a ``.safetensors`` file of a run of DIMO with item embeddings.
        sessions: session ids, or how many of the first test sessions.
        top: recommendations a session.
        config_dict: keys that differ now, for instance ``data_path``.

    Raises:
        InputError: the run is not a DIMO with two views, or a session is not in the test part.
    """
    config, model, loaders = load_run(checkpoint, config_dict)
    if not isinstance(model, DIMO):
        raise InputError(
            f"{checkpoint} is a run of {type(model).__name__}. Only DIMO has the two views that an "
            "explanation compares."
        )
    if top < 1:
        raise InputError(f"top={top} must be at least 1.")
    test = loaders.test._dataset
    session_token, item_token = (test.field2id_token[f] for f in (test.uid_field, test.iid_field))
    rows = _rows(sessions, [str(session_token[s]) for s in test.inter_feat[test.uid_field]])
    titles = _titles(config, [str(t) for t in item_token])
    found: list[ExplainedSession] = []
    size = rows_per_batch(model.n_items, config["rank_memory_mb"] or 512, _BATCH)
    for start in range(0, len(rows), size):
        batch = loaders.test.collate_fn(np.array(rows[start : start + size]))[0]
        batch = batch.to(config["device"])
        found += _explain_batch(model, batch, top, session_token, item_token, titles)
    return found


def _rows(sessions: Sequence[str] | int, known: list[str]) -> list[int]:
    if isinstance(sessions, int):
        if sessions < 1:
            raise InputError(f"sessions={sessions} must be at least 1.")
        return list(range(min(sessions, len(known))))
    at = {session: row for row, session in enumerate(known)}
    for session in sessions:
        if session not in at:
            raise InputError(
                f"No session '{session}' in the test part.{nearest(session, known)} "
                f"It holds {len(known)} sessions, first: {', '.join(known[:3])}."
            )
    return [at[session] for session in sessions]


def _titles(config: Any, tokens: list[str]) -> list[str]:
    """Title of each item in RecBole's order; the item's id where there is none."""
    if not config.data_set_is_ours:
        return tokens
    folder = Path(config["data_path"])
    items = DatasetFolder.open(folder.parent, folder.name).items
    by_id = {item.item_id: item.title for item in items}
    return [by_id.get(token) or token for token in tokens]


@torch.no_grad()
def _explain_batch(
    model: DIMO, batch: Any, top: int, session_token: Any, item_token: Any, titles: list[str]
) -> list[ExplainedSession]:
    item_seq, lengths = batch[model.ITEM_SEQ], batch[model.ITEM_SEQ_LEN]
    scores, best = model.full_sort_predict(batch).topk(min(top, model.n_items - 1), dim=1)
    adjusted = hasattr(model, "score_adjustments")
    repeat = best.shape[1]
    reasons = model.explain(
        item_seq.repeat_interleave(repeat, 0), lengths.repeat_interleave(repeat), best.flatten()
    )
    found = []
    for row, items in enumerate(best.tolist()):
        context = item_seq[row, : int(lengths[row])].tolist()
        explained = tuple(
            _explained(
                rank,
                item,
                float(scores[row, rank]) if adjusted else None,
                reasons[row * repeat + rank],
                item_token,
                titles,
            )
            for rank, item in enumerate(items)
        )
        found.append(
            ExplainedSession(
                session_id=str(session_token[int(batch[model.USER_ID][row])]),
                context=tuple(str(item_token[i]) for i in context),
                context_titles=tuple(titles[i] for i in context),
                target=str(item_token[int(batch[model.ITEM_ID][row])]),
                items=explained,
            )
        )
    return found


def _explained(
    rank: int,
    item: int,
    adjusted: float | None,
    why: Explanation,
    item_token: Any,
    titles: list[str],
) -> ExplainedItem:
    logit = why.id_share + why.modality_share
    other = titles[why.context_item]
    if why.reason == "bought together":
        times = "once" if why.shared_sessions == 1 else f"{why.shared_sessions} times"
        sentence = f"bought together with “{other}” ({times} in training)"
    elif why.reason == "repeated":
        sentence = f"already in this session: “{other}”"
    elif why.reason == "connected":
        sentence = f"bought by the same sort of sessions as “{other}”, never in one with it"
    else:
        sentence = f"similar to “{other}” by content"
    return ExplainedItem(
        rank=rank + 1,
        item_id=str(item_token[item]),
        title=titles[item],
        score=logit if adjusted is None else adjusted,
        id_share=why.id_share,
        modality_share=why.modality_share,
        adjustment=0.0 if adjusted is None else adjusted - logit,
        reason=why.reason,
        context_item=str(item_token[why.context_item]),
        shared_sessions=why.shared_sessions,
        sentence=sentence,
    )
