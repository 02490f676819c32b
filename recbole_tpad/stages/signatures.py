"""Signs that a stage has failed in a known way: said in words, or the run is stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from recbole_tpad.stages.fresh_probes import probe_r2, variance
from recbole_tpad.stages.loop import Metrics

States = Mapping[str, torch.Tensor]
VANISHED = 0.02  # nats over all modalities: a vCLUB below this bounds nothing
NEGATIVE = -1.0  # nats, mean over a tenth of the steps: q is far from fitted
DEAD_VARIANCE = 1e-4
SEEN_BY_PROBE = 0.05
SATURATED = 0.9
DOMINANT = 0.9
_LOOK = (0.1, 0.3)  # shares of the steps between which "early" is


def early_steps(steps: int) -> tuple[int, int]:
    """First and last of the steps whose L_MIU says whether it vanished early."""
    first, last = (int(share * steps) for share in _LOOK)
    return first, last


def judge_upper_bound(
    early: Sequence[Metrics], sample: Callable[[], tuple[States, States]]
) -> float:
    """Why L_MIU vanished in the early part of a stage, if it did.

    Args:
        early: history of the early part, with mi_upper and q_gain.
        sample: modality → w^L of some items, and modality → what q conditions on; asked only
            where the bound has vanished.

    Returns:
        0 it has not; or a key of `VERDICTS`.
    """
    recent = [m["mi_upper"] for m in early[len(early) // 2 :]]
    if not recent or sum(recent) / len(recent) > VANISHED:
        return 0.0
    low, z = sample()
    if max(variance(w) for w in low.values()) < DEAD_VARIANCE:
        return 2.0
    seen = max(probe_r2(z[n], w) for n, w in low.items())
    return 3.0 if seen > SEEN_BY_PROBE and early[-1]["q_gain"] <= 0 else 1.0


VERDICTS = {
    1.0: "w^L was disentangled from z early: it varies, and z does not tell it.",
    2.0: "w^L has collapsed: it has no variance, so L_MIU is met by a constant. Its labels give it "
    "no job; check keywords and categories.",
    3.0: "q is no better than w^L's marginal while a fresh probe is: L_MIU bounds nothing. Raise "
    "likelihood_steps or q_learning_rate.",
}


def alignment_warnings(
    history: Sequence[Metrics], *, mi_lower: str, marginals: str, batch: int, items: int
) -> list[str]:
    """What a finished stage 2b's history warns of.

    Args:
        history: of `train_alignment`.
        mi_lower, marginals: its settings.
        batch, items: items a step and in all.
    """
    found = []
    for step in history:
        if step.get("upper_vanished"):
            found.append(f"Alignment: {VERDICTS[step['upper_vanished']]}")
    tenth = max(1, len(history) // 10)
    last = history[-tenth:]
    upper = [m["mi_upper"] for m in history if "mi_upper" in m]
    means = [sum(upper[k : k + tenth]) / tenth for k in range(0, len(upper), tenth)]
    lowest = min(means, default=0.0)
    if lowest < NEGATIVE:
        found.append(
            f"Alignment: L_MIU was {lowest:.1f} nats over a tenth of the steps, and no mutual "
            "information is negative: q does not keep up with w^L, and K may be spoilt. Lower "
            "loop.learning_rate, or raise q_learning_rate or likelihood_steps."
        )
    modalities = sum(1 for key in last[-1] if key.startswith("norm_")) or 1
    candidates = batch if marginals == "batch" else items
    bound = sum(m["mi_lower"] for m in last) / len(last) / modalities
    if mi_lower != "soft" and candidates > 1 and bound > SATURATED * math.log(candidates):
        hint = "Take marginals: table, or " if marginals == "batch" else "Take "
        found.append(
            f"Alignment: the lower bound, {bound:.2f} nats, is near its limit ln {candidates} = "
            f"{math.log(candidates):.2f}: every item is identified and little more can be learned "
            f"from it. {hint}mi_lower: soft."
        )
    if mi_lower == "mine" and _exploded([m["mi_lower"] for m in history]):
        found.append(
            "Alignment: the MINE bound's variance explodes. Take marginals: table, a smaller "
            "gamma_lower, or mi_lower: infonce."
        )
    return found + balance_warnings(last, "Alignment")


def balance_warnings(history: Sequence[Metrics], stage: str) -> list[str]:
    """Whether one modality takes nearly all of the gradient."""
    found = []
    shares = [m for m in history if "gradient_share_text" in m and "gradient_share_visual" in m]
    for name in ("text", "visual"):
        share = sum(m[f"gradient_share_{name}"] for m in shares) / max(1, len(shares))
        if share > DOMINANT:
            found.append(
                f"{stage}: {share:.0%} of the gradient goes to the {name} states; the other "
                "modality hardly learns. Change visual_weight and text_weight, and see what "
                "use_images: false and use_text: false cost."
            )
    return found


def _exploded(values: Sequence[float]) -> bool:
    """Whether the last quarter spreads ten times as much as the second quarter did."""
    if len(values) < 40:
        return False
    quarter = len(values) // 4
    early, late = (
        torch.tensor(part).std() for part in (values[quarter : 2 * quarter], values[-quarter:])
    )
    return bool(late > 10 * early.clamp(min=1e-3))
