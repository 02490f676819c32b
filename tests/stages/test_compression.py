"""NoteLLM-2's late fusion and its two losses, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from recbole_tpad.errors import InputError
from recbole_tpad.stages.compression import (
    CompressionSettings,
    LateFusion,
    compressed,
    compression_loss,
)
from recbole_tpad.stages.loop import LoopSettings


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def fusion() -> LateFusion:
    """g = (2c, 3c) for CLS c; z = σ(g₁ − h₂), σ(h₁); then (first, sum)."""
    made = LateFusion(1, 2, 2)
    with torch.no_grad():
        made.image.weight.copy_(torch.tensor([[2.0], [3.0]]))
        made.image.bias.zero_()
        made.gate.weight.copy_(torch.tensor([[1.0, 0, 0, -1], [0, 0, 1, 0]]))
        made.gate.bias.zero_()
        made.project.weight.copy_(torch.tensor([[1.0, 0], [1, 1]]))
    return made


def test_the_gate_by_hand(fusion: LateFusion) -> None:
    h, c = torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0]])
    found = fusion(h, c, torch.tensor([True]))[0]
    z1, z2 = sigmoid(2.0 + 1.0), sigmoid(0.5)
    first = z1 * 2.0 + (1 - z1) * 0.5
    second = z2 * 3.0 + (1 - z2) * -1.0
    torch.testing.assert_close(found, torch.tensor([first, first + second]))


def test_without_an_image_the_state_stays(fusion: LateFusion) -> None:
    h = torch.tensor([[0.5, -1.0], [0.5, -1.0]])
    found = fusion(h, torch.tensor([[7.0], [1.0]]), torch.tensor([False, True]))
    torch.testing.assert_close(found[0], torch.tensor([0.5, -0.5]))
    assert not torch.allclose(found[0], found[1])


def test_the_same_fusion_and_map_serve_both_states(fusion: LateFusion) -> None:
    h = torch.randn(3, 2)
    arguments = torch.randn(3, 1), torch.tensor([True, True, False])
    found = compressed({"visual": h, "text": h}, fusion, *arguments)
    torch.testing.assert_close(found["visual"], found["multimodal"])
    assert fusion.project.bias is None


def test_both_losses_by_hand() -> None:
    # Three items; the pair is (0, 1), item 2 is the only negative.
    tau = torch.tensor(math.log(2.0))
    multimodal = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 5.0]])
    visual = torch.tensor([[0.0, 2.0], [0.0, 1.0], [1.0, 0.0]])
    known = torch.zeros(3, 3, dtype=torch.bool)
    loss, metrics = compression_loss(
        {"multimodal": multimodal, "visual": visual}, torch.tensor([[0, 1]]), tau, known
    )

    def cross_entropy(positive: float, negative: float) -> float:
        return math.log(1 + math.exp(2 * (negative - positive)))

    # Cosines: multimodal 01 .6, 02 0, 12 .8; visual 01 1, 02 0, 12 0. Anchors 0 and 1, both ways.
    wanted_m = (cross_entropy(0.6, 0.0) + cross_entropy(0.6, 0.8)) / 2
    wanted_v = cross_entropy(1.0, 0.0)
    assert metrics["loss_contrastive_multimodal"] == pytest.approx(wanted_m, rel=1e-5)
    assert metrics["loss_contrastive_visual"] == pytest.approx(wanted_v, rel=1e-5)
    assert float(loss) == pytest.approx((9 * wanted_m + wanted_v) / 10, rel=1e-5)


def test_the_weights_decide_what_trains() -> None:
    vectors = {n: nn.Parameter(torch.randn(4, 3)) for n in ("multimodal", "visual")}
    pairs, known = torch.tensor([[0, 1], [2, 3]]), torch.zeros(4, 4, dtype=torch.bool)
    tau = torch.tensor(1.0)
    loss, _ = compression_loss(vectors, pairs, tau, known)
    loss.backward()
    both = vectors["visual"].grad
    assert both is not None
    alone = nn.Parameter(vectors["visual"].detach())
    only, _ = compression_loss(
        {"multimodal": vectors["multimodal"].detach(), "visual": alone},
        pairs,
        tau,
        known,
        multimodal_weight=0.0,
    )
    only.backward()
    assert alone.grad is not None
    torch.testing.assert_close(both, alone.grad / 10)


def test_bad_settings() -> None:
    loop = LoopSettings(steps=1)
    with pytest.raises(InputError, match="both loss weights are 0"):
        CompressionSettings(loop, multimodal_weight=0, visual_weight=0)
    with pytest.raises(InputError, match="dimension must be at least 1"):
        CompressionSettings(loop, dimension=0)
