"""A DIMO training step in the public code's dense arithmetic, for perf/dimo.py to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from recbole_tpad.recommenders.dimo import DIMO
from recbole_tpad.recommenders.propagation import SparseMatrix

LENGTH = 19


class DenseDIMO:
    """The public code's arithmetic, with the weights of one of our models (variant official)."""

    def __init__(self, model: DIMO) -> None:
        self.model = model
        counts = model.counts.tocoo()
        degree = np.asarray(model.counts.sum(axis=1)).ravel()
        self.index = np.stack([counts.row, counts.col])
        self.values = (counts.data / (degree[counts.row] + 1e-8)).astype(np.float32)
        n = model.n_items
        self.partners, self.weights = gathered(model.partners, n)
        self.strangers, self.real = gathered(model.strangers, n)

    def adjacency(self) -> Tensor:
        n = self.model.n_items
        made = torch.sparse_coo_tensor(
            torch.from_numpy(self.index), torch.from_numpy(self.values), (n, n)
        )
        return made.to_dense()

    def propagated(self, table: Tensor) -> Tensor:
        for _ in range(self.model.n_layers):
            table = table + self.adjacency() @ table
        return table

    def loss(self, batch: Interaction) -> Tensor:
        model = self.model
        dropout = torch.nn.Dropout(model.table_dropout).train(model.training)
        assert model.modality_embedding is not None
        e = self.propagated(dropout(without_first(model.item_embedding.weight)))
        m = self.propagated(dropout(without_first(model.modality_embedding.weight)))
        items, lengths, target = batch["item_id_list"], batch["item_length"], batch["item_id"]
        # The public code pads every session to 19 items and attends from every position.
        items = functional.pad(items, (0, LENGTH - items.shape[1]))
        mask = items != 0
        views = []
        for table, attention in ((e, model.id_attention), (m, model.modality_attention)):
            rows = table[items]
            session = self.attend(attention, rows, mask)[torch.arange(len(items)), lengths - 1]
            views.append((session, rows.sum(1) / lengths[:, None]))
        (s_id, p_id), (s_mo, p_mo) = views
        logits = s_id @ e[1:].t() + s_mo @ m[1:].t()
        ce = functional.cross_entropy(logits, target - 1)
        proxy = model.proxy_loss(s_id, s_mo, p_id, p_mo).sum()
        flag = (model.partner_table[items] == target[:, None, None]).any(2).any(1)
        shown = target - 1
        share = torch.log10(
            torch.sigmoid(
                functional.cosine_similarity(s_id, e[shown])
                - functional.cosine_similarity(s_mo, m[shown])
            )
        )
        criterion = torch.where(flag, -share, share).sum()
        return ce + model.auxiliary_weight * (self.cooccurrence(e) + proxy + criterion)

    def attend(self, attention: Any, rows: Tensor, mask: Tensor) -> Tensor:
        batch, length, size = rows.shape
        heads = attention.heads
        shape = (batch, length, heads, size // heads)
        q, k, v = (
            f(rows).view(shape).transpose(1, 2)
            for f in (attention.query, attention.key, attention.value)
        )
        scores = q @ k.transpose(2, 3) / (size // heads) ** 0.5
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        weights = attention.dropout(scores.softmax(-1))
        return (weights @ v).transpose(1, 2).reshape(batch, length, size)

    def cooccurrence(self, e: Tensor) -> Tensor:
        positive = (e[self.partners] * self.weights[..., None]).sum(1)
        near = functional.cosine_similarity(e, positive)
        far = functional.cosine_similarity(e[:, None, :], e[self.strangers], dim=2).exp()
        total = near.exp() + (far * self.real).sum(1)
        losses = -torch.log10(near.exp() / total)
        return losses[self.weights.sum(1) > 0].sum()


def gathered(matrix: SparseMatrix, n: int) -> tuple[Tensor, Tensor]:
    """A sparse matrix as tables of columns and values, padded with zeros."""
    found = sparse.csr_matrix(
        (matrix.values.numpy(), matrix.col.numpy(), matrix.crow.numpy()), shape=(n, n)
    )
    width = int(np.diff(found.indptr).max())
    columns, values = np.zeros((n, width), dtype=np.int64), np.zeros((n, width), dtype=np.float32)
    row = np.repeat(np.arange(n), np.diff(found.indptr))
    place = np.arange(found.nnz) - found.indptr[row]
    columns[row, place], values[row, place] = found.indices, found.data
    return torch.from_numpy(columns), torch.from_numpy(values)


def without_first(table: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(table[:1]), table[1:]])
