"""Images among a native model's tokens: what stands around them, and features in its own form."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import torch
from transformers import PreTrainedTokenizerBase

# What families put around an image's tokens; the first pair whose tokens are all known is taken.
_AROUND_IMAGES = (
    ("<|vision_start|>", "<|vision_end|>"),  # Qwen-VL
    ("<fake_token_around_image><global-img>", "<fake_token_around_image>"),  # Idefics 3, SmolVLM
    ("<start_of_image>", "<end_of_image>"),  # Gemma 3
    ("<img>", "</img>"),  # InternVL
)


def pooled_features(image: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(tokens, H) features of one image, of `NativeBackbone.image_features`."""
    return image["list"] if "list" in image else image["tensor"]


def as_output(images: list[dict[str, torch.Tensor]], dtype: torch.dtype) -> SimpleNamespace:
    """What `get_image_features` would have returned for these images together."""
    pooled = [pooled_features(image).to(dtype) for image in images]
    layers = sorted(n for n in images[0] if n.startswith("deepstack."))
    return SimpleNamespace(
        pooler_output=torch.stack(pooled) if "tensor" in images[0] else pooled,
        deepstack_features=[[image[n].to(dtype) for image in images] for n in layers],
    )


def around_images(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids before and after an image's tokens; nothing where the family is not known."""
    known = tokenizer.get_vocab()
    for before, after in _AROUND_IMAGES:
        parts = [p for p in (before + after).replace("><", "> <").split(" ") if p]
        if all(part in known for part in parts):
            ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (before, after)]
            return ids[0], ids[1]
    return [], []
