"""Parts of MMSBR: pivot transformer, contrast of pseudo-modalities, attention of prices."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

_BLOCK = 1024  # items whose similarities to all others are in memory at a time


class PivotLayer(nn.Module):
    """Transformer layer over an item's pivots and features, post-norm.

    One normalisation serves both halves, as in the public code.
    """

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.mix = nn.Linear(size, size, bias=False)
        self.wide = nn.Linear(size, 4 * size)
        self.narrow = nn.Linear(4 * size, size)
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (N, tokens, d) to the same shape."""
        shape = (*tokens.shape[:2], self.heads, -1)
        query, key, value = (
            m(tokens).view(shape).transpose(1, 2) for m in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed = self.mix(mixed.transpose(1, 2).reshape(tokens.shape))
        tokens = self.norm(tokens + self.dropout(mixed))
        wide = self.narrow(functional.relu(self.wide(tokens)))
        found: Tensor = self.norm(tokens + self.dropout(wide))
        return found


class FeatureParts(nn.Module):
    """A modality's vector → `count` feature vectors by tanh perceptrons."""

    def __init__(self, width: int, size: int, count: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(width, size) for _ in range(count))
        self.second = nn.ModuleList(nn.Linear(size, size) for _ in range(count))
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor) -> Tensor:
        """Map (N, width) to (N, count, d)."""
        parts = []
        for first, second in zip(self.first, self.second, strict=True):
            hidden = self.dropout(torch.tanh(first(rows)))
            parts.append(self.dropout(torch.tanh(second(hidden))))
        return torch.stack(parts, dim=1)


class PivotFusion(nn.Module):
    """Hierarchical pivot transformer: pivots gather from each modality in turn, then one vector.

    Args:
        widths: of the modalities, in the order in which pivots read them.
        size: d.
        pivots: tables of pivots, and feature vectors a modality is taken apart into.
        rounds: how often every modality is read.
        heads: of attention.
        dropout: in features and layers.
        output_dropout: after the last maps.
    """

    def __init__(
        self,
        widths: list[int],
        size: int,
        *,
        pivots: int,
        rounds: int,
        heads: int,
        dropout: float,
        output_dropout: float,
    ) -> None:
        super().__init__()
        self.pivots = pivots
        self.features = nn.ModuleList(FeatureParts(w, size, pivots, dropout) for w in widths)
        self.layers = nn.ModuleList(
            nn.ModuleList(PivotLayer(size, heads, dropout) for _ in widths) for _ in range(rounds)
        )
        self.first = nn.Linear(pivots * size, size)
        self.second = nn.Linear(size, size)
        self.dropout = nn.Dropout(output_dropout)

    def forward(self, pivots: Tensor, modalities: list[Tensor]) -> Tensor:
        """Fuse.

        Args:
            pivots: (N, pivots, d).
            modalities: (N, width) each.

        Returns:
            Item vectors, (N, d).
        """
        parts = [made(rows) for made, rows in zip(self.features, modalities, strict=True)]
        for layers in self.layers:
            for k, layer in enumerate(cast(nn.ModuleList, layers)):
                read = layer(torch.cat([pivots, parts[k]], dim=1))
                pivots = (read[:, : self.pivots] + pivots) / 2
                parts[k] = read[:, self.pivots :] + parts[k]
        joined = self.dropout(pivots.flatten(1))
        hidden = self.dropout(functional.relu(self.first(joined)))
        found: Tensor = self.dropout(functional.relu(self.second(hidden)))
        return found


def hardest(rows: Tensor, others: Tensor, count: int) -> Tensor:
    """Return for each row the ids of the `count` most similar rows of `others`, (N, count).

    Block by block, so that no N×N matrix is kept.
    """
    with torch.no_grad():
        parts = [(part @ others.T).topk(count, dim=1).indices for part in rows.split(_BLOCK)]
    return torch.cat(parts)


def pseudo_contrast(rows: Tensor, pseudo: Tensor, negatives: int) -> Tensor:
    """Return −log₁₀( e^{x_i·g_i} / Σ_{hardest j} e^{x_i·g_j} ) of every item, (N,).

    As in the public code the `negatives` hardest include the item's own where it is among them.

    Args:
        rows: x, an item's modality, (N, width).
        pseudo: g, the same modality generated from the other, (N, width).
        negatives: how many; at most N.
    """
    chosen = hardest(rows, pseudo, min(negatives, len(rows)))
    logits = torch.einsum("nd,nkd->nk", rows, pseudo[chosen])
    own = (rows * pseudo).sum(dim=1)
    return (torch.logsumexp(logits, dim=1) - own) / math.log(10.0)


def wasserstein(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> Tensor:
    """Return squared 2-Wasserstein distances of diagonal Gaussians, (…, n, m).

    Args:
        mean, cov: of the first, (…, n, d); covariances are not negative.
        other_mean, other_cov: of the second, (…, m, d).
    """
    means = (
        (mean**2).sum(-1, keepdim=True)
        + (other_mean**2).sum(-1).unsqueeze(-2)
        - 2 * mean @ other_mean.transpose(-1, -2)
    )
    roots = cov.clamp(min=1e-24).sqrt() @ other_cov.clamp(min=1e-24).sqrt().transpose(-1, -2)
    spreads = cov.sum(-1, keepdim=True) + other_cov.sum(-1).unsqueeze(-2) - 2 * roots
    return means + spreads


def positive(x: Tensor) -> Tensor:
    """ELU + 1: a covariance."""
    return functional.elu(x) + 1


class PriceAttention(nn.Module):
    """Self-attention between price distributions by Wasserstein distance; the last one's output."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.maps = nn.ModuleDict(
            {
                f"{kind}_{role}": nn.Linear(size, size)
                for kind in ("mean", "cov")
                for role in ("query", "key", "value", "output")
            }
        )
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.attention_dropout = nn.Dropout(dropout)
        self.dropout = nn.Dropout(dropout)

    def _head(self, name: str, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        mapped = self.maps[name](x)
        if name.startswith("cov"):
            mapped = positive(mapped)
        found: Tensor = mapped.view(batch, length, self.heads, -1).transpose(1, 2)
        return found

    def forward(
        self, mean: Tensor, cov: Tensor, category: Tensor, mask: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the session's price preference as mean and (not yet positive) covariance, (B, d).

        Args:
            mean, cov, category: rows of the session's items, (B, L, d) each.
            mask: True for real positions, (B, L).
            last: last real position, (B,).
        """
        kind = self.norm(category)
        states = {
            "mean": self.dropout(self.norm(mean) + kind),
            "cov": positive(self.dropout(self.norm(cov) + kind)),
        }
        query, key, value = (
            {k: self._head(f"{k}_{role}", x) for k, x in states.items()}
            for role in ("query", "key", "value")
        )
        distance = wasserstein(query["mean"], query["cov"], key["mean"], key["cov"])
        scores = -distance / query["mean"].shape[-1] ** 0.5
        scores = scores.masked_fill(~mask[:, None, None, :], -1e4)
        weights = self.attention_dropout(scores.softmax(dim=-1))
        found = []
        for name, attended, residual in (
            ("mean", weights @ value["mean"], mean),
            ("cov", weights**2 @ value["cov"], cov),
        ):
            joined = attended.transpose(1, 2).reshape(mean.shape)
            hidden = self.dropout(self.maps[f"{name}_output"](joined))
            states_out = self.norm(hidden + residual)
            found.append(states_out[torch.arange(len(last), device=last.device), last])
        return found[0], found[1]
