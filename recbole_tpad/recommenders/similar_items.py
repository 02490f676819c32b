"""For some items the most similar ones that occur in training, by their features."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_tpad.recommenders.context_kernel import kernel_settings, nearest_trained
from recbole_tpad.recommenders.item_features import ItemFeatures
from recbole_tpad.recommenders.whitening import whitened_rows

_WIDTH = 256  # columns in which they are sought where features are too large to be held


class SimilarItems(nn.Module):
    """Means over similar items' rows: x̃_i = Σ_j w_ij x_j.

    w_ij ∝ exp((cos(i, j) − 1) / ``kernel_temperature``) over the ``kernel_neighbours`` items
    nearest to i among those that occur in training, i itself left out. The cosine is of the
    features, centred on the items that occur in training; of features that are too large to be
    held at once, of 256 whitened components (assumptions).

    Args:
        config: keys ``kernel_temperature``, ``kernel_neighbours``.
        features: aligned features, (n_items, F).
        items: whose similar items, (M,).

    Raises:
        InputError: a key out of range, or damaged features.
    """

    items: Tensor
    near: Tensor
    shares: Tensor

    def __init__(self, config: Any, features: ItemFeatures, items: npt.NDArray[np.int64]) -> None:
        super().__init__()
        temperature, neighbours = kernel_settings(config)
        rows = features.rows if features.whole else whitened_rows(features, _WIDTH)
        near, shares = nearest_trained(rows, items, features.trained, temperature, neighbours)
        for name, array in (("items", items), ("near", near), ("shares", shares)):
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def means(self, table: Tensor) -> Tensor:
        """Return the mean rows of the items' similar items, (M, columns).

        Args:
            table: (n_items or more, columns).
        """
        return functional.embedding_bag(
            self.near, table, mode="sum", per_sample_weights=self.shares.to(table.dtype)
        )
