"""BiPNet: interest and price preference on a heterogeneous hypergraph (Zhang et al., TOIS 2023)."""

from __future__ import annotations

from typing import Any, cast

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.recommenders.bipnet_graph import KINDS, HeterogeneousHypergraph
from recbole_tpad.recommenders.item_attributes import codes, price_levels, read_columns
from recbole_tpad.recommenders.item_features import EvaluationCache
from recbole_tpad.recommenders.session_attention import SessionAttention
from recbole_tpad.recommenders.sessions import training_sessions

VARIANTS = ("corrected", "official")


class BiPNet(SequentialRecommender):  # type: ignore[misc]
    """Bi-preference learning heterogeneous hypergraph network.

    Items, price levels, categories and brands exchange messages; a session's interest (soft
    attention over its items) and price preference (self-attention over their price levels) inform
    each other through two gates. Trained to predict the next item and its price level; an item's
    score is the sum of both softmaxes.

    ``variant: official`` repeats a slip of the public code: where the interest attends to the last
    item, the session has been turned round before, so that it attends to the first.

    It reads no images and no texts and refuses ``item_embeddings``.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        if config["item_embeddings"] is not None:
            raise InputError(
                "BiPNet cannot take item_embeddings: it reads prices, categories and brands, and "
                "has no place for content vectors. Use DIMO or MMSBR."
            )
        self.variant = str(config["variant"])
        if self.variant not in VARIANTS:
            raise InputError(
                f"variant='{self.variant}' is unknown.{nearest(self.variant, VARIANTS)} "
                f"Known: {', '.join(VARIANTS)}."
            )
        size, heads = int(config["embedding_size"]), int(config["n_heads"])
        columns = read_columns(config, dataset, ("price", "category", "brand"))
        attributes = {name: codes(columns[name]) for name in ("category", "brand")}
        attributes["price"] = price_levels(
            columns["price"],
            attributes["category"].of_item,
            int(config["price_levels"]),
            str(config["price_scale"]),
        )
        _, sessions = training_sessions(dataset)
        self.graph = HeterogeneousHypergraph(
            sessions, self.n_items, attributes, size, int(config["n_layers"])
        )
        counts = {"item": self.n_items} | {k: a.count for k, a in attributes.items()}
        self.tables = nn.ModuleDict({k: nn.Embedding(counts[k], size) for k in KINDS})
        self.position = nn.Embedding(self.max_seq_length, size)
        self.place_price = nn.Linear(2 * size, size)
        self.place_item = nn.Linear(2 * size, size)
        self.price_attention = SessionAttention(size, heads, float(config["attn_dropout_prob"]))
        self.own = nn.Linear(size, size)
        self.mean = nn.Linear(size, size, bias=False)
        self.last = nn.Linear(size, size, bias=False)
        self.weight = nn.Linear(size, 1)
        self.merge = nn.ModuleDict(
            {
                name: nn.Linear(size, size)
                for name in (
                    *("interest", "price"),
                    *("gate_price", "gate_price_joint"),
                    *("gate_interest", "gate_interest_joint"),
                )
            }
        )
        bound = size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        with torch.no_grad():
            for table in self.tables.values():
                cast(nn.Embedding, table).weight[0].zero_()
        self._cache = EvaluationCache()

    def propagated(self) -> dict[str, Tensor]:
        """Return each kind's table after the graph, (values, d); kept in evaluation."""
        parameters = list(self.parameters())
        if not self.training and not torch.is_grad_enabled():
            kept = self._cache.get(parameters)
            if kept is not None:
                return kept  # type: ignore[no-any-return]
        # Row 0 is padding whatever an optimiser's weight decay or momentum does to it.
        weights = {k: cast(nn.Embedding, table).weight for k, table in self.tables.items()}
        found: dict[str, Tensor] = self.graph({k: _padded(w) for k, w in weights.items()})
        if not self.training and not torch.is_grad_enabled():
            self._cache.put(parameters, found)
        return found

    def preferences(
        self, tables: dict[str, Tensor], item_seq: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the sessions' interest and price preference, (B, d) each."""
        mask = item_seq != 0
        level = self.graph.get_buffer("price_of_item")[item_seq]
        place = self.position.weight[: item_seq.shape[1]].expand(len(item_seq), -1, -1)
        prices = self.place_price(torch.cat([place, tables["price"][level]], dim=2))
        rows_of = torch.arange(len(item_seq), device=item_seq.device)
        end = (lengths - 1).clamp(min=0)
        price = self.price_attention(prices, mask, prices[rows_of, end])

        turned = _turned(item_seq, lengths)
        rows, real = tables["item"][turned], mask.unsqueeze(-1)
        final = rows[:, 0] if self.variant == "corrected" else rows[rows_of, end]
        mean = (rows * real).sum(1) / lengths.clamp(min=1).unsqueeze(1)
        placed = self.place_item(torch.cat([place, rows], dim=2))
        gate = self.own(placed) + (self.mean(mean) + self.last(final)).unsqueeze(1)
        interest = (self.weight(torch.sigmoid(gate)) * real * rows).sum(dim=1)

        merge = self.merge
        joint = torch.tanh(merge["interest"](interest) + merge["price"](price))
        of_price = torch.sigmoid(merge["gate_price"](price) + merge["gate_price_joint"](joint))
        of_interest = torch.sigmoid(
            merge["gate_interest"](interest) + merge["gate_interest_joint"](joint)
        )
        return (
            of_interest * interest + (1 - of_interest) * price,
            of_price * price + (1 - of_price) * interest,
        )

    # -- RecBole's interface ---------------------------------------------------------------------

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Return the cross-entropy of the next item plus that of its price level, a scalar."""
        tables = self.propagated()
        interest, price = self.preferences(
            tables, interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        )
        target = interaction[self.POS_ITEM_ID]
        level = self.graph.get_buffer("price_of_item")[target]
        # Column 0 is padding, of items as of price levels.
        item = functional.cross_entropy(interest @ tables["item"][1:].T, target - 1)
        return item + functional.cross_entropy(price @ tables["price"][1:].T, level - 1)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return every item's score, (B, n_items); the padding id scores −inf."""
        tables = self.propagated()
        interest, price = self.preferences(
            tables, interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        )
        levels = self.graph.get_buffer("price_of_item")[1:]
        by_interest = (interest @ tables["item"][1:].T).softmax(dim=1)
        by_price = (price @ tables["price"].T)[:, levels].softmax(dim=1)
        return functional.pad(by_interest + by_price, (1, 0), value=float("-inf"))

    def predict(self, interaction: Any) -> Tensor:
        """Return the scores of the batch's own items, (B,)."""
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)


def _padded(weight: Tensor) -> Tensor:
    return functional.pad(weight[1:], (0, 0, 1, 0))


def _turned(item_seq: Tensor, lengths: Tensor) -> Tensor:
    """Each session's items, last first, padding still at the end."""
    column = torch.arange(item_seq.shape[1], device=item_seq.device)
    source = (lengths[:, None] - 1 - column).clamp(min=0)
    return item_seq.gather(1, source) * (column < lengths[:, None])
