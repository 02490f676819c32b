"""The composed backbone: BLIP-2 vision encoder + Q-Former, connector, any causal language model.

One base in memory carries two *towers*, `knowledge` and `transition`. A tower is what the stages
train: a LoRA adapter of its name (peft), a connector from the Q-Former's output into the word
space, the rows of the two summary tokens, and the visual tokens that stand for "no image".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recbole_tpad.backbones.base import TOWERS, Backbone, Encoded, Inputs, Prediction
from recbole_tpad.backbones.composed_inputs import ComposedBatch, ComposedInputs
from recbole_tpad.backbones.prompts import (
    IGNORED_LABEL,
    IMAGE_SUMMARY,
    TEXT_SUMMARY,
    VISUAL_TOKEN,
    PromptBatch,
    PromptEncoder,
    PromptTemplate,
)
from recbole_tpad.backbones.vision import VisionEncoder
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """LoRA of a tower (TPAD: r=16, α=32, dropout .05 on q, k, v, o)."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise InputError(
                f"Impossible LoRA settings: rank {self.rank}, alpha {self.alpha}, dropout "
                f"{self.dropout}."
            )


class Tower(nn.Module):
    """The small trainable part of a tower besides its LoRA adapter.

    Args:
        vision_dim: width of the Q-Former's output.
        word_dim: width of the language model's word space.
        visual_tokens: Q-Former queries.
        spread: standard deviation for the new rows: that of the model's own word vectors.
    """

    def __init__(self, vision_dim: int, word_dim: int, visual_tokens: int, spread: float) -> None:
        super().__init__()
        # C_v of the paper; Linear-GELU-Linear is an assumption.
        self.connector = nn.Sequential(
            nn.Linear(vision_dim, word_dim), nn.GELU(), nn.Linear(word_dim, word_dim)
        )
        self.summary_tokens = nn.Parameter(torch.randn(2, word_dim) * spread)
        self.no_image = nn.Parameter(torch.randn(visual_tokens, word_dim) * spread)


class ComposedBackbone(Backbone):
    """Vision encoder + connector + causal language model with named towers.

    Args:
        vision: image encoder.
        image_processor: turns PIL images into pixel values.
        language_model: any causal LM of transformers.
        tokenizer: its tokenizer.
        lora: the towers' LoRA settings.
        template: prompt parts.
        max_text_tokens: budget of an item's text.
        readout: 'at' the summary token, or 'before' it (NoteLLM-2).
        gist_mask: answer tokens see only the summary tokens and earlier answer tokens.
    """

    def __init__(
        self,
        vision: VisionEncoder,
        image_processor: Callable[..., Mapping[str, torch.Tensor]],
        language_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        lora: LoraSettings,
        template: PromptTemplate,
        max_text_tokens: int = 96,
        readout: str = "at",
        gist_mask: bool = False,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.readout = readout
        self.gist_mask = gist_mask
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.target_modules),
        )
        words = language_model.get_input_embeddings().weight
        self.language_model = get_peft_model(language_model, config, adapter_name=TOWERS[0])
        self.language_model.add_adapter(TOWERS[1], config)
        queries, vision_dim = vision.shape
        spread = float(words.detach().float().std())
        self.towers = nn.ModuleDict(
            {name: Tower(vision_dim, words.shape[1], queries, spread) for name in TOWERS}
        )
        self.prompts = PromptEncoder(tokenizer, template, queries, max_text_tokens)
        self.word_dim = int(words.shape[1])
        self.use("knowledge")

    # -- towers --------------------------------------------------------------------------------

    def use(self, tower: str) -> None:
        """Make a tower the active one."""
        self.active = tower
        self.language_model.set_adapter(tower)

    def tower_parameters(self, tower: str) -> dict[str, nn.Parameter]:
        """Name → parameter of everything that belongs to a tower."""
        found = {
            f"lora.{n.replace(f'.{tower}.', '.')}": p
            for n, p in self.language_model.named_parameters()
            if "lora_" in n and f".{tower}." in n
        }
        return found | {f"tower.{n}": p for n, p in self.towers[tower].named_parameters()}

    def base_parameters(self) -> dict[str, nn.Parameter]:
        """Name → parameter of everything shared by the towers."""
        language = {
            f"language_model.{n}": p
            for n, p in self.language_model.named_parameters()
            if "lora_" not in n
        }
        return language | {f"vision.{n}": p for n, p in self.vision.named_parameters()}

    def fitted_buffers(self) -> dict[str, torch.Tensor]:
        """The standardisation of the vision encoder's patches."""
        return {f"vision.{n}": b for n, b in self.vision.named_buffers()}

    @property
    def widths(self) -> dict[str, int]:
        """Both summary states have the language model's width."""
        return {"visual": self.word_dim, "text": self.word_dim}

    def inputs(self, items: Sequence[Item], device: torch.device) -> ComposedInputs:
        """Items as prompts with images."""
        return ComposedInputs(self, items, device)

    # -- forward -------------------------------------------------------------------------------

    def pixels(self, images: Sequence[Path]) -> torch.Tensor:
        """Read images into pixel values (B, 3, H, W)."""
        opened = []
        for path in images:
            with Image.open(path) as image:
                opened.append(image.convert("RGB"))
        return self.image_processor(images=opened, return_tensors="pt")["pixel_values"]

    def _inputs(
        self, batch: PromptBatch, visual: torch.Tensor, has_image: torch.Tensor
    ) -> torch.Tensor:
        """Word vectors (B, L, H) with visual and summary places filled in."""
        tower = cast(Tower, self.towers[self.active])
        words: torch.Tensor = self.language_model.get_input_embeddings()(batch.ids.clamp(min=0))
        seen = tower.connector(visual.to(words.dtype))
        seen = torch.where(has_image[:, None, None], seen, tower.no_image)
        places = (batch.ids == VISUAL_TOKEN).unsqueeze(-1)
        words = words.masked_scatter(places, seen.to(words.dtype))
        for marker, row in ((IMAGE_SUMMARY, 0), (TEXT_SUMMARY, 1)):
            place = (batch.ids == marker).unsqueeze(-1)
            words = torch.where(place, tower.summary_tokens[row].to(words.dtype), words)
        return words

    def encode(self, batch: ComposedBatch) -> Encoded:
        """Summary states, and the answer loss where the batch holds answers."""
        hidden = self.hidden(*batch)
        prompts = batch.prompts
        tokens = int((prompts.labels != IGNORED_LABEL).sum())
        return Encoded(
            self.summaries(prompts, hidden),
            tokens,
            (lambda: self.answer_loss(prompts, hidden)) if tokens else None,
        )

    def predict(
        self,
        inputs: Inputs,
        rows: torch.Tensor,
        *,
        visual_rows: torch.Tensor | None = None,
        max_new_tokens: int = 32,
    ) -> list[Prediction]:
        """Greedy generation from the prompt."""
        assert isinstance(inputs, ComposedInputs)
        batch = inputs.batch(rows, left=True, visual_rows=visual_rows)
        said = self.generate(*batch, max_new_tokens=max_new_tokens)
        return [Prediction(*self.prompts.parse_answer(ids)) for ids in said]

    def attention_mask(self, batch: PromptBatch) -> torch.Tensor:
        """The 2-D padding mask, or with `gist_mask` an additive (B, 1, L, L) mask.

        With `gist_mask` every position from the last token of the answer lead on (it predicts the
        first answer token) sees only the summary tokens and what comes after the lead.
        """
        if not self.gist_mask:
            return batch.mask
        length = batch.ids.shape[1]
        column = torch.arange(length, device=batch.ids.device)
        causal = torch.ones(length, length, dtype=torch.bool, device=batch.ids.device).tril()
        allowed = causal & batch.mask.bool()[:, None, :]
        answering = column >= (batch.answer_start - 1)[:, None]
        visible = answering | (batch.ids == IMAGE_SUMMARY) | (batch.ids == TEXT_SUMMARY)
        allowed &= ~answering[:, :, None] | visible[:, None, :]
        # A padding row that sees nothing would be NaN; it sees itself and nobody reads it.
        allowed |= torch.eye(length, dtype=torch.bool, device=batch.ids.device)
        floor = torch.finfo(self.language_model.dtype).min
        return torch.where(allowed, 0.0, floor).to(self.language_model.dtype)[:, None]

    def hidden(
        self, batch: PromptBatch, visual: torch.Tensor, has_image: torch.Tensor
    ) -> torch.Tensor:
        """Last-layer states (B, L, H).

        Args:
            batch: padded prompts.
            visual: (B, queries, width) vision features; rows without an image are ignored.
            has_image: (B,) bool.
        """
        decoder = self.language_model.get_base_model().get_decoder()
        positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
        output = decoder(
            inputs_embeds=self._inputs(batch, visual, has_image),
            attention_mask=self.attention_mask(batch),
            position_ids=positions,
            use_cache=False,
        )
        return output.last_hidden_state  # type: ignore[no-any-return]

    def summaries(self, batch: PromptBatch, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Modality → (B, H) states at (or before) the summary tokens."""
        rows = torch.arange(len(hidden), device=hidden.device)
        shift = 1 if self.readout == "before" else 0
        return {
            "visual": hidden[rows, batch.summary_positions(IMAGE_SUMMARY) - shift],
            "text": hidden[rows, batch.summary_positions(TEXT_SUMMARY) - shift],
        }

    def answer_loss(self, batch: PromptBatch, hidden: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over answer tokens only; the head runs on those positions only."""
        rows, columns = torch.nonzero(batch.labels != IGNORED_LABEL, as_tuple=True)
        logits = self.language_model.get_output_embeddings()(hidden[rows, columns - 1])
        return nn.functional.cross_entropy(logits.float(), batch.labels[rows, columns])

    @torch.no_grad()
    def generate(
        self,
        batch: PromptBatch,
        visual: torch.Tensor,
        has_image: torch.Tensor,
        max_new_tokens: int,
    ) -> list[list[int]]:
        """Greedy answers to left-padded prompts without answers, cut at end-of-sequence."""
        eos = self.tokenizer.eos_token_id
        answers: list[list[int]] = [[] for _ in range(len(batch.ids))]
        open_rows = torch.ones(len(batch.ids), dtype=torch.bool, device=batch.ids.device)
        for _ in range(max_new_tokens):
            hidden = self.hidden(batch, visual, has_image)[:, -1]
            tokens = self.language_model.get_output_embeddings()(hidden).argmax(-1)
            open_rows &= tokens != eos
            if not open_rows.any():
                break
            for row in torch.nonzero(open_rows).flatten().tolist():
                answers[row].append(int(tokens[row]))
            column = tokens[:, None]
            batch = PromptBatch(
                torch.cat([batch.ids, column], 1),
                torch.cat([batch.mask, torch.ones_like(column)], 1),
                torch.cat([batch.labels, torch.full_like(column, IGNORED_LABEL)], 1),
                batch.answer_start,
            )
        return answers
