"""Adapters: trainable maps from frozen item features to a recommender's width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.recommenders.item_features import MIN_SCALE, ItemFeatures, without_padding
from recbole_tpad.recommenders.whitening import fit_whitened_pca


class FeatureAdapter(nn.Module, ABC):
    """Frozen features → d, for every item at once.

    Columns are standardised with mean and deviation over the items that occur in training
    (assumption: language-model states have a few huge columns that would otherwise dominate).

    Args:
        features: aligned features, (n_items, F).
        size: d.
    """

    features: Tensor
    mean: Tensor
    scale: Tensor
    trained: Tensor
    output_scale: Tensor

    def __init__(self, features: ItemFeatures, size: int) -> None:
        super().__init__()
        seen = features.seen_rows()
        mean, scale = self._standardisation(seen)
        # Not persistent: the store is the one place of these numbers, its hash names them.
        for name, array in (("features", features.rows), ("mean", mean), ("scale", scale)):
            copied = torch.from_numpy(np.array(array, dtype=np.float32))
            self.register_buffer(name, copied, persistent=False)
        trained = torch.from_numpy(features.trained.copy())
        self.register_buffer("trained", trained, persistent=False)
        # Persistent: it was fitted to the random start of this very adapter.
        self.register_buffer("output_scale", torch.ones(()))
        self.size, self.width = size, features.rows.shape[1]
        self.store = features.name
        self.store_sha256 = features.sha256

    @staticmethod
    def _standardisation(seen: Any) -> tuple[Any, Any]:
        scale = np.maximum(seen.std(axis=0, dtype=np.float64), MIN_SCALE)
        return seen.mean(axis=0, dtype=np.float64), scale

    @abstractmethod
    def _rows(self, rows: Tensor) -> Tensor:
        """Map standardised features, (n_items, F), to (n_items, d)."""

    def forward(self) -> Tensor:
        """Return every item's vector, shape (n_items, d); the padding row is zero."""
        rows = self._rows((self.features - self.mean) / self.scale)
        return without_padding(rows) * self.output_scale

    @torch.no_grad()
    def rescale(self, rms: float) -> None:
        """Multiply the output so that the rows of trained items have this root mean square.

        A constant factor, not smaller weights: one optimiser step then changes small rows less
        than large ones, where it would move smaller weights as far as large ones.
        """
        mode = self.training
        self.eval()
        rows = self()
        self.train(mode)
        if bool(self.trained.any()):
            rows = rows[self.trained]
        now = float(rows.pow(2).mean().sqrt())
        if now > 0:
            self.output_scale.mul_(rms / now)


class MlpAdapter(FeatureAdapter):
    """LayerNorm, Linear, GELU, Linear: the adapter of TPAD."""

    def __init__(self, features: ItemFeatures, size: int, hidden_size: int) -> None:
        super().__init__(features, size)
        self.norm = nn.LayerNorm(self.width)
        self.hidden = nn.Linear(self.width, hidden_size)
        self.activation = nn.GELU()
        self.output = nn.Linear(hidden_size, size)

    def _rows(self, rows: Tensor) -> Tensor:
        found: Tensor = self.output(self.activation(self.hidden(self.norm(rows))))
        return found


class LinearAdapter(FeatureAdapter):
    """One linear map of the standardised features."""

    def __init__(self, features: ItemFeatures, size: int) -> None:
        super().__init__(features, size)
        self.output = nn.Linear(self.width, size)

    def _rows(self, rows: Tensor) -> Tensor:
        found: Tensor = self.output(rows)
        return found


class PcaAdapter(LinearAdapter):
    """One linear map of the whitened PCA of the features, cut to d; it starts as the identity.

    The PCA is fitted on training items; together with the map it is one linear map of the
    features, but better conditioned than their own columns. Where the features have fewer than d
    directions the other output columns start at zero.
    """

    def __init__(self, features: ItemFeatures, size: int) -> None:
        pca = fit_whitened_pca(features.seen_rows(), size, features.widths)
        whitened = pca(features.rows).astype(np.float32)
        whitened[0] = 0
        known = replace(features, read=lambda: whitened, widths=(whitened.shape[1],))
        super().__init__(known, size)
        with torch.no_grad():
            self.output.bias.zero_()
            nn.init.eye_(self.output.weight)

    @staticmethod
    def _standardisation(seen: Any) -> tuple[Any, Any]:
        return np.zeros(seen.shape[1]), np.ones(seen.shape[1])


class MoeAdapter(FeatureAdapter):
    """Parametric whitening in a mixture of experts, after UniSRec (arXiv 2206.05941, eq. 2–4).

    Σ_k g_k (x − b_k) W_k with g = softmax(x W_g + ε · softplus(x W_n)), ε normal in training and
    zero in evaluation; gates start even. Assumptions: the features are standardised first, no
    dropout, no floor on the noise's scale.
    """

    def __init__(self, features: ItemFeatures, size: int, experts: int) -> None:
        super().__init__(features, size)
        self.experts = experts
        self.bias = nn.Parameter(torch.zeros(experts, self.width))
        self.weight = nn.Parameter(torch.empty(experts, self.width, size))
        nn.init.normal_(self.weight, std=self.width**-0.5)
        self.gate = nn.Linear(self.width, experts, bias=False)
        self.noise = nn.Linear(self.width, experts, bias=False)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.noise.weight)

    def _rows(self, rows: Tensor) -> Tensor:
        logits = self.gate(rows)
        if self.training:
            logits = logits + torch.randn_like(logits) * functional.softplus(self.noise(rows))
        gates = logits.softmax(dim=1)
        flat = self.weight.transpose(0, 1).reshape(self.width, -1)
        whitened = (rows @ flat).view(len(rows), self.experts, self.size)
        shift = torch.einsum("kf,kfd->kd", self.bias, self.weight)
        return torch.einsum("nk,nkd->nd", gates, whitened - shift)


ADAPTERS = ("mlp", "linear", "pca", "moe")


def make_adapter(config: Any, features: ItemFeatures, size: int) -> FeatureAdapter:
    """Build the configured adapter.

    Args:
        config: keys ``adapter`` (null: ``mlp``), ``adapter_hidden_size`` (of ``mlp``) and
            ``adapter_experts`` (of ``moe``).
        features: aligned features.
        size: d.

    Raises:
        InputError: an unknown adapter or a size below 1.
    """
    name = "mlp" if config["adapter"] is None else str(config["adapter"])
    if name not in ADAPTERS:
        raise InputError(
            f"adapter='{name}' is unknown.{nearest(name, ADAPTERS)} Known: {', '.join(ADAPTERS)}."
        )
    if name == "mlp":
        return MlpAdapter(features, size, _positive(config, "adapter_hidden_size"))
    if name == "moe":
        return MoeAdapter(features, size, _positive(config, "adapter_experts"))
    return PcaAdapter(features, size) if name == "pca" else LinearAdapter(features, size)


def _positive(config: Any, key: str) -> int:
    value = int(config[key])
    if value < 1:
        raise InputError(f"{key}={value} must be at least 1.")
    return value
