"""Answers by heads instead of generation: the category and the visual keywords as classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from recbole_tpad.backbones.base import Prediction
from recbole_tpad.data import Item


class LabelTable:
    """Categories and frequent keywords as classes.

    Args:
        items: all items.
        minimum: keywords carried by fewer items are left out.
    """

    def __init__(self, items: Sequence[Item], minimum: int = 2) -> None:
        categories = sorted({i.category for i in items if i.category})
        counts = Counter(k for i in items for k in set(i.keywords))
        keywords = sorted(k for k, n in counts.items() if n >= minimum)
        category_row = {c: n for n, c in enumerate(categories)}
        keyword_row = {k: n for n, k in enumerate(keywords)}
        self.category_names = categories
        self.keyword_names = keywords
        self.categories = len(categories)
        self.keywords = len(keywords)
        self.category = torch.tensor([category_row.get(i.category, -1) for i in items])
        self.keyword = torch.zeros(len(items), len(keywords))
        for row, item in enumerate(items):
            for keyword in item.keywords:
                if keyword in keyword_row:
                    self.keyword[row, keyword_row[keyword]] = 1


class AnswerHeads(nn.Module):
    """Category and keywords from an item's state.

    Args:
        width: of the state.
        labels: the classes.
    """

    def __init__(self, width: int, labels: LabelTable) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.category = nn.Linear(width, max(1, labels.categories))
        self.keyword = nn.Linear(width, max(1, labels.keywords))

    def loss(self, states: torch.Tensor, rows: torch.Tensor, labels: LabelTable) -> torch.Tensor:
        """Cross-entropy of the category plus binary cross-entropy of the keywords, in nats.

        The keywords' is summed over keywords and averaged over the batch's items that have any; an
        item without keywords says nothing on them.

        Args:
            states: (B, width).
            rows: (B,) int64 rows of `labels`, on the CPU.
        """
        states = self.norm(states)
        loss = states.new_zeros(())
        category = labels.category[rows].to(states.device)
        if labels.categories > 1 and (category >= 0).any():
            loss = loss + F.cross_entropy(self.category(states), category, ignore_index=-1)
        target = labels.keyword[rows].to(states.device)
        labelled = target.any(dim=1)
        if labelled.any():
            logits = self.keyword(states[labelled])
            terms = F.binary_cross_entropy_with_logits(logits, target[labelled], reduction="sum")
            loss = loss + terms / labelled.sum()
        return loss

    @torch.no_grad()
    def predict(self, states: torch.Tensor, labels: LabelTable) -> list[Prediction]:
        """The likeliest category, and the keywords with probability above ½, likeliest first.

        The likeliest keyword is named even below ½, so that an answer is never empty.
        """
        states = self.norm(states)
        category = self.category(states).argmax(1).tolist()
        chances = self.keyword(states).sigmoid()
        found = []
        for row, best in enumerate(category):
            order = chances[row].argsort(descending=True, stable=True).tolist()
            count = max(1, int((chances[row] > 0.5).sum()))
            named = [labels.keyword_names[k] for k in order[:count]] if labels.keywords else []
            found.append(
                Prediction(named, labels.category_names[best] if labels.categories else None)
            )
        return found
