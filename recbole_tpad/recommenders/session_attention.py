"""DIMO's attention over a session, for the one position whose output is used."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_tpad.errors import InputError


class SessionAttention(nn.Module):
    """Multi-head attention of the last real position over the session's items.

    Query, key and value have biases; no positions, causal mask, residual, norm, feed-forward
    block or output projection. Only the last position's output is used, so only its query is
    computed.
    """

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        if size % heads:
            raise InputError(f"embedding_size={size} must be a multiple of n_heads={heads}.")
        self.heads = heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor, mask: Tensor, final: Tensor) -> Tensor:
        """Return the last position's output.

        Args:
            rows: item rows of the sessions, (B, L, d).
            mask: True for real positions, (B, L).
            final: the last real position's row, (B, d).

        Returns:
            Session vectors, (B, d).
        """
        batch, _, size = rows.shape
        heads, width = self.heads, size // self.heads
        query = self.query(final).view(batch, heads, width)
        # q·(W x + b) = (Wᵀq)·x + q·b and Σ a (W x + b) = W Σ a x + b Σ a: the maps meet one vector
        # a session and head instead of every position.
        key, value = (m.weight.view(heads, width, size) for m in (self.key, self.value))
        asked = torch.einsum("bhe,hed->bhd", query, key)
        constant = (query * self.key.bias.view(heads, width)).sum(dim=2, keepdim=True)
        scores = (asked @ rows.transpose(1, 2) + constant) / width**0.5
        scores = scores.masked_fill(~mask[:, None, :], float("-inf"))
        weights = self.dropout(scores.softmax(dim=-1))
        mixed = torch.einsum("bhd,hed->bhe", weights @ rows, value)
        mixed = mixed + weights.sum(dim=2, keepdim=True) * self.value.bias.view(heads, width)
        found: Tensor = mixed.reshape(batch, size)
        return found
