"""Which backbone: the section `backbone` of a generator's YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.settings import at_least

KINDS = ("composed", "native", "encoder", "tiny")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class BackboneSettings:
    """Which backbone, as in the generator's YAML.

    Attributes:
        kind: 'composed' or 'native' (folders or hub ids), or 'tiny' (made from the catalogue).
        model: of 'native', an image-text-to-text model: local folder or hub id.
        vision: of 'composed', BLIP-2, SigLIP or CLIP checkpoint: local folder or hub id.
        language_model: of 'composed', causal LM: local folder or hub id.
        text_encoder: of 'encoder', BERT-class sentence encoder: local folder or hub id.
        image_encoder: of 'encoder', CLIP or SigLIP checkpoint; empty: texts only.
        model_revision, vision_revision, language_model_revision, text_encoder_revision,
            image_encoder_revision: commit to pin a hub id to.
        visual_grid: SigLIP and CLIP: average the patches to this many squared; 0 keeps all.
        dtype: of the base weights; what is trained stays in float32.
        max_text_tokens: budget of an item's text.
        readout: 'at' or 'before' the summary token.
        gist_mask: answers see only the summary tokens.
        activation_checkpointing: less memory for about a third more time in training.
        prompt: prompt parts that differ from the default.
        lora: LoRA settings that differ from the default.
        encoder: settings of the encoder backbone that differ from the default.
        tiny: sizes of the tiny backbone that differ from the default.
    """

    kind: str = "composed"
    model: str = ""
    vision: str = ""
    language_model: str = ""
    text_encoder: str = ""
    image_encoder: str = ""
    model_revision: str | None = None
    vision_revision: str | None = None
    language_model_revision: str | None = None
    text_encoder_revision: str | None = None
    image_encoder_revision: str | None = None
    visual_grid: int = 0
    dtype: str = "float32"
    max_text_tokens: int = 96
    readout: str = "at"
    gist_mask: bool = False
    activation_checkpointing: bool = False
    prompt: dict[str, str] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, Any] = field(default_factory=dict)
    tiny: dict[str, Any] = field(default_factory=dict)

    def parts(self) -> dict[str, tuple[str, str | None]]:
        """Name → (folder or hub id, revision) of the checkpoints that this kind is made from."""
        if self.kind == "encoder":
            parts = {
                "text_encoder": (self.text_encoder, self.text_encoder_revision),
                "image_encoder": (self.image_encoder, self.image_encoder_revision),
            }
            return parts if self.image_encoder else {"text_encoder": parts["text_encoder"]}
        if self.kind == "native":
            return {"model": (self.model, self.model_revision)}
        return {
            "vision": (self.vision, self.vision_revision),
            "language_model": (self.language_model, self.language_model_revision),
        }

    def __post_init__(self) -> None:
        at_least("backbone", 1, max_text_tokens=self.max_text_tokens)
        at_least("backbone", 0, visual_grid=self.visual_grid)
        if self.kind == "native" and self.gist_mask:
            raise InputError(
                "backbone: gist_mask is for composed backbones; a native model makes its own "
                "attention mask."
            )
        choices = {
            "kind": KINDS,
            "dtype": tuple(DTYPES),
            "readout": ("at", "before"),
        }
        for key, known in choices.items():
            value = str(getattr(self, key))
            if value not in known:
                raise InputError(
                    f"Unknown backbone {key} '{value}'.{nearest(value, known)} "
                    f"Known: {', '.join(known)}."
                )
