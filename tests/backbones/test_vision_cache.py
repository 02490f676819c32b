"""Features on disk: by image bytes and encoder, whole parts only."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_catalogue import load_backbone as load_tiny

from recbole_tpad.backbones.loading import load_backbone
from recbole_tpad.backbones.settings import BackboneSettings
from recbole_tpad.backbones.vision_cache import VisionCache
from recbole_tpad.data import Item

CPU = torch.device("cpu")


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_was_added_comes_back(on_disk: bool, tmp_path: Path) -> None:
    folder = tmp_path / "features" if on_disk else None
    cache = VisionCache(folder)
    features = {
        f"{k:x}": {"f": torch.randn(3, 4) * 5, "size": torch.tensor([[k]])} for k in range(5)
    }
    cache.add(dict(list(features.items())[:2]))
    cache.add(dict(list(features.items())[2:]))
    for known in (cache, VisionCache(folder)) if on_disk else (cache,):
        assert len(known) == 5
        for image, tensors in features.items():
            found = known.get(image)
            assert torch.equal(found["f"], tensors["f"].half())
            assert torch.equal(found["size"], tensors["size"])
        assert "nothing" not in known
        with pytest.raises(KeyError):
            known.get("nothing")


def test_large_values_stay_finite() -> None:
    cache = VisionCache()
    cache.add({"a": {"f": torch.tensor([1e6, -1e6, 1.0])}})
    assert torch.isfinite(cache.get("a")["f"]).all()


def test_an_unfinished_part_is_not_read(tmp_path: Path) -> None:
    cache = VisionCache(tmp_path)
    cache.add({"a": {"f": torch.ones(2)}})
    part = next(tmp_path.glob("*.safetensors"))
    shutil.copy(part, tmp_path / f".{part.name}.1234.tmp")
    assert len(VisionCache(tmp_path)) == 1


def settings_of(checkpoint: Path, **changes: object) -> BackboneSettings:
    return BackboneSettings(
        vision=str(checkpoint / "vision"),
        language_model=str(checkpoint / "language_model"),
        **changes,  # type: ignore[arg-type]
    )


def test_an_image_is_encoded_once(
    checkpoint: Path, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_backbone(settings_of(checkpoint), items, tmp_path)
    inputs = first.inputs(items[:9], CPU)
    inputs.freeze()
    again = load_backbone(settings_of(checkpoint), items, tmp_path)
    read = []
    vision = again.vision.forward

    def counting(pixels: torch.Tensor) -> torch.Tensor:
        read.append(len(pixels))
        return vision(pixels)

    monkeypatch.setattr(again.vision, "forward", counting)
    later = again.inputs(items, CPU)
    later.freeze()
    shown = sum(i.image is not None for i in items)
    assert sum(read) == shown - sum(i.image is not None for i in items[:9])
    rows = torch.arange(9)
    assert torch.equal(inputs.batch(rows).visual, later.batch(rows).visual)
    # The same bytes under another name, twice, are one image.
    copies = []
    for k in range(2):
        path = tmp_path / f"copy{k}.png"
        shutil.copy(items[0].image or "", path)
        copies.append(path)
    read.clear()
    twins = again.inputs(
        [items[0].__class__(f"t{k}", "t", "", "", "", None, p, ()) for k, p in enumerate(copies)],
        CPU,
    )
    twins.freeze()
    assert read == []
    assert torch.equal(
        twins.batch(torch.tensor([1])).visual, inputs.batch(torch.tensor([0])).visual
    )


def test_another_encoder_has_another_place(
    checkpoint: Path, items: list[Item], tmp_path: Path
) -> None:
    load_backbone(settings_of(checkpoint), items, tmp_path).inputs(items, CPU).freeze()
    half = load_backbone(settings_of(checkpoint, dtype="bfloat16"), items, tmp_path)
    assert half.vision_cache is not None
    assert len(half.vision_cache) == 0
    other = shutil.copytree(checkpoint, tmp_path / "other")
    config = other / "vision" / "preprocessor_config.json"
    config.write_text(config.read_text().replace("0.48145466", "0.5"))
    changed = load_backbone(settings_of(other), items, tmp_path)
    assert changed.vision_cache is not None
    assert len(changed.vision_cache) == 0


def test_without_a_place_nothing_is_shared(checkpoint: Path, items: list[Item]) -> None:
    backbone = load_tiny(checkpoint)
    assert backbone.vision_cache is None
    inputs = backbone.inputs(items, CPU)
    inputs.freeze()
    before = inputs.batch(torch.tensor([0])).visual
    with torch.no_grad():
        for parameter in backbone.vision.parameters():
            parameter.add_(torch.randn_like(parameter))
    inputs.freeze()
    assert not torch.allclose(before, inputs.batch(torch.tensor([0])).visual, atol=1e-2)
