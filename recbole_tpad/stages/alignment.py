"""Stage 2b, transitional-pattern alignment (TPA): T's knowledge of transitions goes into K.

L = L_gen + γ1·L_MIU + γ2·L_MIL per modality (TPAD §2). L_MIU is vCLUB between w^L = D_L(h_K) and
z = D_T(h_T), minimised; w^L also predicts category and keywords, so that it cannot simply be
constant (assumption). L_MIL is minus a lower bound on I(w^H; z) with w^H = D_H(h_K), linear D_H
and critic cosine/τ (assumption), or the soft-target divergence (beyond the paper).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from recbole_tpad.backbones.base import Backbone, Inputs
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.objectives import (
    DiagonalGaussian,
    info_nce_bound,
    soft_target_divergence,
    vclub,
)
from recbole_tpad.settings import at_least
from recbole_tpad.stages.loop import LoopSettings, Metrics, Trainable, TrainingLoop, epoch_batches

MI_LOWER = ("infonce", "soft")


@dataclass(frozen=True, slots=True)
class AlignmentSettings:
    """Stage 2b.

    Attributes:
        loop: optimisation.
        batch_size: items a step.
        gamma_upper: γ1, weight of L_MIU.
        gamma_lower: γ2, weight of L_MIL.
        mi_lower: 'infonce' (the paper's kind of bound) or 'soft' (similarity distillation).
        generation_weight: weight of L_gen, which stays on.
        projection: width p of w^H, w^L and z.
        likelihood_steps: steps on q per outer step.
        q_learning_rate: of q's own Adam.
        teacher_scale: T's similarities are cosine · teacher_scale in the soft targets.
    """

    loop: LoopSettings
    batch_size: int = 64
    gamma_upper: float = 0.1
    gamma_lower: float = 1.0
    mi_lower: str = "infonce"
    generation_weight: float = 1.0
    projection: int = 256
    likelihood_steps: int = 5
    q_learning_rate: float = 1e-3
    teacher_scale: float = 10.0

    def __post_init__(self) -> None:
        if self.mi_lower not in MI_LOWER:
            raise InputError(
                f"Unknown mi_lower '{self.mi_lower}'.{nearest(self.mi_lower, MI_LOWER)} "
                f"Known: {', '.join(MI_LOWER)}."
            )
        at_least("alignment", 1, batch_size=self.batch_size, projection=self.projection)
        at_least(
            "alignment",
            0,
            gamma_upper=self.gamma_upper,
            gamma_lower=self.gamma_lower,
            generation_weight=self.generation_weight,
            likelihood_steps=self.likelihood_steps,
        )


class LabelTable:
    """Categories and frequent keywords as targets for w^L.

    Args:
        items: all items.
        minimum: keywords carried by fewer items are left out.
    """

    def __init__(self, items: Sequence[Item], minimum: int = 2) -> None:
        categories = sorted({i.category for i in items if i.category})
        counts = Counter(k for i in items for k in set(i.keywords))
        keywords = sorted(k for k, n in counts.items() if n >= minimum)
        category_row = {c: n for n, c in enumerate(categories)}
        keyword_row = {k: n for n, k in enumerate(keywords)}
        self.categories = len(categories)
        self.keywords = len(keywords)
        self.category = torch.tensor([category_row.get(i.category, -1) for i in items])
        self.keyword = torch.zeros(len(items), len(keywords))
        for row, item in enumerate(items):
            for keyword in item.keywords:
                if keyword in keyword_row:
                    self.keyword[row, keyword_row[keyword]] = 1


class AlignmentHeads(nn.Module):
    """The projectors of one modality, with the job of w^L; none of it is exported."""

    def __init__(self, width: int, projection: int, labels: LabelTable) -> None:
        super().__init__()
        self.high = nn.Linear(width, projection)  # D_H
        self.low = nn.Sequential(  # D_L
            nn.Linear(width, projection), nn.GELU(), nn.Linear(projection, projection)
        )
        self.teacher = nn.Linear(width, projection)  # D_T
        self.category = nn.Linear(projection, max(1, labels.categories))
        self.keyword = nn.Linear(projection, max(1, labels.keywords))
        self.log_temperature = nn.Parameter(torch.tensor(-2.3))

    @property
    def temperature(self) -> torch.Tensor:
        """τ of the cosine critic, kept within [.01, 1]."""
        return self.log_temperature.exp().clamp(0.01, 1.0)

    def label_loss(
        self, w_low: torch.Tensor, rows: torch.Tensor, labels: LabelTable
    ) -> torch.Tensor:
        """Cross-entropy of category plus mean binary cross-entropy of keywords, from w^L."""
        loss = w_low.new_zeros(())
        category = labels.category[rows].to(w_low.device)
        if labels.categories > 1 and (category >= 0).any():
            loss = loss + F.cross_entropy(self.category(w_low), category, ignore_index=-1)
        if labels.keywords:
            target = labels.keyword[rows].to(w_low.device)
            loss = loss + F.binary_cross_entropy_with_logits(self.keyword(w_low), target)
        return loss


def train_alignment(
    backbone: Backbone,
    inputs: Inputs,
    teacher_states: dict[str, torch.Tensor],
    settings: AlignmentSettings,
    folder: Path,
    seed: int,
) -> list[Metrics]:
    """Train the knowledge tower K(0) → K(1); the base and T stay as they are.

    Args:
        backbone: its knowledge tower is changed in place.
        inputs: items with cached vision features.
        teacher_states: modality → (N, H) states of T for all items, encoded once.
        settings: stage settings.
        folder: for checkpoints.
        seed: of heads, batches and dropout.

    Returns:
        History with loss_generation and, summed over modalities, mi_upper (vCLUB), mi_lower (the
        InfoNCE bound, also measured when 'soft' is trained), divergence (soft only) and
        loss_labels; in nats.
    """
    torch.manual_seed(seed)
    labels = LabelTable(inputs.items)
    device = inputs.device
    teacher = {n: standardise(s).to(device) for n, s in teacher_states.items()}
    widths, p = backbone.widths, settings.projection
    heads = {n: AlignmentHeads(widths[n], p, labels).to(device) for n in teacher}
    q = {n: DiagonalGaussian(p, p).to(device) for n in teacher}
    # T's states may share a large common direction; its similarity is read after standardising.
    similarity = {n: F.normalize(s, dim=-1) for n, s in teacher.items()}

    backbone.use("knowledge")
    tower = backbone.tower_parameters("knowledge")
    trainable = Trainable(
        tower | _named_parameters("heads", heads),
        _named_parameters("q", q),
        settings.q_learning_rate,
    )
    loop = TrainingLoop("alignment", trainable, settings.loop, folder)

    def fit_q(low: dict[str, torch.Tensor], z: dict[str, torch.Tensor]) -> None:
        for _ in range(settings.likelihood_steps):
            total = torch.stack([-q[n].log_likelihood(low[n].detach(), z[n]) for n in low]).sum()
            loop.auxiliary.zero_grad()
            total.backward()
            loop.auxiliary.step()

    def compute(step: int) -> tuple[torch.Tensor, Metrics]:
        rows = epoch_batches(len(inputs.items), settings.batch_size, step, seed)
        encoded = backbone.encode(inputs.batch(rows, answers=True))
        states = encoded.summaries
        low = {n: heads[n].low(h) for n, h in states.items()}
        z = {n: heads[n].teacher(teacher[n][rows]).detach() for n in states}
        fit_q(low, z)

        upper, bound, divergence, label_loss = (torch.zeros((), device=device) for _ in range(4))
        index = rows.to(device)
        for name, h in states.items():
            head = heads[name]
            mean, log_variance = q[name](z[name])
            upper = upper + vclub(mean, log_variance, low[name])
            label_loss = label_loss + head.label_loss(low[name], rows, labels)
            table, high = head.teacher(teacher[name]), head.high(h)
            bound = bound + info_nce_bound(high, table, index, head.temperature)
            if settings.mi_lower == "soft":
                target = similarity[name][index] @ similarity[name].T * settings.teacher_scale
                divergence = divergence + soft_target_divergence(
                    high, table, index, head.temperature, target
                )
        metrics = {
            "mi_upper": upper.item(),
            "mi_lower": bound.item(),
            "loss_labels": label_loss.item(),
        }
        lower = divergence if settings.mi_lower == "soft" else -bound
        if settings.mi_lower == "soft":
            metrics["divergence"] = divergence.item()
        loss = settings.gamma_upper * upper + settings.gamma_lower * lower
        if settings.gamma_upper > 0:
            loss = loss + label_loss
        generation = encoded.answer_loss()
        if generation is not None:
            metrics["loss_generation"] = generation.item()
            loss = loss + settings.generation_weight * generation
        return loss, metrics

    with backbone.training_only(tower):
        return loop.run(compute)


def _named_parameters(prefix: str, modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {
        f"{prefix}.{modality}.{name}": parameter
        for modality, module in modules.items()
        for name, parameter in module.named_parameters()
    }


def standardise(states: torch.Tensor) -> torch.Tensor:
    """Centre states (N, H) over items and give them unit mean square, float32."""
    centred = states.float() - states.float().mean(0)
    return centred / centred.square().mean().sqrt().clamp(min=1e-6)
