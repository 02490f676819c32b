"""Repeat-last: the control that shows how much of a score is repetition."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from recbole_tpad.recommenders.popularity import Popularity


class RepeatLast(Popularity):
    """The session's last item first, then all others by training popularity.

    Its HR@1 is the share of targets that repeat the last item. On data whose time stamps have day
    resolution that share can be large (methods.md), and a model may live on it.
    """

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return every item's score, shape (B, n_items); the last item's is 1 + the maximum."""
        scores = super().full_sort_predict(interaction)
        last = interaction[self.ITEM_SEQ].gather(1, interaction[self.ITEM_SEQ_LEN][:, None] - 1)
        return scores.scatter_(1, last, float(self.item_counts.max()) + 1.0)
