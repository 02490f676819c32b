"""MMSBR: images, texts and prices in session recommendation (Zhang et al., TKDE 2024)."""

from __future__ import annotations

from typing import Any, cast

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.fused_tables import initial_rows
from recbole_tpad.recommenders.item_attributes import codes, price_levels, read_columns
from recbole_tpad.recommenders.item_features import (
    EvaluationCache,
    ItemFeatures,
    load_item_features,
)
from recbole_tpad.recommenders.mmsbr_parts import (
    PivotFusion,
    PriceAttention,
    positive,
    pseudo_contrast,
    wasserstein,
)

_BLOCK = 2048  # items fused at a time in training; their activations are computed again


class MMSBR(SequentialRecommender):  # type: ignore[misc]
    """Multi-modal session-based recommendation.

    An item is the fusion of its modalities through pivots; a session has an interest (soft
    attention over its items) and a price preference (a Gaussian, by attention between the price
    levels of its items); an item's score is interest · (1 + Wasserstein distance of its price from
    the preference), as in the public code.

    ``item_embeddings`` gives one or two modalities; with two a contrast with generated
    pseudo-modalities is added (``pseudo_item_embeddings``; without it the other modality stands for
    the generated one). Without item embeddings pivots, prices and categories are all there is.
    """

    input_type = InputType.POINTWISE
    takes_item_embeddings = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        size, heads = int(config["embedding_size"]), int(config["n_heads"])
        if size % heads:
            raise InputError(f"embedding_size={size} must be a multiple of n_heads={heads}.")
        columns = read_columns(config, dataset, ("price", "category"))
        category = codes(columns["category"])
        price = price_levels(
            columns["price"],
            category.of_item,
            int(config["price_levels"]),
            str(config["price_scale"]),
        )
        self.item_price: Tensor
        self.item_category: Tensor
        self.register_buffer("item_price", torch.from_numpy(price.of_item), persistent=False)
        self.register_buffer("item_category", torch.from_numpy(category.of_item), persistent=False)
        self.price_mean = nn.Embedding(price.count, size)
        self.price_cov = nn.Embedding(price.count, size)
        self.category = nn.Embedding(category.count, size)
        self.n_pivots = int(config["n_pivots"])
        self.pivots = nn.Embedding(self.n_items, self.n_pivots * size)
        self.contrast_weight = float(config["contrast_weight"])
        self.negatives = int(config["n_negatives"])
        width = int(config["feature_size"])
        features = load_item_features(config, dataset)
        self.store_sha256 = None if features is None else features.sha256
        tables = [] if features is None else _tables(features, width, size)
        if len(tables) > 2:
            raise InputError(
                f"MMSBR reads one or two modalities, and the item embeddings have {len(tables)}. "
                "Choose with item_embeddings_modalities: [visual, text]."
            )
        self.fusion = PivotFusion(
            [width] * len(tables),
            size,
            pivots=self.n_pivots,
            rounds=int(config["n_rounds"]),
            heads=heads,
            dropout=float(config["fusion_dropout_prob"]),
            output_dropout=float(config["dropout_prob"]),
        )
        self.price_attention = PriceAttention(size, heads, float(config["dropout_prob"]))
        self.own = nn.Linear(size, size)
        self.mean = nn.Linear(size, size, bias=False)
        self.weight = nn.Linear(size, 1)
        bound = size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        # After the uniform start: in the public code that start overwrites the features.
        self.modalities = nn.ModuleList(nn.Embedding.from_pretrained(t, False) for t in tables)
        self.pseudo = nn.ModuleList()
        name = config["pseudo_item_embeddings"]
        if name is not None:
            self.pseudo.extend(
                nn.Embedding.from_pretrained(t, False)
                for t in _pseudo_tables(config, dataset, str(name), width, size, len(tables))
            )
        self._cache = EvaluationCache()

    # -- items -----------------------------------------------------------------------------------

    def item_vectors(self) -> Tensor:
        """Return every item's fused vector, (n_items, d); kept in evaluation."""
        parameters = list(self.parameters())
        if not self.training and not torch.is_grad_enabled():
            kept = self._cache.get(parameters)
            if kept is not None:
                return kept  # type: ignore[no-any-return]
        pivots = self.pivots.weight.view(self.n_items, self.n_pivots, -1)
        tables = _weights(self.modalities)
        blocks = [slice(s, s + _BLOCK) for s in range(0, self.n_items, _BLOCK)]
        parts = []
        for block in blocks:
            given = (pivots[block], [t[block] for t in tables])
            if self.training and len(blocks) > 1:
                parts.append(checkpoint(self.fusion, *given, use_reentrant=False))
            else:
                parts.append(self.fusion(*given))
        table = torch.cat(parts)
        if not self.training and not torch.is_grad_enabled():
            self._cache.put(parameters, table)
        return table

    def item_prices(self) -> tuple[Tensor, Tensor]:
        """Return every item's price distribution: mean and covariance, (n_items, d) each."""
        kind = self.category(self.item_category)
        mean = self.price_mean(self.item_price) + kind
        return mean, positive(self.price_cov(self.item_price) + kind)

    def contrast(self) -> Tensor:
        """Return the sum of the contrasts of both modalities over all items, a scalar."""
        if len(self.modalities) < 2:
            return self.pivots.weight.new_zeros(())
        real = [weight[1:] for weight in _weights(self.modalities)]
        pseudo = [weight[1:] for weight in _weights(self.pseudo)] or real[::-1]
        losses = [pseudo_contrast(x, g, self.negatives) for x, g in zip(real, pseudo, strict=True)]
        return torch.stack([loss.sum() for loss in losses]).sum()

    # -- sessions --------------------------------------------------------------------------------

    def interest(self, table: Tensor, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Return the sessions' interests, (B, d)."""
        rows, mask = table[item_seq], (item_seq != 0).unsqueeze(-1)
        mean = (rows * mask).sum(1) / lengths.clamp(min=1).unsqueeze(1)
        gate = torch.sigmoid(self.own(rows) + self.mean(mean).unsqueeze(1))
        found: Tensor = (self.weight(gate) * mask * rows).sum(dim=1)
        return found

    def price_preference(self, item_seq: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sessions' price preferences: mean and covariance, (B, d) each."""
        level, kind = self.item_price[item_seq], self.item_category[item_seq]
        mask = item_seq != 0
        real = mask.unsqueeze(-1)
        mean, cov = self.price_attention(
            self.price_mean(level) * real,
            self.price_cov(level) * real,
            self.category(kind) * real,
            mask,
            (lengths - 1).clamp(min=0),
        )
        return mean, positive(cov)

    def scores(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Return every item's score, (B, n_items), −inf for the padding id."""
        table = self.item_vectors()
        fit = self.interest(table, item_seq, lengths) @ table.T
        distance = wasserstein(*self.price_preference(item_seq, lengths), *self.item_prices())
        found = fit + fit * distance
        return found.index_fill(1, torch.zeros(1, dtype=torch.long, device=found.device), -1e9)

    # -- RecBole's interface ---------------------------------------------------------------------

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Return CE + λ · contrast, a scalar."""
        scores = self.scores(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        loss = functional.cross_entropy(scores, interaction[self.POS_ITEM_ID])
        return loss + self.contrast_weight * self.contrast()

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return every item's score, (B, n_items)."""
        scores = self.scores(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        scores[:, 0] = float("-inf")
        return scores

    def predict(self, interaction: Any) -> Tensor:
        """Return the scores of the batch's own items, (B,)."""
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)


def _weights(tables: nn.ModuleList) -> list[Tensor]:
    return [cast(nn.Embedding, table).weight for table in tables]


def _tables(features: ItemFeatures, width: int, size: int) -> list[Tensor]:
    """A (n_items, width) table a modality, at the scale of the other tables."""
    rms = (3 * size) ** -0.5
    return [initial_rows(part, width, rms) for part in features.parts()]


def _pseudo_tables(
    config: Any, dataset: Any, name: str, width: int, size: int, wanted: int
) -> list[Tensor]:
    if wanted < 2:
        raise InputError(
            "pseudo_item_embeddings stands beside item_embeddings with two modalities; set these."
        )

    class Other:
        """The configuration with another store."""

        def __getitem__(self, key: str) -> Any:
            return name if key == "item_embeddings" else config[key]

    features = load_item_features(Other(), dataset)
    assert features is not None  # a name was given
    tables = _tables(features, width, size)
    if len(tables) != wanted:
        raise InputError(
            f"pseudo_item_embeddings '{name}' has {len(tables)} modalities, item_embeddings have "
            f"{wanted}: each needs a generated one of the same name."
        )
    return tables
