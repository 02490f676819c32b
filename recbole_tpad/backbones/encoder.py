"""The encoder backbone: a sentence encoder, optionally an image encoder; heads answer.

Its lower layers are frozen and their activations kept; each tower has its own copy of the top
layers and a residual head that starts as the identity, so an untrained tower gives exactly the
frozen encoder's vectors. It needs no language model and trains on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recbole_tpad.backbones.answer_heads import AnswerHeads, LabelTable
from recbole_tpad.backbones.base import TOWERS, Backbone, Encoded, Inputs, Prediction
from recbole_tpad.backbones.encoder_inputs import EncoderBatch, EncoderInputs
from recbole_tpad.backbones.prompts import PromptTemplate
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.settings import at_least

TRAINED = ("layers", "head", "both")


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """The section `backbone.encoder` of a generator's YAML.

    Attributes:
        top_layers: layers that each tower has for itself.
        pooling: 'mean' over tokens (MiniLM, E5) or the first token's state, 'cls' (BGE).
        knowledge, transition: what trains in this tower: its 'layers', its residual 'head', 'both'.
        alignment: what of the knowledge tower stage 2b trains; by default the same as stage 1.
        head_width: hidden width of the residual heads.
        dropout: in the layers that train.
        bfloat16: compute the towers' layers in bfloat16 (weights stay in `dtype`): about twice as
            fast where the processor has instructions for it.
    """

    top_layers: int = 1
    pooling: str = "mean"
    knowledge: str = "layers"
    transition: str = "head"
    alignment: str | None = None
    head_width: int = 512
    dropout: float = 0.1
    bfloat16: bool = False

    def __post_init__(self) -> None:
        at_least("backbone.encoder", 1, top_layers=self.top_layers, head_width=self.head_width)
        if not 0 <= self.dropout < 1:
            raise InputError(f"backbone.encoder: dropout is a share below 1, not {self.dropout}.")
        for key, known in (
            ("pooling", ("mean", "cls")),
            ("knowledge", TRAINED),
            ("transition", TRAINED),
            ("alignment", (*TRAINED, None)),
        ):
            value = getattr(self, key)
            if value not in known:
                names = [name for name in known if name]
                raise InputError(
                    f"backbone.encoder: unknown {key} '{value}'.{nearest(str(value), names)} "
                    f"Known: {', '.join(names)}."
                )


class ResidualHead(nn.Module):
    """x → Wx + MLP(x), with W = I and the MLP's last layer 0: the identity until trained.

    Args:
        width: of x.
        hidden: of the MLP.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        last = cast(nn.Linear, self.mlp[2])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, width) to (B, width)."""
        mapped: torch.Tensor = self.linear(x) + self.mlp(x)
        return mapped


class EncoderTower(nn.Module):
    """What a tower of an encoder backbone has for itself.

    Args:
        top: the text encoder's last layers; copied.
        widths: modality → width.
        labels: classes of the answers.
        head_width: of the residual heads.
    """

    def __init__(
        self, top: nn.Module, widths: dict[str, int], labels: LabelTable, head_width: int
    ) -> None:
        super().__init__()
        self.layers = copy.deepcopy(top)
        self.heads = nn.ModuleDict({m: ResidualHead(w, head_width) for m, w in widths.items()})
        self.answers = AnswerHeads(sum(widths.values()), labels)
        if "visual" in widths:
            self.no_image = nn.Parameter(torch.zeros(widths["visual"]))


class EncoderBackbone(Backbone):
    """A BERT-class text encoder and, optionally, a CLIP-class image encoder.

    Args:
        text: the text encoder; its last layers go into the towers.
        tokenizer: its tokenizer.
        items: the catalogue, for the answers' classes.
        settings: see `EncoderSettings`.
        template: its `item_text` is what is read of an item.
        max_text_tokens: longer texts are cut.
        image: the image encoder's vision tower.
        image_processor: PIL images → pixel values.

    Raises:
        InputError: the text encoder is of another build, or has no layer below the top ones.
    """

    def __init__(
        self,
        text: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        items: Sequence[Item],
        *,
        settings: EncoderSettings,
        template: PromptTemplate,
        max_text_tokens: int = 96,
        image: PreTrainedModel | None = None,
        image_processor: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        stack = getattr(getattr(text, "encoder", None), "layer", None)
        if not isinstance(stack, nn.ModuleList) or not hasattr(text, "embeddings"):
            raise InputError(
                f"{type(text).__name__} is not a BERT-class encoder (embeddings, encoder.layer)."
            )
        if settings.top_layers >= len(stack):
            raise InputError(
                f"backbone.encoder: top_layers is {settings.top_layers}, and the text encoder has "
                f"{len(stack)} layers; at least one stays below."
            )
        self.settings = settings
        self.template = template
        self.tokenizer = tokenizer
        self.max_text_tokens = max_text_tokens
        self.labels = LabelTable(items)
        self._widths = {"text": int(text.config.hidden_size)}
        if image is not None:
            self._widths = {"visual": int(image.config.hidden_size), **self._widths}
        top = copy.deepcopy(text.encoder)
        top.layer = stack[-settings.top_layers :]
        for module in top.modules():
            if isinstance(module, nn.Dropout):
                module.p = settings.dropout
        text.encoder.layer = stack[: -settings.top_layers]
        text.pooler = None
        self.text = text
        self.image = image
        self.image_processor = image_processor
        self.towers = nn.ModuleDict(
            {
                name: EncoderTower(top, self._widths, self.labels, settings.head_width)
                for name in TOWERS
            }
        )
        self.requires_grad_(False)  # until a stage trains something
        self.use("knowledge")

    @property
    def widths(self) -> dict[str, int]:
        """Modality → width of its states."""
        return dict(self._widths)

    @property
    def pad_id(self) -> int:
        """Id that fills up short texts."""
        return int(self.tokenizer.pad_token_id or 0)

    def inputs(self, items: Sequence[Item], device: torch.device) -> EncoderInputs:
        """Texts tokenised once, lower activations and image features kept once they are fixed."""
        return EncoderInputs(self, items, device)

    # -- towers --------------------------------------------------------------------------------

    def use(self, tower: str) -> None:
        """Make a tower the active one."""
        self.active = tower

    def tower_parameters(self, tower: str) -> dict[str, nn.Parameter]:
        """Name → parameter of everything that belongs to a tower."""
        return {f"tower.{n}": p for n, p in self.towers[tower].named_parameters()}

    def trained_parameters(self, tower: str) -> dict[str, nn.Parameter]:
        """Of the tower's parameters, those its settings let train; heads of answers with K only."""
        chosen = self.settings.knowledge if tower == "knowledge" else self.settings.transition
        return self._parts(tower, chosen)

    def aligned_parameters(self) -> dict[str, nn.Parameter]:
        """Of the knowledge tower's parameters, those its settings let train in stage 2b."""
        return self._parts("knowledge", self.settings.alignment or self.settings.knowledge)

    def _parts(self, tower: str, chosen: str) -> dict[str, nn.Parameter]:
        parts = ["tower.heads.visual.", "tower.no_image"]
        parts += ["tower.layers."] if chosen != "head" else []
        parts += ["tower.heads.text."] if chosen != "layers" else []
        parts += ["tower.answers."] if tower == "knowledge" else []
        named = self.tower_parameters(tower)
        return {n: p for n, p in named.items() if n.startswith(tuple(parts))}

    def base_parameters(self) -> dict[str, nn.Parameter]:
        """Name → parameter of the lower layers and the image encoder."""
        base = {f"text.{n}": p for n, p in self.text.named_parameters()}
        if self.image is not None:
            base |= {f"image.{n}": p for n, p in self.image.named_parameters()}
        return base

    def train(self, mode: bool = True) -> EncoderBackbone:
        """Training mode for what takes gradients; frozen parts keep their dropout off."""
        super().train(mode)
        if mode:
            for module in (self.text, self.image, *map(self.tower_layers, TOWERS)):
                if module is not None and not any(p.requires_grad for p in module.parameters()):
                    module.eval()
        return self

    def tower_layers(self, tower: str) -> nn.Module:
        """The text layers that a tower has for itself."""
        return cast(EncoderTower, self.towers[tower]).layers

    # -- forward -------------------------------------------------------------------------------

    def lower(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """States (B, L, width) below the top layers, for token ids (B, L) and their mask."""
        states: torch.Tensor = self.text(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    def pooled(self, lower: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The active tower's top layers, then pooling: (B, width)."""
        tower = cast(EncoderTower, self.towers[self.active])
        visible = mask[:, None, None, :].to(lower.dtype)
        additive = (1 - visible) * torch.finfo(lower.dtype).min
        with torch.autocast(lower.device.type, torch.bfloat16, enabled=self.settings.bfloat16):
            states = tower.layers(lower, attention_mask=additive).last_hidden_state
        states = states.to(lower.dtype)
        if self.settings.pooling == "cls":
            first: torch.Tensor = states[:, 0]
            return first
        weights = mask[:, :, None].to(states.dtype)
        mean: torch.Tensor = (states * weights).sum(1) / weights.sum(1)
        return mean

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """The image encoder's pooled output (B, width)."""
        assert self.image is not None  # asked only where there is one
        features: torch.Tensor = self.image(pixel_values=pixels).pooler_output
        return features

    def encode(self, batch: EncoderBatch) -> Encoded:
        """States of the active tower, and the heads' loss where the batch has answers."""
        tower = cast(EncoderTower, self.towers[self.active])
        summaries = {}
        if self.image is not None:
            visual, has_image = batch.visual()
            seen = torch.where(has_image[:, None], visual, tower.no_image)
            summaries["visual"] = tower.heads["visual"](seen)
        summaries["text"] = tower.heads["text"](batch.text())
        if not batch.answers:
            return Encoded(summaries)
        joined = torch.cat(list(summaries.values()), dim=1)

        def loss() -> torch.Tensor:
            return tower.answers.loss(joined, batch.rows, self.labels)

        answered = int(batch.inputs.has_answer[batch.rows].sum())
        return Encoded(summaries, answered, loss if answered else None)

    def predict(
        self,
        inputs: Inputs,
        rows: torch.Tensor,
        *,
        visual_rows: torch.Tensor | None = None,
        max_new_tokens: int = 32,
    ) -> list[Prediction]:
        """The heads' answers; `max_new_tokens` does not apply to them."""
        tower = cast(EncoderTower, self.towers[self.active])
        with torch.no_grad():
            states = self.encode(inputs.batch(rows, visual_rows=visual_rows)).summaries
        return tower.answers.predict(torch.cat(list(states.values()), dim=1), self.labels)
