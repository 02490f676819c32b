"""Rows of items that training hardly saw, drawn towards the rows of similar items."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.item_features import ItemFeatures
from recbole_tpad.recommenders.similar_items import SimilarItems

NONE, AUTO = "none", "auto"
_TINY = 1e-8


class RowSmoothing(nn.Module):
    """Replaces item rows, in evaluation, by x̄ + ‖x_i − x̄‖ · the direction of what follows.

    (1 − a)(x_i − x̄) + a (x̃_i − x̄), with a = m / (m + n_i): n_i is how often item i occurs in
    training, x̄ the mean row of the items that do, x̃_i that of the items similar to i
    (`SimilarItems`). So an item's own row counts n_i observations and its similar items' rows m,
    as in an empirical Bayes estimate. An item that never occurs has a = 1 whatever m, and the
    mean length of the others. The whole is an assumption.

    Args:
        similar: of the items whose rows are replaced.
        counts: n_i, (n_items,).
        strength: m; None: to be chosen on validation, 0 until then, and kept in checkpoints.

    Attributes:
        strength: m, ().
        free: whether it is to be chosen.
    """

    strength: Tensor
    counts: Tensor
    trained: Tensor

    def __init__(
        self, similar: SimilarItems, counts: npt.NDArray[np.int64], strength: float | None
    ) -> None:
        super().__init__()
        self.similar, self.free = similar, strength is None
        start = torch.tensor(0.0 if strength is None else strength)
        self.register_buffer("strength", start, persistent=self.free)
        known = torch.from_numpy(counts)
        self.register_buffer("counts", known[similar.items].float(), persistent=False)
        self.register_buffer("trained", (known > 0).float(), persistent=False)

    def forward(self, table: Tensor, views: int = 1) -> Tensor:
        """Return the table with some rows replaced.

        Args:
            table: (n_items or more, views · d).
            views: tables side by side, each smoothed by itself.
        """
        return torch.cat([self._smoothed(part) for part in table.chunk(views, dim=1)], dim=1)

    def _smoothed(self, table: Tensor) -> Tensor:
        weight = self.trained.to(table.dtype)
        rows, count = table[: len(weight)], weight.sum()
        mean = weight @ rows / count
        lengths = torch.linalg.vector_norm(rows - mean, dim=1)
        usual = lengths @ weight / count
        items, counts = self.similar.items, self.counts.to(table.dtype)
        unseen = counts == 0
        share = torch.where(unseen, 1.0, self.strength / (self.strength + counts.clamp(min=1)))
        drawn = torch.lerp(rows[items], self.similar.means(table), share[:, None].to(rows)) - mean
        wanted = torch.where(unseen, usual, lengths[items])
        drawn = drawn * (wanted / torch.linalg.vector_norm(drawn, dim=1).clamp(min=_TINY))[:, None]
        return table.index_copy(0, items, mean + drawn)


def make_row_smoothing(
    config: Any, features: ItemFeatures | None, counts: npt.NDArray[np.int64], *, unseen: bool
) -> RowSmoothing | None:
    """Build what ``row_smoothing`` asks for.

    Args:
        config: keys ``row_smoothing`` (``none``; m; ``auto``: chosen on validation; null: 0 where
            unseen items' rows are replaced, else none), ``kernel_neighbours``,
            ``kernel_temperature``.
        features: aligned features; None: the model has no item embeddings.
        counts: how often each item occurs in training, (n_items,).
        unseen: replace the rows of items that never occur, too.

    Returns:
        None where nothing is asked for, or no row would change.

    Raises:
        InputError: a bad value, or item embeddings are missing that would say what is similar.
    """
    given = config["row_smoothing"]
    if given == NONE or (given is None and (not unseen or features is None)):
        return None
    strength = None if given == AUTO else _number(0.0 if given is None else given)
    if features is None:
        raise InputError(f"row_smoothing={given} needs item_embeddings; the model runs without.")
    replaced = counts > 0 if strength != 0 else np.zeros(len(counts), dtype=np.bool_)
    if unseen:
        replaced |= counts == 0
    replaced[0] = False
    if not replaced.any() or not (counts[1:] > 0).any():
        return None
    similar = SimilarItems(config, features, np.flatnonzero(replaced))
    return RowSmoothing(similar, counts, strength)


def _number(given: Any) -> float:
    try:
        strength = float(given)
    except (TypeError, ValueError):
        strength = math.nan
    if given is True or not (math.isfinite(strength) and strength >= 0):
        raise InputError(
            f"row_smoothing={given!r} must be a number of 0 or more, '{AUTO}' or '{NONE}'."
        )
    return strength
