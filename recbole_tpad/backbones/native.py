"""The native backbone: any image-text-to-text model of transformers with its own preprocessing.

Its vision side, its image tokens and positions are its own. Towers are LoRA adapters of the
language model and the rows of the two summary tokens; a learned run of vectors stands for "no
image". The vision side stays frozen, so its output is computed once per image.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recbole_tpad.backbones.base import (
    FLOAT16_LOSS_SCALE,
    TOWERS,
    Backbone,
    Encoded,
    Inputs,
    Prediction,
)
from recbole_tpad.backbones.lora import (
    LoraSettings,
    adapter_parameters,
    add_towers,
    merged,
    word_spread,
)
from recbole_tpad.backbones.native_features import NativeImages
from recbole_tpad.backbones.native_images import around_images, as_output, pooled_features
from recbole_tpad.backbones.prompts import (
    IMAGE_SUMMARY,
    TEXT_SUMMARY,
    VISUAL_TOKEN,
    GreedyAnswers,
    Prompt,
    PromptBatch,
    PromptEncoder,
    PromptTemplate,
    collate,
)
from recbole_tpad.backbones.readout import encoded, positions
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError

NO_IMAGE_TOKENS = 8  # learned vectors in the place of an absent image (assumption)
# Sizes that the model reads beside the pixels, for positions; kept with the features.
_NOT_SIZES = ("pixel_values", "pixel_attention_mask")
_SPECIAL = {IMAGE_SUMMARY: 0, TEXT_SUMMARY: 1}


class NativeBatch(NamedTuple):
    """Padded prompts, and the features of the images in them, in order."""

    prompts: PromptBatch
    images: list[dict[str, torch.Tensor]]


class NativeTower(nn.Module):
    """The trainable rows of a tower besides its LoRA adapter."""

    def __init__(self, word_dim: int, spread: float) -> None:
        super().__init__()
        self.summary_tokens = nn.Parameter(torch.randn(2, word_dim) * spread)
        self.no_image = nn.Parameter(torch.randn(NO_IMAGE_TOKENS, word_dim) * spread)


class NativeBackbone(Backbone):
    """An image-text-to-text model with named towers.

    Args:
        model: of transformers' AutoModelForImageTextToText.
        image_processor: its image processor.
        tokenizer: its tokenizer.
        lora: the towers' LoRA settings; adapters go into the language model only.
        template: prompt parts.
        max_text_tokens: budget of an item's text.
        readout: 'at' the summary token, or 'before' it.
        activation_checkpointing: recompute layers in the backward pass instead of keeping them.

    Raises:
        InputError: a model that takes no image features, or whose image token is not known.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        image_processor: Callable[..., Mapping[str, torch.Tensor]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        lora: LoraSettings,
        template: PromptTemplate,
        max_text_tokens: int = 96,
        readout: str = "at",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.readout = readout
        inner = model.base_model
        self._accepted = set(inspect.signature(inner.forward).parameters)
        if not hasattr(inner, "get_image_features") or "mm_encoder_outputs" not in self._accepted:
            raise InputError(
                f"{type(model).__name__} does not take encoded images in this version of "
                "transformers; take another model, or a composed backbone."
            )
        image_token = getattr(model.config, "image_token_id", None)
        if image_token is None:
            raise InputError(f"{type(model).__name__} has no image_token_id in its configuration.")
        self._image_token = int(image_token)
        self._around = around_images(tokenizer)
        decoder = inner.get_decoder()
        prefix = next(n for n, m in model.named_modules() if m is decoder)
        words = model.get_input_embeddings().weight
        if words.dtype == torch.float16:
            self.loss_scale = FLOAT16_LOSS_SCALE
        if activation_checkpointing:
            decoder.gradient_checkpointing_enable({"use_reentrant": False})
        self.word_dim = int(words.shape[1])
        spread = word_spread(words)
        self.model = add_towers(model, lora, (f"{prefix}.",))
        self.towers = nn.ModuleDict({name: NativeTower(self.word_dim, spread) for name in TOWERS})
        self.prompts = PromptEncoder(tokenizer, template, NO_IMAGE_TOKENS, max_text_tokens)
        self._ids: torch.Tensor | None = None
        embedding = self.model.get_input_embeddings()
        embedding.register_forward_pre_hook(self._hide_markers)
        embedding.register_forward_hook(self._show_markers)
        self.use(TOWERS[0])

    # -- towers --------------------------------------------------------------------------------

    @property
    def widths(self) -> dict[str, int]:
        """Both summary states have the language model's width."""
        return {"visual": self.word_dim, "text": self.word_dim}

    def use(self, tower: str) -> None:
        """Make a tower the active one."""
        self.active = tower
        self.model.set_adapter(tower)

    @contextmanager
    def encoding(self, tower: str) -> Iterator[None]:
        """Within the context a tower does nothing but encode: its adapter is in the weights."""
        with super().encoding(tower), merged(self.model):
            yield

    def tower_parameters(self, tower: str) -> dict[str, nn.Parameter]:
        """Name → parameter of everything that belongs to a tower."""
        rows = {f"tower.{n}": p for n, p in self.towers[tower].named_parameters()}
        return adapter_parameters(self.model, tower) | rows

    def base_parameters(self) -> dict[str, nn.Parameter]:
        """Name → parameter of everything shared by the towers."""
        return {f"model.{n}": p for n, p in self.model.named_parameters() if "lora_" not in n}

    def decoder(self) -> nn.Module:
        """The language model inside, without its head."""
        found: nn.Module = self.model.get_base_model().base_model.get_decoder()
        return found

    def full_training_parameters(self) -> dict[str, nn.Parameter]:
        """Refused: the vision side's output is computed once per image.

        Raises:
            InputError: always.
        """
        raise InputError(
            "A native backbone is not trained in full: knowledge.train_base is for composed "
            "backbones with random weights."
        )

    # -- items ---------------------------------------------------------------------------------

    def inputs(self, items: Sequence[Item], device: torch.device) -> NativeInputs:
        """Items as prompts with images."""
        return NativeInputs(self, items, device)

    def image_tokens(self, count: int) -> list[int]:
        """Ids that stand for an image of `count` features."""
        before, after = self._around
        return [*before, *[self._image_token] * count, *after]

    @torch.no_grad()
    def image_features(self, image: Image.Image, device: torch.device) -> dict[str, torch.Tensor]:
        """Run the vision side on one image.

        Returns:
            'list' or 'tensor', as the model returns it: (tokens, H) features; 'deepstack.k' for
            what later layers add; and the sizes the model wants beside them.
        """
        options = {}
        if hasattr(self.image_processor, "do_image_splitting"):
            options["do_image_splitting"] = False  # one view an item, not one a tile
        read = self.image_processor(images=[image], return_tensors="pt", **options)
        inner = self.model.get_base_model().base_model
        wanted = set(inspect.signature(inner.get_image_features).parameters)
        found = inner.get_image_features(
            **{n: t.to(device) for n, t in read.items() if n in wanted}, return_dict=True
        )
        pooled = found.pooler_output
        if isinstance(pooled, torch.Tensor):
            kept = {"tensor": pooled.flatten(0, -2)}
        else:
            kept = {"list": torch.cat(list(pooled))}
        for layer, parts in enumerate(getattr(found, "deepstack_features", None) or ()):
            kept[f"deepstack.{layer}"] = torch.cat(list(parts))
        sizes = {n: t for n, t in read.items() if n in self._accepted and n not in _NOT_SIZES}
        return kept | sizes

    # -- forward -------------------------------------------------------------------------------

    def _hide_markers(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
        """Before the word table: markers are no rows of it."""
        self._ids = args[0]
        return (args[0].clamp(min=0), *args[1:])

    def _show_markers(
        self, module: nn.Module, args: tuple[torch.Tensor, ...], words: torch.Tensor
    ) -> torch.Tensor:
        """After the word table: the active tower's rows in the places of the markers."""
        ids, self._ids = self._ids, None
        tower = cast(NativeTower, self.towers[self.active])
        if ids is None or not (ids < 0).any():
            return words
        blank = ids == VISUAL_TOKEN
        rows = tower.no_image.repeat(int(blank.sum()) // NO_IMAGE_TOKENS, 1)
        words = words.masked_scatter(blank.unsqueeze(-1), rows.to(words.dtype))
        for marker, row in _SPECIAL.items():
            place = (ids == marker).unsqueeze(-1)
            words = torch.where(place, tower.summary_tokens[row].to(words.dtype), words)
        return words

    def _forward(self, batch: NativeBatch, **options: Any) -> Any:
        prompts = batch.prompts
        inner = self.model.get_base_model().base_model
        if getattr(inner, "rope_deltas", None) is not None:
            inner.rope_deltas = None  # left from another batch
        options |= {"input_ids": prompts.ids, "attention_mask": prompts.mask}
        kind = prompts.ids.eq(self._image_token).int()
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in self._accepted:
                options[name] = kind
        if batch.images:
            options["mm_encoder_outputs"] = {"image": as_output(batch.images, self.model.dtype)}
            for name in batch.images[0].keys() & self._accepted:
                options[name] = torch.cat([image[name] for image in batch.images])
        if not batch.images or not hasattr(inner, "get_rope_index"):
            options["position_ids"] = positions(prompts.mask)
        return inner(**options)

    def hidden(self, batch: NativeBatch) -> torch.Tensor:
        """Last-layer states (B, L, H) of the active tower."""
        states: torch.Tensor = self._forward(batch, use_cache=False).last_hidden_state
        return states

    def encode(self, batch: NativeBatch) -> Encoded:
        """Summary states, and the answer loss where the batch holds answers."""
        hidden = self.hidden(batch)
        head = self.model.get_output_embeddings()
        return encoded(batch.prompts, hidden, self.readout, head, self.scale_now)

    @torch.no_grad()
    def predict(
        self,
        inputs: Inputs,
        rows: torch.Tensor,
        *,
        visual_rows: torch.Tensor | None = None,
        max_new_tokens: int = 32,
    ) -> list[Prediction]:
        """Greedy generation from the prompt."""
        assert isinstance(inputs, NativeInputs)
        batch = inputs.batch(rows, left=True, visual_rows=visual_rows)
        inner = self.model.get_base_model().base_model
        output = self._forward(batch, use_cache=True)
        answers = GreedyAnswers(len(rows), self.tokenizer.eos_token_id)
        mask, shift = batch.prompts.mask, getattr(inner, "rope_deltas", None)
        while True:
            state = output.last_hidden_state[:, -1]
            tokens = self.model.get_output_embeddings()(state).argmax(-1)
            if not self.passes(answers.add(tokens)) or answers.longest >= max_new_tokens:
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            place = mask.sum(1, keepdim=True) - 1
            output = inner(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=place if shift is None else place + shift,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
        return [Prediction(*self.prompts.parse_answer(ids)) for ids in answers.ids]


class NativeInputs(Inputs):
    """Batches of items for a native backbone; an image's features are kept once computed."""

    def __init__(
        self, backbone: NativeBackbone, items: Sequence[Item], device: torch.device
    ) -> None:
        self.items = items
        self.device = device
        self.images = NativeImages(backbone, items, device)
        self.unreadable = self.images.unreadable
        self.has_image = self.images.has_image
        self._backbone = backbone
        self._after = [backbone.prompts.after_image(item) for item in items]
        self._answers = [backbone.prompts.answer(item) for item in items]
        self.has_answer = torch.tensor([bool(a) for a in self._answers])

    def prepare(self, *, train_base: bool) -> None:
        """Compute every image's features."""
        self.freeze()

    def read_images(self) -> None:
        """Compute every image's features."""
        self.freeze()

    def freeze(self) -> None:
        """Compute every image's features."""
        self.images.compute_all()

    def prompt_text(self, row: int) -> str:
        """The prompt with its answer lead."""
        ids = self._prompt(row, row, self._backbone.prompts.answer_lead)
        return self._backbone.prompts.shown(ids)

    def answer_lengths(self) -> torch.Tensor:
        """(N,) tokens of the gold answers, the end-of-sequence token included."""
        return torch.tensor([len(a) for a in self._answers])

    def lengths(self) -> torch.Tensor:
        """(N,) prompt lengths in tokens, images included."""
        return torch.tensor([len(self._prompt(r, r, [])) for r in range(len(self.items))])

    def batch(
        self,
        rows: torch.Tensor,
        *,
        answers: bool = False,
        left: bool = False,
        visual_rows: torch.Tensor | None = None,
    ) -> NativeBatch:
        """Prompts with features; see `Inputs.batch`, and `left` pads and asks for generation."""
        seen = (rows if visual_rows is None else visual_rows).tolist()
        self.images.compute(seen)
        images = [self.images.features(row) for row in seen]
        lead = self._backbone.prompts.answer_lead if left or answers else []
        prompts = [
            Prompt(
                self._prompt(row, shown, lead),
                self._answers[row] if answers else [],
                asks=bool(lead),
            )
            for row, shown in zip(rows.tolist(), seen, strict=True)
        ]
        return NativeBatch(
            collate(prompts, left=left).to(self.device),
            [{n: t.to(self.device) for n, t in image.items()} for image in images if image],
        )

    def _prompt(self, row: int, shown: int, lead: list[int]) -> list[int]:
        image = self.images.features(shown)
        if image is None:
            tokens = [VISUAL_TOKEN] * NO_IMAGE_TOKENS
        else:
            tokens = self._backbone.image_tokens(len(pooled_features(image)))
        return [*self._backbone.prompts.lead, *tokens, *self._after[row], *lead]
