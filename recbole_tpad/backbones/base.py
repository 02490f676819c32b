"""What every kind of backbone offers to the stages: item → summary states, answer loss, answers.

A backbone is one frozen base in memory with two *towers*, `knowledge` and `transition`: the small
sets of parameters that the stages train.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import nn

from recbole_tpad.backbones.vision_cache import VisionCache
from recbole_tpad.data import Item

TOWERS = ("knowledge", "transition")
FLOAT16_LOSS_SCALE = 1024.0  # of a float16 base (assumption); bfloat16 needs none

# Made by a kind's inputs and read by the same kind's `encode`; nobody else looks inside.
Batch: TypeAlias = Any


@dataclass(slots=True)
class Encoded:
    """A batch after the forward pass.

    Attributes:
        summaries: modality → (B, width) states that are exported.
        answer_tokens: terms of the answer loss: answer tokens, or items where heads answer.
        loss: computes the answer loss; None where the batch holds no answers.
    """

    summaries: dict[str, torch.Tensor]
    answer_tokens: int = 0
    loss: Callable[[], torch.Tensor] | None = None

    def answer_loss(self) -> torch.Tensor | None:
        """Scalar: mean cross-entropy over answer tokens (or the heads' loss), in nats; or None."""
        return None if self.loss is None else self.loss()


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a tower says about an item; `category` is None where it says nothing on it."""

    keywords: list[str]
    category: str | None


class Inputs(ABC):
    """Items as one kind of backbone reads them; rows refer to the order of `items`.

    Attributes:
        items: all items.
        device: where batches go.
        has_image, has_answer: (N,) bool; an answer is keywords or a category.
        unreadable: item id → why its image cannot be shown; it counts as absent. Filled as images
            are read, at the latest by `freeze`.
    """

    items: Sequence[Item]
    device: torch.device
    has_image: torch.Tensor
    has_answer: torch.Tensor
    unreadable: dict[str, str]

    @abstractmethod
    def batch(
        self,
        rows: torch.Tensor,
        *,
        answers: bool = False,
        visual_rows: torch.Tensor | None = None,
    ) -> Batch:
        """What `Backbone.encode` reads of some items.

        Args:
            rows: (B,) int64 item rows.
            answers: with gold answers (training), or only what the states need.
            visual_rows: take the images of these items instead (the shuffled-image control).
        """

    @abstractmethod
    def lengths(self) -> torch.Tensor:
        """(N,) int64: what an item costs in tokens, without its answer."""

    def answer_lengths(self) -> torch.Tensor:
        """(N,) int64: terms an item adds to the answer loss; see `Encoded.answer_tokens`."""
        return self.has_answer.long()

    def prompt_text(self, row: int) -> str:
        """An item as it is read, as text with places for what is no text; for people."""
        item = self.items[row]
        return " ".join(part for part in (item.title, item.brand) if part)

    def prepare(self, *, train_base: bool) -> None:  # noqa: B027 (most kinds need nothing)
        """Get ready for stage 1; with `train_base` nothing computed by the base may be kept."""

    def read_images(self) -> None:  # noqa: B027
        """Read every image and run the frozen vision side on it, unless that is kept: all of a
        batch's work that needs no tower."""

    def freeze(self) -> None:  # noqa: B027
        """The base does not change any more: what only it computes may be kept from now on."""


class Backbone(nn.Module, ABC):
    """One base, two towers.

    Attributes:
        active: the tower in use.
        loss_scale: gradients are this much larger inside the base than outside of it; more than
            1 keeps those of a float16 base from vanishing.
        vision_cache: features of the frozen vision encoder on disk, if it has a place there.
        divided: its layers are divided among processes (`backbones.divided`).
    """

    active: str = TOWERS[0]
    loss_scale: float = 1.0
    vision_cache: VisionCache | None = None
    divided: bool = False

    @property
    @abstractmethod
    def widths(self) -> dict[str, int]:
        """Modality → width of its summary states."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the summary states: ("visual", "text"), or ("text",)."""
        return tuple(self.widths)

    @abstractmethod
    def inputs(self, items: Sequence[Item], device: torch.device) -> Inputs:
        """Items as this kind reads them."""

    @abstractmethod
    def encode(self, batch: Batch) -> Encoded:
        """Run the active tower on a batch made by this kind's inputs."""

    @abstractmethod
    def predict(
        self,
        inputs: Inputs,
        rows: torch.Tensor,
        *,
        visual_rows: torch.Tensor | None = None,
        max_new_tokens: int = 32,
    ) -> list[Prediction]:
        """Answer for some items with the active tower, greedily.

        Args:
            inputs: made by this backbone.
            rows: (B,) int64 item rows, one batch.
            visual_rows: show these items' images instead.
            max_new_tokens: of a generated answer.
        """

    @abstractmethod
    def use(self, tower: str) -> None:
        """Make a tower the active one."""

    @abstractmethod
    def tower_parameters(self, tower: str) -> dict[str, nn.Parameter]:
        """Name → parameter of everything that belongs to a tower; equal names for all towers."""

    def trained_parameters(self, tower: str) -> dict[str, nn.Parameter]:
        """Of the tower's parameters, those that its stages train: by default all."""
        return self.tower_parameters(tower)

    def aligned_parameters(self) -> dict[str, nn.Parameter]:
        """Of the knowledge tower's parameters, those that stage 2b trains: by default stage 1's."""
        return self.trained_parameters(TOWERS[0])

    @abstractmethod
    def base_parameters(self) -> dict[str, nn.Parameter]:
        """Name → parameter of everything shared by the towers."""

    def full_training_parameters(self) -> dict[str, nn.Parameter]:
        """What stage 1 trains of a base with random weights: all but the knowledge tower's LoRA."""
        tower = self.trained_parameters(TOWERS[0])
        own = {n: p for n, p in tower.items() if not n.startswith("lora.")}
        return own | self.base_parameters()

    def fitted_buffers(self) -> dict[str, torch.Tensor]:
        """Name → buffer that `Inputs.prepare` fits to the items; kept with stage 1's weights."""
        return {}

    @torch.no_grad()
    def copy_tower(self, source: str, target: str) -> None:
        """Start one tower from another's weights."""
        values = self.tower_parameters(source)
        for name, parameter in self.tower_parameters(target).items():
            parameter.copy_(values[name])

    @contextmanager
    def training_only(self, parameters: dict[str, nn.Parameter]) -> Iterator[None]:
        """Within the context exactly these parameters take gradients; afterwards none do."""
        chosen = {id(p) for p in parameters.values()}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
        self.train()
        hooks = []
        if self.loss_scale != 1:
            undo = 1 / self.loss_scale
            hooks = [p.register_hook(lambda g: g * undo) for p in parameters.values()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.eval()
            for parameter in self.parameters():
                parameter.requires_grad_(False)

    @contextmanager
    def encoding(self, tower: str) -> Iterator[None]:
        """Within the context a tower does nothing but encode, without gradients."""
        self.use(tower)
        self.eval()
        with torch.no_grad():
            yield

    def decoder(self) -> nn.Module | None:
        """The frozen stack of layers that processes may divide; None where there is none."""
        return None

    def passes(self, own: int) -> int:
        """Passes that this process has to make where `own` have something to compute.

        Where processes divide the base's layers, the most that any of them needs, since each pass
        needs the weights of all; to be asked by all of them at once. Elsewhere `own`.
        """
        if not self.divided:
            return own
        most = torch.tensor(int(own), device=next(self.parameters()).device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    @property
    def scale_now(self) -> float:
        """`loss_scale` while training, else 1."""
        return self.loss_scale if self.training else 1.0
