"""Losses and mutual-information bounds: mathematics on tensors, no model, no data."""

from recbole_tpad.objectives.contrastive import pair_info_nce
from recbole_tpad.objectives.mutual_information import (
    DiagonalGaussian,
    info_nce_bound,
    soft_target_divergence,
    vclub,
    vclub_pairwise,
)

__all__ = [
    "DiagonalGaussian",
    "info_nce_bound",
    "pair_info_nce",
    "soft_target_divergence",
    "vclub",
    "vclub_pairwise",
]
