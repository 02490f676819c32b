"""The composed backbone: a vision encoder, a connector, any causal language model.

One base in memory carries two *towers*, `knowledge` and `transition`. A tower is what the stages
train: a LoRA adapter of its name (peft), a connector from the vision encoder into the word space,
the rows of the two summary tokens, and the visual tokens that stand for "no image".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from PIL import Image
from torch import nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from recbole_tpad.backbones.base import (
    FLOAT16_LOSS_SCALE,
    TOWERS,
    Backbone,
    Encoded,
    Inputs,
    Prediction,
)
from recbole_tpad.backbones.composed_inputs import ComposedBatch, ComposedInputs
from recbole_tpad.backbones.lora import (
    LoraSettings,
    adapter_parameters,
    add_towers,
    merged,
    word_spread,
)
from recbole_tpad.backbones.prompts import (
    IMAGE_SUMMARY,
    TEXT_SUMMARY,
    VISUAL_TOKEN,
    GreedyAnswers,
    PromptBatch,
    PromptEncoder,
    PromptTemplate,
)
from recbole_tpad.backbones.readout import (
    ReadPositions,
    answer_loss,
    encoded,
    positions,
    summary_columns,
    summary_states,
)
from recbole_tpad.backbones.vision import VisionEncoder
from recbole_tpad.data import Item


class Tower(nn.Module):
    """The small trainable part of a tower besides its LoRA adapter.

    Args:
        vision_dim: width of the vision encoder's output.
        word_dim: width of the language model's word space.
        visual_tokens: vectors of an image.
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
        activation_checkpointing: recompute layers in the backward pass instead of keeping them.
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
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.readout = readout
        self.gist_mask = gist_mask
        words = language_model.get_input_embeddings().weight
        if words.dtype == torch.float16:
            self.loss_scale = FLOAT16_LOSS_SCALE
        if activation_checkpointing:
            language_model.gradient_checkpointing_enable({"use_reentrant": False})
        self.language_model = add_towers(language_model, lora)
        queries, vision_dim = vision.shape
        spread = word_spread(words)
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

    @contextmanager
    def encoding(self, tower: str) -> Iterator[None]:
        """Within the context a tower does nothing but encode: its adapter is in the weights."""
        with super().encoding(tower), merged(self.language_model):
            yield

    def tower_parameters(self, tower: str) -> dict[str, nn.Parameter]:
        """Name → parameter of everything that belongs to a tower."""
        found = adapter_parameters(self.language_model, tower)
        return found | {f"tower.{n}": p for n, p in self.towers[tower].named_parameters()}

    def base_parameters(self) -> dict[str, nn.Parameter]:
        """Name → parameter of everything shared by the towers."""
        language = {
            f"language_model.{n}": p
            for n, p in self.language_model.named_parameters()
            if "lora_" not in n
        }
        return language | {f"vision.{n}": p for n, p in self.vision.named_parameters()}

    def decoder(self) -> nn.Module:
        """The language model without its head."""
        found: nn.Module = self.language_model.get_base_model().get_decoder()
        return found

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

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """RGB images as pixel values (B, 3, H, W)."""
        return self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]

    def _inputs(
        self, batch: PromptBatch, visual: torch.Tensor, has_image: torch.Tensor
    ) -> torch.Tensor:
        """Word vectors (B, L, H) with visual and summary places filled in."""
        tower = cast(Tower, self.towers[self.active])
        words: torch.Tensor = self.language_model.get_input_embeddings()(batch.ids.clamp(min=0))
        seen = tower.connector(visual.float())  # towers stay in float32 on a half-precision base
        seen = torch.where(has_image[:, None, None], seen, tower.no_image)
        words = _filled(words, batch.ids == VISUAL_TOKEN, seen.flatten(0, 1))
        for marker, row in ((IMAGE_SUMMARY, 0), (TEXT_SUMMARY, 1)):
            words = _filled(words, batch.ids == marker, tower.summary_tokens[row])
        return words

    def encode(self, batch: ComposedBatch) -> Encoded:
        """Summary states, and the answer loss where the batch holds answers."""
        head = self.language_model.get_output_embeddings()
        # In training, gradient caching's pass without gradients must draw the dropout of the other.
        if not (torch.is_grad_enabled() or self.training) and batch.prompts.plain:
            read = ReadPositions(self.decoder())
            with read.only(summary_columns(batch.prompts, self.readout)):
                hidden = self.hidden(*batch)
        else:
            hidden = self.hidden(*batch)
        return encoded(batch.prompts, hidden, self.readout, head, self.scale_now)

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
        causal = torch.ones(length, length, dtype=torch.bool, device=batch.ids.device).tril()
        allowed = causal & batch.mask.bool()[:, None, :]
        answering, visible = self._gist(batch)
        allowed &= ~answering[:, :, None] | visible[:, None, :]
        # A padding row that sees nothing would be NaN; it sees itself and nobody reads it.
        allowed |= torch.eye(length, dtype=torch.bool, device=batch.ids.device)
        return self._additive(allowed)[:, None]

    @staticmethod
    def _gist(batch: PromptBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L) bool each: positions that answer, and positions that these see."""
        column = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        answering = column >= (batch.answer_start - 1)[:, None]
        return answering, answering | (batch.ids == IMAGE_SUMMARY) | (batch.ids == TEXT_SUMMARY)

    def _additive(self, allowed: torch.Tensor) -> torch.Tensor:
        dtype = self.language_model.dtype
        return torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)

    def hidden(
        self, batch: PromptBatch, visual: torch.Tensor, has_image: torch.Tensor
    ) -> torch.Tensor:
        """Last-layer states (B, L, H).

        Args:
            batch: padded prompts.
            visual: (B, queries, width) vision features; rows without an image are ignored.
            has_image: (B,) bool.
        """
        words = self._inputs(batch, visual, has_image)
        if not torch.is_grad_enabled() and batch.plain:
            # What is causal sees no padding on the right: no mask, and the fastest kernel.
            return self._decode(words, None, None)[0]
        return self._decode(words, self.attention_mask(batch), positions(batch.mask))[0]

    def _decode(
        self,
        words: torch.Tensor,
        mask: torch.Tensor | None,
        places: torch.Tensor | None,
        cache: DynamicCache | None = None,
    ) -> tuple[torch.Tensor, DynamicCache | None]:
        """Last-layer states (B, L, H) of word vectors after what the cache holds; the cache."""
        output = self.decoder()(
            inputs_embeds=words,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state, cache

    def summaries(self, batch: PromptBatch, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Modality → (B, H) states at (or before) the summary tokens."""
        return summary_states(batch, hidden, self.readout)

    def answer_loss(self, batch: PromptBatch, hidden: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over answer tokens only."""
        return answer_loss(self.language_model.get_output_embeddings(), batch, hidden)

    @torch.no_grad()
    def generate(
        self,
        batch: PromptBatch,
        visual: torch.Tensor,
        has_image: torch.Tensor,
        max_new_tokens: int,
    ) -> list[list[int]]:
        """Greedy answers to left-padded prompts without answers, cut at end-of-sequence."""
        cache = DynamicCache(config=self.language_model.config)
        mask, places = batch.mask, positions(batch.mask)
        _, visible = self._gist(batch)
        words = self._inputs(batch, visual, has_image)
        hidden, _ = self._decode(words, self.attention_mask(batch), places, cache)
        answers = GreedyAnswers(len(batch.ids), self.tokenizer.eos_token_id)
        while True:
            tokens = self.language_model.get_output_embeddings()(hidden[:, -1]).argmax(-1)
            if not self.passes(answers.add(tokens)) or answers.longest >= max_new_tokens:
                return answers.ids
            new = mask.new_ones(len(mask), 1)
            mask, visible = torch.cat([mask, new], 1), torch.cat([visible, new.bool()], 1)
            places = places[:, -1:] + 1
            seen = self._additive(mask.bool() & visible)[:, None, None] if self.gist_mask else mask
            words = self.language_model.get_input_embeddings()(tokens[:, None])
            hidden, _ = self._decode(words, seen, places, cache)


def _filled(words: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Word vectors (B, L, H) with others, (n, H) or one for all, at some places (B, L)."""
    return words.index_put(torch.nonzero(places, as_tuple=True), values.to(words.dtype))
