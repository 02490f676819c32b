"""DIMO's losses on sessions (SIGIR 2024): proxies, and which view explains a click.

All logarithms are base 10 and all cosines have temperature 1, as in the public code. Every loss is
returned per element; the model reduces them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

LN10 = math.log(10.0)
_EPS = 1e-8


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of paired rows, shape (…, rows)."""
    return functional.cosine_similarity(a, b, dim=-1, eps=_EPS)


def log10_share(a: Tensor, b: Tensor) -> Tensor:
    """Return log10(e^a / (e^a + e^b)), element by element."""
    return functional.logsigmoid(a - b) / LN10


class ProxyLoss(nn.Module):
    """L_pro: each view's session vector is pulled to its proxy, pushed from the other view's.

    Args:
        size: d.
        official: pair the vectors as the public code executes them, not as its function means.
    """

    def __init__(self, size: int, official: bool) -> None:
        super().__init__()
        # The public code's numbering; its m6 takes part in nothing.
        self.maps = nn.ModuleDict({f"m{k}": nn.Linear(size, size) for k in (1, 2, 3, 4, 5, 7, 8)})
        self.official = official

    def forward(self, s_id: Tensor, s_mo: Tensor, p_id: Tensor, p_mo: Tensor) -> Tensor:
        """Return −log10 shares for each session, shape (B,); all arguments are (B, d)."""
        m = self.maps
        # The public call hands the four vectors over in another order than the function names.
        second, third = (s_mo, p_id) if self.official else (p_id, s_mo)
        m4 = m["m4"](third)
        left = torch.stack([m["m1"](s_id), m["m3"](s_id), m4, m["m7"](third)])
        right = torch.stack([m["m2"](second), m4, m["m5"](p_mo), m["m8"](s_id)])
        a, b, e, f = cosine(left, right)
        return -(log10_share(a, b) + log10_share(e, f))


def criterion_loss(
    s_id: Tensor, s_mo: Tensor, target_id: Tensor, target_mo: Tensor, together: Tensor
) -> Tensor:
    """L_cri: the ID view claims targets bought together with the context, else modality does.

    Args:
        s_id, s_mo: session vectors, (B, d).
        target_id, target_mo: the target's propagated rows, (B, d).
        together: whether the target is a frequent partner of a context item, (B,), bool.

    Returns:
        −flag · log10 share of the ID view, flag = +1 or −1, shape (B,).
    """
    share = log10_share(cosine(s_id, target_id), cosine(s_mo, target_mo))
    return torch.where(together, -share, share)
