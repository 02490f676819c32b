"""Known failures are said in words."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_tpad.stages.loop import Metrics
from recbole_tpad.stages.signatures import (
    VERDICTS,
    alignment_warnings,
    balance_warnings,
    early_steps,
    judge_upper_bound,
)


def normal(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def early(upper: float, gain: float) -> list[Metrics]:
    return [{"mi_upper": upper, "q_gain": gain}] * 10


def judged(upper: float, gain: float, low: torch.Tensor, z: torch.Tensor) -> str:
    number = judge_upper_bound(early(upper, gain), lambda: ({"text": low}, {"text": z}))
    return VERDICTS.get(number, "fine")


def test_why_the_upper_bound_vanished() -> None:
    z = normal(500, 6)
    assert judged(0.5, 1.0, z, z) == "fine"
    assert "disentangled" in judged(0.001, 0.0, normal(500, 4, 1), z)
    assert "collapsed" in judged(0.001, 0.0, torch.ones(500, 4) + 1e-4 * z[:, :4], z)
    assert "bounds nothing" in judged(0.001, -0.2, z[:, :4], z)
    # q sees what a fresh probe sees, and still little can be told: not the estimator's fault.
    assert "disentangled" in judged(0.001, 0.3, z[:, :4], z)


def test_nothing_is_sampled_while_the_bound_is_healthy() -> None:
    def never() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        raise AssertionError

    assert judge_upper_bound(early(0.4, 1.0), never) == 0
    assert judge_upper_bound([], never) == 0
    assert early_steps(100) == (10, 30)


def history(bound: float | list[float], steps: int = 60) -> list[Metrics]:
    values = bound if isinstance(bound, list) else [bound] * steps
    return [{"mi_lower": v, "norm_text": 1.0} for v in values]


def warned(steps: list[Metrics], mi_lower: str = "infonce", marginals: str = "table") -> list[str]:
    return alignment_warnings(steps, mi_lower=mi_lower, marginals=marginals, batch=32, items=500)


def test_a_saturated_bound() -> None:
    assert not warned(history(0.5 * math.log(500)))
    (words,) = warned(history(0.97 * math.log(500)))
    assert "ln 500" in words
    assert "mi_lower: soft" in words
    (words,) = warned(history(0.97 * math.log(32)), marginals="batch")
    assert "marginals: table" in words
    assert not warned(history(0.97 * math.log(500)), mi_lower="soft")


def test_an_upper_bound_far_below_zero() -> None:
    def uppers(values: list[float]) -> list[Metrics]:
        return [{**m, "mi_upper": v} for m, v in zip(history(1.0), values, strict=True)]

    assert not warned(uppers([0.5] * 60))
    assert not warned(uppers([0.5] * 59 + [-5.0]))  # one step says little
    (words,) = warned(uppers([0.5] * 30 + [-9.0] * 6 + [0.0] * 24))
    assert "-9.0 nats" in words
    assert "q_learning_rate" in words


def test_both_modalities_share_the_limit() -> None:
    steps: list[Metrics] = [{**m, "norm_visual": 1.0} for m in history(1.9 * math.log(500))]
    assert len(warned(steps)) == 1
    assert not warned([{**m, "mi_lower": 1.2 * math.log(500)} for m in steps])


def test_an_exploding_bound() -> None:
    calm = [0.01 * (k % 3) for k in range(80)]
    wild = [v if k < 60 else v + (k % 2) * 3 for k, v in enumerate(calm)]
    assert not warned(history(calm), "mine")
    assert "explodes" in warned(history(wild), "mine")[0]
    assert not warned(history(wild), "infonce")


def test_a_bound_that_vanished_is_told() -> None:
    steps = history(1.0)
    steps[20]["upper_vanished"] = 2.0
    assert "collapsed" in warned(steps)[0]
    steps[20]["upper_vanished"] = 0.0
    assert not warned(steps)


@pytest.mark.parametrize(("text", "visual", "said"), [(0.97, 0.03, "text"), (0.02, 0.98, "visual")])
def test_one_modality_takes_all_of_the_gradient(text: float, visual: float, said: str) -> None:
    shares: Metrics = {"gradient_share_text": text, "gradient_share_visual": visual}
    (words,) = balance_warnings([shares] * 5, "Transition")
    assert words.startswith("Transition: 9")
    assert f"to the {said} states" in words


def test_a_fair_share_and_a_single_modality_are_fine() -> None:
    assert not balance_warnings([{"gradient_share_text": 0.6, "gradient_share_visual": 0.4}], "T")
    assert not balance_warnings([{"gradient_share_text": 1.0}], "T")
    assert not balance_warnings([], "T")
