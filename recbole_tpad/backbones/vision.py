"""Vision encoders of the composed backbone: pixels → a fixed number of visual vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn
from transformers import Blip2QFormerModel, Blip2VisionModel, PreTrainedModel


class VisionEncoder(nn.Module, ABC):
    """Pixels (B, 3, H, W) → (B, tokens, width) of about unit scale.

    Attributes:
        vit: returns `last_hidden_state` and `pooler_output`.
    """

    vit: PreTrainedModel

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(tokens, width) of an image's features."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Edge of the images it takes, in pixels."""

    def standardise(self, batches: Sequence[torch.Tensor]) -> None:
        """Fit to images, given as pixel batches; only encoders with random weights need it."""

    @torch.no_grad()
    def summary(self, pixels: torch.Tensor) -> torch.Tensor:
        """One vector an image: the ViT's own pooled output (its class token), (B, width)."""
        vit = self.vit
        pooled: torch.Tensor = vit(pixel_values=pixels.to(vit.dtype)).pooler_output
        return pooled.float()


class PatchEncoder(VisionEncoder):
    """The patch states of a ViT (SigLIP, CLIP), averaged to a square grid if asked.

    States are normalised per patch to mean 0 and variance 1, since some of their dimensions are
    many times larger than the others (assumption). A class token in front is left out.

    Args:
        vit: returns `last_hidden_state` (B, [1 +] side², width).
        side: patches along an edge.
        grid: visual tokens along an edge; 0 or `side` keeps every patch.
    """

    def __init__(self, vit: PreTrainedModel, side: int, grid: int = 0) -> None:
        super().__init__()
        self.vit = vit
        self.side = side
        self.grid = grid or side

    @property
    def image_size(self) -> int:
        """Edge of the images it takes, in pixels."""
        return int(self.vit.config.image_size)

    @property
    def shape(self) -> tuple[int, int]:
        """(grid², width)."""
        return self.grid**2, int(self.vit.config.hidden_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels (B, 3, H, W) to float32 (B, grid², width)."""
        states = self.vit(pixel_values=pixels.to(self.vit.dtype)).last_hidden_state.float()
        states = states[:, -(self.side**2) :]
        if self.grid != self.side:
            image = states.transpose(1, 2).unflatten(2, (self.side, self.side))
            states = nn.functional.adaptive_avg_pool2d(image, self.grid).flatten(2).transpose(1, 2)
        return nn.functional.layer_norm(states, states.shape[-1:])


class QueryEncoder(VisionEncoder):
    """BLIP-2's ViT and Q-Former: pixels → (B, queries, width), standardised per feature."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        vit: Blip2VisionModel,
        qformer: Blip2QFormerModel,
        query_tokens: torch.Tensor,
    ) -> None:
        super().__init__()
        self.vit = vit
        self.qformer = qformer
        self.query_tokens = nn.Parameter(query_tokens)
        width = vit.config.hidden_size
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    @property
    def image_size(self) -> int:
        """Edge of the images it takes, in pixels."""
        return int(self.vit.config.image_size)

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, width) of an image's features."""
        return self.query_tokens.shape[1], self.query_tokens.shape[2]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels (B, 3, H, W) to float32 (B, queries, width)."""
        dtype = self.query_tokens.dtype
        patches = self.vit(pixel_values=pixels.to(dtype)).last_hidden_state
        patches = (patches - self.mean) * self.scale
        queries = self.query_tokens.expand(pixels.shape[0], -1, -1)
        output = self.qformer(query_embeds=queries, encoder_hidden_states=patches.to(dtype))
        return output.last_hidden_state.float()  # type: ignore[no-any-return]

    @torch.no_grad()
    def standardise(self, batches: Sequence[torch.Tensor]) -> None:
        """Fit the patch features' standardisation to images, given as pixel batches.

        A randomly initialised ViT maps all images to nearly the same vector; without this the
        Q-Former sees no difference between them. Pretrained encoders keep mean 0, scale 1.
        """
        patches = torch.cat(
            [self.vit(pixel_values=p).last_hidden_state.flatten(0, 1) for p in batches]
        )
        self.mean.copy_(patches.mean(0))
        self.scale.copy_(1 / patches.std(0).clamp(min=1e-6))
