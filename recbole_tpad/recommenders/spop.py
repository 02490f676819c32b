"""S-POP: what the session itself holds most often, then what is popular."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_tpad.recommenders.popularity import Popularity


class SPop(Popularity):
    """Session popularity (Hidasi et al., ICLR 2016): the session's items by their count in it.

    Equal counts, and all items outside the session, are ordered by training popularity. With
    ``mask_history`` it is plain popularity.
    """

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return every item's score, shape (B, n_items): count in the session + popularity share.

        The share is below 1, so it only orders equal counts.
        """
        item_seq = interaction[self.ITEM_SEQ]
        share = self.item_counts / (self.item_counts.max() + 1)
        scores = share.expand(len(item_seq), -1).clone()
        return scores.scatter_add_(1, item_seq, torch.ones_like(item_seq, dtype=scores.dtype))
