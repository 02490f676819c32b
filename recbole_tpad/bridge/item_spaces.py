"""How far a trained model's ID space and its embedding space lie apart (TPAD, figure 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recbole_tpad.flat_map import flat_map

NEIGHBOURS = 10
_FEWEST = 20
_SEED = 0


@torch.no_grad()
def item_spaces(model: Any, trained: Tensor, count: int) -> dict[str, Any] | None:
    """Compare the two vectors a model has for the same item: of its ID and of its content.

    They are taken in the space where the model adds or compares them: DIMO's propagated views, or
    ID rows and the adapter's output of a fusion. Rows are scaled to length 1.

    Args:
        model: trained, in evaluation.
        trained: items that occur in training, (n_items,), bool; others have no ID row.
        count: items, drawn at random but the same for every model; 0 gives none.

    Returns:
        ``items``; ``gap``, the distance between the means of both sets, from 0 to 2 (Liang et al.,
        2022); ``separability``, the accuracy with which a logistic regression tells IDs from
        content on items it was not fitted to (two folds; .5: not at all); ``overlap``, the share of
        an item's ten nearest neighbours common to both spaces, beside ``chance`` of that;
        ``points`` of a common t-SNE map: [x, y] of every ID, then of every content vector. None
        where the model has not both, or for fewer than 20 items.
    """
    views = next((m.item_views() for m in model.modules() if hasattr(m, "item_views")), None)
    if views is None or count <= 0:
        return None
    rows = torch.nonzero(trained.cpu()).flatten()
    lengths = torch.stack([view.detach().cpu()[rows].norm(dim=1) for view in views])
    rows = rows[(lengths > 0).all(dim=0)]
    generator = torch.Generator().manual_seed(_SEED)
    rows = rows[torch.randperm(len(rows), generator=generator)[:count]].sort().values
    if len(rows) < _FEWEST:
        return None
    ids, content = (_unit(view.detach().cpu()[rows]) for view in views)
    places = flat_map(np.concatenate([ids, content]), seed=_SEED)
    neighbours = min(NEIGHBOURS, len(rows) - 1)
    return {
        "items": len(rows),
        "gap": float(np.linalg.norm(ids.mean(axis=0) - content.mean(axis=0))),
        "separability": _separability(ids, content),
        "overlap": _overlap(ids, content, neighbours),
        "chance": neighbours / (len(rows) - 1),
        "points": [[round(float(x), 3), round(float(y), 3)] for x, y in places],
    }


def _unit(rows: Tensor) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = rows.double().numpy()
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def _separability(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Mean held-out accuracy; both vectors of an item are in the same fold."""
    from sklearn.linear_model import LogisticRegression

    fold = np.random.default_rng(_SEED).permutation(len(a)) % 2
    right = 0
    for held_out in (0, 1):
        parts = [(fold != held_out), (fold == held_out)]
        (x, y), (x_test, y_test) = (
            (np.concatenate([a[part], b[part]]), np.repeat([0, 1], part.sum())) for part in parts
        )
        fitted = LogisticRegression(C=100.0, max_iter=1000).fit(x, y)
        right += int((fitted.predict(x_test) == y_test).sum())
    return right / (2 * len(a))


def _overlap(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], neighbours: int) -> float:
    nearest = []
    for rows in (a, b):
        cosines = rows @ rows.T
        np.fill_diagonal(cosines, -np.inf)
        nearest.append(np.argpartition(-cosines, neighbours - 1, axis=1)[:, :neighbours])
    shared = [len(np.intersect1d(x, y)) for x, y in zip(*nearest, strict=True)]
    return float(np.mean(shared)) / neighbours
