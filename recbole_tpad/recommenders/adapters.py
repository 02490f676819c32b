"""Adapters: trainable maps from frozen item features to a recommender's width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.recommenders.item_features import MIN_SCALE, ItemFeatures, without_padding
from recbole_tpad.recommenders.whitening import whitened_rows


class FeatureAdapter(nn.Module, ABC):
    """Frozen features → d, for every item at once.

    Columns are standardised with mean and deviation over the items that occur in training
    (assumption: language-model states have a few huge columns that would otherwise dominate).
    No vector is read before the first use. Features too large to be held (see `ItemFeatures`)
    are read again, block by block, whenever the table is computed.

    Args:
        features: aligned features, (n_items, F).
        size: d.
    """

    trained: Tensor
    output_scale: Tensor

    def __init__(self, features: ItemFeatures, size: int) -> None:
        super().__init__()
        self._source: ItemFeatures | None = features
        self._ready = False
        self._wanted_rms: float | None = None
        self._start: dict[str, Tensor] = {}
        # Not persistent: the store is the one place of these numbers, its hash names them.
        for name in ("_features", "_mean", "_scale"):
            self.register_buffer(name, None, persistent=False)
        trained = torch.from_numpy(features.trained.copy())
        self.register_buffer("trained", trained, persistent=False)
        # Persistent: it was fitted to the random start of this very adapter.
        self.register_buffer("output_scale", torch.ones(()))
        self.size, self.width = size, features.width
        self.store = features.name
        self.store_sha256 = features.sha256

    # -- features --------------------------------------------------------------------------------

    @property
    def features(self) -> Tensor:
        """All features, (n_items, F); read now unless they have been.

        Raises:
            InputError: damaged files, rows that are not finite, or more than can be held.
        """
        self._prepare()
        if self._features is None:
            raise InputError(
                f"Item embeddings '{self.store}' are {len(self.trained):,} x {self.width:,} "
                "numbers, which are not held in memory at once."
            )
        found: Tensor = self._features
        return found

    def _prepare(self) -> None:
        """Read what every pass needs, and fit the scale that `rescale` has asked for."""
        if self._ready:
            return
        features = self._source
        assert features is not None  # given up below only
        seen = features.seen_rows()
        mean, scale = self._standardisation(seen)
        self._mean, self._scale = self._tensor(mean), self._tensor(scale)
        if features.whole:
            self._features = self._tensor(features.rows)
            self._source = None
        self._ready = True
        self._fit_scale(seen)

    def _tensor(self, array: Any) -> Tensor:
        return torch.from_numpy(np.array(array, dtype=np.float32)).to(self.output_scale)

    @staticmethod
    def _standardisation(seen: Any) -> tuple[Any, Any]:
        scale = np.maximum(seen.std(axis=0, dtype=np.float64), MIN_SCALE)
        return seen.mean(axis=0, dtype=np.float64), scale

    # -- the table -------------------------------------------------------------------------------

    @abstractmethod
    def _rows(self, rows: Tensor) -> Tensor:
        """Map standardised features, (n, F), to (n, d); every row by itself."""

    def forward(self) -> Tensor:
        """Return every item's vector, shape (n_items, d); the padding row is zero."""
        self._prepare()
        if self._source is None:
            rows = self._rows(self._standardised(self._features))
        else:
            places = self._source.places()
            if torch.is_grad_enabled():  # read again for the gradient, not kept
                parts = [checkpoint(self._block, p, use_reentrant=False) for p in places]
            else:
                parts = [self._block(place) for place in places]
            rows = torch.cat(parts)
        return without_padding(rows) * self.output_scale

    def _block(self, place: slice) -> Tensor:
        assert self._source is not None  # features that are held are mapped at once
        return self._rows(self._standardised(self._tensor(self._source.block(place))))

    def _standardised(self, rows: Tensor) -> Tensor:
        return (rows - self._mean) / self._scale

    # -- scale -----------------------------------------------------------------------------------

    def rescale(self, rms: float) -> None:
        """Multiply the output so that the rows of trained items have this root mean square.

        Before the first use it is noted, with the parameters as they are now. A constant factor,
        not smaller weights: one optimiser step then changes small rows less than large ones,
        where it would move smaller weights as far as large ones.
        """
        self._wanted_rms = rms
        if self._ready:
            self._fit_scale()
        else:
            self._start = {n: p.detach().clone() for n, p in self.named_parameters()}

    @torch.no_grad()
    def _fit_scale(self, seen: Any = None) -> None:
        rms, self._wanted_rms = self._wanted_rms, None
        if rms is None:
            return
        mode = self.training
        self.eval()
        with self._as_at_the_start():
            if self._source is not None:
                seen = self._source.seen_rows() if seen is None else seen
                rows = self._rows(self._standardised(self._tensor(seen))) * self.output_scale
            else:
                rows = FeatureAdapter.forward(self)  # no hooks: nobody uses this table
                rows = rows[self.trained] if bool(self.trained.any()) else rows
        self.train(mode)
        now = float(rows.pow(2).mean().sqrt())
        if now > 0:
            self.output_scale.mul_(rms / now)

    @contextmanager
    def _as_at_the_start(self) -> Iterator[None]:
        """With the parameters that were there when the scale was asked for."""
        start, self._start = self._start, {}
        now = {n: p.data for n, p in self.named_parameters()}
        for name, parameter in self.named_parameters():
            if name in start:
                parameter.data = start[name].to(parameter)
        try:
            yield
        finally:
            for name, parameter in self.named_parameters():
                parameter.data = now[name]

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self._wanted_rms is not None:
            self._prepare()  # the scale is saved
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if f"{prefix}output_scale" in state_dict:
            self._wanted_rms, self._start = None, {}
        super()._load_from_state_dict(state_dict, prefix, *args)


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
        whitened = whitened_rows(features, size)
        width = (whitened.shape[1],)
        super().__init__(replace(features, read=lambda: whitened, take=None, widths=width), size)
        self._prepare()  # nothing is gained by waiting: the numbers of the map follow from them
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
