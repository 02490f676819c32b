"""BiPNet's hypergraph of items, prices, categories and brands, in sparse products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from recbole_tpad.recommenders.item_attributes import Attribute
from recbole_tpad.recommenders.item_graph import Ids, Pattern
from recbole_tpad.recommenders.propagation import SparseMatrix

KINDS = ("item", "price", "category", "brand")
# The order in which a kind's gate takes the other three.
OTHERS = {
    "item": ("price", "category", "brand"),
    "price": ("item", "category", "brand"),
    "category": ("price", "item", "brand"),
    "brand": ("price", "category", "item"),
}


def session_transition(sessions: Sequence[Ids], count: int) -> Pattern:
    """Return D⁻¹ H · B⁻¹ Hᵀ: from a value to the values of its sessions, (count, count).

    H has a one where a session holds a value; both factors have rows that sum to one.

    Args:
        sessions: values of each session.
        count: number of values; 0 is padding and has an empty row.
    """
    distinct = [np.unique(s[s > 0]) for s in sessions]
    rows = np.repeat(np.arange(len(distinct)), [len(d) for d in distinct])
    columns = np.concatenate(distinct) if distinct else np.zeros(0, dtype=np.int64)
    held = sparse.csr_matrix((np.ones(len(columns)), (rows, columns)), (len(distinct), count))
    by_session = _row_normalised(held)
    by_value = _row_normalised(held.T.tocsr())
    product = sparse.csr_matrix(by_value @ by_session)
    product.sort_indices()
    return Pattern(product.indptr.astype(np.int64), product.indices.astype(np.int64), product.data)


def _row_normalised(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    total = np.asarray(matrix.sum(axis=1)).ravel()
    scale = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    return sparse.csr_matrix(sparse.diags_array(scale) @ matrix)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: SparseMatrix) -> Tensor:  # type: ignore[override]
        ctx.matrix = matrix
        return matrix.times(rows, matrix.values.to(rows.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        matrix: SparseMatrix = ctx.matrix
        into = torch.zeros_like(gradient)
        values = matrix.values.to(gradient.dtype)
        return matrix.transposed_times(gradient.contiguous(), values, add_to=into), None


class EdgeAttention(nn.Module):
    """Attention of one kind's values over the values of another that they meet in some item.

    Softmax of q · (W k + b) over the edges of a row. The public code builds all pairs, softmaxes
    and masks them; over the edges alone it is the same.

    Args:
        edges: (E, 2) distinct pairs of (value here, value there).
        size: d.
    """

    here: Tensor
    there: Tensor

    def __init__(self, edges: Ids, size: int) -> None:
        super().__init__()
        self.map = nn.Linear(size, size)
        for name, column in (("here", 0), ("there", 1)):
            tensor = torch.from_numpy(np.ascontiguousarray(edges[:, column]))
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """Return the mixed rows of `other`, (values here, d); zero for a value without edges.

        Args:
            own: (values here, d).
            other: (values there, d).
        """
        keys = self.map(other)
        logits = (own[self.here] * keys[self.there]).sum(dim=1)
        highest = logits.new_full((len(own),), float("-inf"))
        highest = highest.scatter_reduce(0, self.here, logits.detach(), "amax")
        weights = (logits - highest[self.here]).exp()
        total = weights.new_zeros(len(own)).index_add(0, self.here, weights)
        weights = weights / total[self.here]
        mixed = weights[:, None] * other[self.there]
        found: Tensor = mixed.new_zeros(len(own), mixed.shape[1]).index_add(0, self.here, mixed)
        return found


class CoGuidedGate(nn.Module):
    """x + Σ_k tanh(W[x; a; b; c] + W_k a_k) ⊙ a_k over the three other kinds' messages."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.joint = nn.Linear(4 * size, size)
        self.single = nn.ModuleList(nn.Linear(size, size) for _ in range(3))

    def forward(self, own: Tensor, messages: Sequence[Tensor]) -> Tensor:
        """Map (n, d) and three messages of that shape to (n, d)."""
        joint = self.joint(torch.cat([own, *messages], dim=1))
        found = own
        for single, message in zip(self.single, messages, strict=True):
            found = found + torch.tanh(joint + single(message)) * message
        return found


class HeterogeneousHypergraph(nn.Module):
    """Layers of messages between items, prices, categories and brands.

    Args:
        sessions: item ids of the training sessions.
        n_items: padding included.
        attributes: price, category, brand of every item.
        size: d.
        layers: how often; they share their weights, as in the public code.
    """

    def __init__(
        self,
        sessions: Sequence[Ids],
        n_items: int,
        attributes: Mapping[str, Attribute],
        size: int,
        layers: int,
    ) -> None:
        super().__init__()
        self.layers = layers
        values = {"item": np.arange(n_items)} | {k: a.of_item for k, a in attributes.items()}
        counts = {"item": n_items} | {k: a.count for k, a in attributes.items()}
        self.transitions = nn.ModuleDict(
            {
                kind: SparseMatrix(session_transition([values[kind][s] for s in sessions], count))
                for kind, count in counts.items()
            }
        )
        self.gates = nn.ModuleDict({kind: CoGuidedGate(size) for kind in KINDS})
        self.attentions = nn.ModuleDict()
        for kind in KINDS[1:]:
            for other in OTHERS[kind]:
                pairs = np.stack([values[kind], values[other]], axis=1)[1:]
                edges = np.unique(pairs, axis=0)
                self.attentions[f"{kind}_{other}"] = EdgeAttention(edges, size)
        for kind in KINDS[1:]:
            tensor = torch.from_numpy(values[kind])
            self.register_buffer(f"{kind}_of_item", tensor, persistent=False)

    def _messages(self, kind: str, tables: Mapping[str, Tensor]) -> list[Tensor]:
        if kind == "item":  # an item has one price, one category, one brand
            return [tables[o][self.get_buffer(f"{o}_of_item")] for o in OTHERS[kind]]
        return [self.attentions[f"{kind}_{o}"](tables[kind], tables[o]) for o in OTHERS[kind]]

    def forward(self, tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map each kind's table (values, d) to one of the same shape."""
        now = dict(tables)
        for _ in range(self.layers):
            now = {
                kind: self.gates[kind](now[kind], self._messages(kind, now))
                + _Product.apply(now[kind], self.transitions[kind])  # type: ignore[no-untyped-call]
                for kind in KINDS
            }
        return now
