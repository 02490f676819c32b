"""Vision encoders of the composed backbone: pixels → a fixed number of visual vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import Blip2QFormerModel, Blip2VisionModel


class VisionEncoder(nn.Module):
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
    def shape(self) -> tuple[int, int]:
        """(queries, width) of an image's features."""
        return self.query_tokens.shape[1], self.query_tokens.shape[2]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels (B, 3, H, W) to (B, queries, width)."""
        patches = (self.vit(pixel_values=pixels).last_hidden_state - self.mean) * self.scale
        queries = self.query_tokens.expand(pixels.shape[0], -1, -1)
        output = self.qformer(query_embeds=queries, encoder_hidden_states=patches)
        return output.last_hidden_state  # type: ignore[no-any-return]

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
