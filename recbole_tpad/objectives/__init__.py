"""Losses and mutual-information bounds: mathematics on tensors, no model, no data."""

from recbole_tpad.objectives.contrastive import pair_info_nce, session_info_nce, session_states
from recbole_tpad.objectives.critics import CRITICS, CosineCritic, MlpCritic, make_critic
from recbole_tpad.objectives.gradient_cache import (
    average_gradients,
    cached_states,
    gather_slices,
    is_first_process,
    own_slice,
    processes,
)
from recbole_tpad.objectives.lower_bounds import (
    Mine,
    donsker_varadhan,
    info_nce,
    soft_divergence,
)
from recbole_tpad.objectives.mutual_information import (
    DiagonalGaussian,
    info_nce_bound,
    soft_target_divergence,
    vclub,
    vclub_pairwise,
)

__all__ = [
    "CRITICS",
    "CosineCritic",
    "DiagonalGaussian",
    "Mine",
    "MlpCritic",
    "average_gradients",
    "cached_states",
    "donsker_varadhan",
    "gather_slices",
    "info_nce",
    "info_nce_bound",
    "is_first_process",
    "make_critic",
    "own_slice",
    "pair_info_nce",
    "processes",
    "session_info_nce",
    "session_states",
    "soft_divergence",
    "soft_target_divergence",
    "vclub",
    "vclub_pairwise",
]
