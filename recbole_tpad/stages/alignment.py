"""Stage 2b, transitional-pattern alignment (TPA): T's knowledge of transitions goes into K.

L = L_gen + γ1·L_MIU + γ2·L_MIL per modality (TPAD §2). L_MIU is vCLUB between w^L = D_L(h_K) and
z = D_T(h_T), minimised; w^L also predicts category and keywords, so that it cannot simply be
constant (assumption). L_MIL is minus a lower bound on I(w^H; z) with w^H = D_H(h_K): InfoNCE or
MINE with critic cosine/τ (assumption) or an MLP, or the soft-target divergence (beyond the paper).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from recbole_tpad.backbones.answer_heads import LabelTable
from recbole_tpad.backbones.base import Backbone, Inputs
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.objectives import (
    CRITICS,
    DiagonalGaussian,
    vclub,
)
from recbole_tpad.settings import at_least
from recbole_tpad.stages.alignment_heads import AlignmentHeads
from recbole_tpad.stages.inputs import name_items
from recbole_tpad.stages.loop import LoopSettings, Metrics, Trainable, TrainingLoop, epoch_batches
from recbole_tpad.stages.lower_bound_term import LowerBoundTerm
from recbole_tpad.stages.signatures import VERDICTS, early_steps, judge_upper_bound
from recbole_tpad.stages.transition import record_balance

CHOICES = {
    "mi_lower": ("infonce", "mine", "soft"),
    "critic": CRITICS,
    "marginals": ("table", "batch"),
    "projector": ("linear", "identity"),
}

_JUDGED = 512  # items, where L_MIU has to be judged


@dataclass(frozen=True, slots=True)
class AlignmentSettings:
    """Stage 2b.

    Attributes:
        loop: optimisation.
        batch_size: items a step.
        gamma_upper: γ1, weight of L_MIU.
        gamma_lower: γ2, weight of L_MIL.
        gamma_ramp: share of the steps over which γ1 and γ2 rise linearly from 0.
        mi_lower: 'infonce' or 'mine' (the paper's kind of bound), or 'soft' (similarity
            distillation).
        critic: of infonce and mine: 'cosine' (over τ, learned) or 'mlp'.
        marginals: z of the lower bound from T's 'table' of all items, or from the 'batch'.
        table_sample: items of the table a step, the batch's own among them; 0: all.
        projector: D_H and D_T are 'linear', or absent: 'identity', for towers that share a space.
        relational_weight: of the KL between T's and K's similarities within a batch ('soft').
        cosine_weight: of 1 − cos(w^H, z) of each item ('soft').
        generation_weight: weight of L_gen, which stays on.
        label_weight: of the loss of w^L's labels, on where γ1 > 0.
        projection: width p of w^H, w^L and z.
        likelihood_steps: steps on q per outer step.
        q_learning_rate: of q's own Adam.
        train_tower: False leaves K as it is and trains only what stands beside it: the control that
            shows how far a bound can be met without alignment.
        teacher_scale: T's similarities are cosine · teacher_scale in the soft targets.
    """

    loop: LoopSettings
    batch_size: int = 64
    gamma_upper: float = 0.1
    gamma_lower: float = 1.0
    gamma_ramp: float = 0.0
    mi_lower: str = "infonce"
    critic: str = "cosine"
    marginals: str = "table"
    table_sample: int = 0
    projector: str = "linear"
    relational_weight: float = 0.0
    cosine_weight: float = 0.0
    generation_weight: float = 1.0
    label_weight: float = 1.0
    projection: int = 256
    likelihood_steps: int = 5
    q_learning_rate: float = 1e-3
    train_tower: bool = True
    teacher_scale: float = 10.0

    def __post_init__(self) -> None:
        for key, known in CHOICES.items():
            value = str(getattr(self, key))
            if value not in known:
                raise InputError(
                    f"Unknown {key} '{value}'.{nearest(value, known)} Known: {', '.join(known)}."
                )
        at_least("alignment", 1, batch_size=self.batch_size, projection=self.projection)
        for key in (
            "gamma_upper",
            "gamma_lower",
            "gamma_ramp",
            "generation_weight",
            "label_weight",
            "relational_weight",
            "cosine_weight",
            "likelihood_steps",
            "table_sample",
        ):
            at_least("alignment", 0, **{key: getattr(self, key)})
        if self.gamma_ramp > 1:
            raise InputError(f"alignment: gamma_ramp is a share, not {self.gamma_ramp}.")


@dataclass(frozen=True, slots=True)
class AlignmentResult:
    """What stage 2b leaves behind besides the changed knowledge tower.

    Attributes:
        history: one mapping a step.
        heads: modality → its projectors, for the probes.
    """

    history: list[Metrics]
    heads: dict[str, AlignmentHeads]


def train_alignment(
    backbone: Backbone,
    inputs: Inputs,
    teacher_states: dict[str, torch.Tensor],
    settings: AlignmentSettings,
    folder: Path,
    seed: int,
) -> AlignmentResult:
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
        bound; with 'soft' InfoNCE's), divergence (soft only), loss_labels, and q_gain: how much
        likelier q makes the batch's w^L before it is fitted to it than their own mean and variance
        do; in nats.

    Raises:
        InputError: T's states are NaN or infinite; the loss is (the items are named); γ2 = 0 and
            L_MIU vanishes.
    """
    for name, states in teacher_states.items():
        if not torch.isfinite(states).all():
            bad = inputs.items[int((~torch.isfinite(states)).any(1).int().argmax())].item_id
            raise InputError(
                f"The transition tower's '{name}' states are not finite, first for item {bad}."
            )
    torch.manual_seed(seed)
    device = inputs.device
    # Towers that share a space are compared in it; otherwise T's common direction is taken out.
    plain = settings.projector == "identity"
    teacher = {n: (s.float() if plain else standardise(s)) for n, s in teacher_states.items()}
    aligned = _Alignment(
        {n: s.to(device) for n, s in teacher.items()},
        backbone.widths,
        LabelTable(inputs.items),
        settings,
    )
    backbone.use("knowledge")
    tower = backbone.aligned_parameters() if settings.train_tower else {}
    trainable = Trainable(
        tower | _named_parameters("heads", aligned.heads),
        _named_parameters("q", aligned.q),
        settings.q_learning_rate,
        buffers={f"{n}.{k}": b for n, h in aligned.heads.items() for k, b in h.named_buffers()},
    )
    loop = TrainingLoop("alignment", trainable, settings.loop, folder)
    first, last = early_steps(settings.loop.steps)

    @torch.no_grad()
    def low_sample() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """w^L and T's states of up to 512 items, without dropout: no random number is drawn."""
        backbone.eval()
        rows = torch.arange(0, len(inputs.items), -(-len(inputs.items) // _JUDGED))
        states = backbone.encode(inputs.batch(rows)).summaries
        backbone.train()
        low = {n: aligned.heads[n].low(h).cpu() for n, h in states.items()}
        return low, {n: aligned.teacher[n][rows].cpu() for n in low}

    def judge() -> float:
        verdict = judge_upper_bound(loop.history[first:], low_sample)
        if verdict and settings.gamma_lower == 0:
            raise InputError(
                f"alignment: {VERDICTS[verdict]} gamma_lower is 0, so nothing is aligned. Give "
                "gamma_lower a value."
            )
        return verdict

    def rows_of(step: int) -> torch.Tensor:
        return epoch_batches(len(inputs.items), settings.batch_size, step, seed)

    def compute(step: int) -> tuple[torch.Tensor, Metrics]:
        rows = rows_of(step)
        encoded = backbone.encode(inputs.batch(rows, answers=True))
        table_rows = marginal_rows(rows, len(inputs.items), settings, seed, step)
        terms, metrics = aligned.terms(encoded.summaries, rows, table_rows, loop.auxiliary)
        if settings.gamma_upper > 0 and step == last > first:
            metrics["upper_vanished"] = judge()
        ramp = ramped(step, settings)
        loss = ramp * settings.gamma_upper * terms.upper + ramp * settings.gamma_lower * terms.lower
        if settings.gamma_upper > 0:
            loss = loss + settings.label_weight * terms.labels
        generation = encoded.answer_loss()
        if generation is not None:
            metrics["loss_generation"] = generation.item()
            loss = loss + settings.generation_weight * generation
        record_balance(encoded.summaries, metrics)
        return loss, metrics

    with backbone.training_only(tower):
        history = loop.run(compute, lambda step: name_items(backbone, inputs, rows_of(step)))
    return AlignmentResult(history, {n: h.eval() for n, h in aligned.heads.items()})


class _Terms(NamedTuple):
    """Summed over modalities, in nats: L_MIU, L_MIL, and the loss of w^L's labels."""

    upper: torch.Tensor
    lower: torch.Tensor
    labels: torch.Tensor


class _Alignment:
    """The terms beside L_gen, and what they train.

    Args:
        teacher: modality → (N, width) T's states, on the device.
        widths: modality → width of K's states.
        labels: what w^L has to predict.
        settings: of the stage.
    """

    def __init__(
        self,
        teacher: dict[str, torch.Tensor],
        widths: dict[str, int],
        labels: LabelTable,
        settings: AlignmentSettings,
    ) -> None:
        self.teacher = teacher
        self.labels = labels
        self.settings = settings
        identity, p = settings.projector == "identity", settings.projection
        device = next(iter(teacher.values())).device
        self.heads = {
            n: AlignmentHeads(widths[n], p, labels, identity=identity, critic=settings.critic).to(
                device
            )
            for n in teacher
        }
        self.q = {n: DiagonalGaussian(h.z_width, p).to(device) for n, h in self.heads.items()}
        self._lower = {n: LowerBoundTerm(states, settings) for n, states in teacher.items()}

    def terms(
        self,
        states: dict[str, torch.Tensor],
        rows: torch.Tensor,
        table_rows: torch.Tensor,
        optimizer: torch.optim.Optimizer,
    ) -> tuple[_Terms, Metrics]:
        """Fit q to the batch, then compute the terms and what is recorded of them.

        Args:
            states: modality → (B, width) K's states.
            rows, table_rows: as in `LowerBoundTerm`, on the CPU.
            optimizer: q's own.
        """
        low = {n: self.heads[n].low(h) for n, h in states.items()}
        z = {n: self.heads[n].teacher(self.teacher[n][rows]).detach() for n in states}
        with torch.no_grad():
            q_gain = sum(float(q_over_marginal(self.q[n], low[n], z[n])) for n in low)
        for _ in range(self.settings.likelihood_steps):
            fits = [-self.q[n].log_likelihood(low[n].detach(), z[n]) for n in low]
            fit = torch.stack(fits).sum()
            if not torch.isfinite(fit):
                break  # nor is the loss, which names the step's items
            optimizer.zero_grad()
            fit.backward()
            optimizer.step()
        device = next(iter(states.values())).device
        zero = torch.zeros((), device=device)
        total, bound, divergence = _Terms(zero, zero, zero), zero, zero
        for name, h in states.items():
            head = self.heads[name]
            mean, log_variance = self.q[name](z[name])
            upper = vclub(mean, log_variance, low[name])
            lower, own_bound, own_divergence = self._lower[name](
                head, h, rows.to(device), table_rows.to(device)
            )
            job = head.label_loss(low[name], rows, self.labels)
            total = _Terms(total.upper + upper, total.lower + lower, total.labels + job)
            bound = bound + own_bound
            if own_divergence is not None:
                divergence = divergence + own_divergence
        metrics = {
            "mi_upper": total.upper.item(),
            "mi_lower": bound.item(),
            "loss_labels": total.labels.item(),
            "q_gain": q_gain,
        }
        if self.settings.mi_lower == "soft":
            metrics["divergence"] = divergence.item()
        return total, metrics


def ramped(step: int, settings: AlignmentSettings) -> float:
    """Factor of γ1 and γ2 at a step: 1 after the ramp."""
    steps = settings.gamma_ramp * settings.loop.steps
    return 1.0 if step >= steps else (step + 1) / (steps + 1)


def marginal_rows(
    rows: torch.Tensor, count: int, settings: AlignmentSettings, seed: int, step: int
) -> torch.Tensor:
    """Items whose z make the marginal, a step's own first; empty stands for all of them."""
    if settings.marginals == "batch":
        return rows
    if not 0 < settings.table_sample < count:
        return rows[:0]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    own = torch.zeros(count, dtype=torch.bool)
    own[rows] = True
    order = torch.randperm(count, generator=generator)
    others = order[~own[order]]
    return torch.cat([rows, others[: max(0, settings.table_sample - len(rows))]])


def q_over_marginal(q: DiagonalGaussian, low: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Mean log q(w|z) minus the mean log-density of w under its own mean and variance."""
    variance = low.var(0, correction=0).clamp(min=1e-12)
    marginal = -0.5 * (variance.log() + 1 + torch.log(torch.tensor(2 * torch.pi))).sum()
    return q.log_likelihood(low, z) - marginal


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
