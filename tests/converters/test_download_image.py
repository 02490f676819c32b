"""Bytes that claim to be images: usable, or refused with a reason, never anything else."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_server import picture
from PIL import Image

from dataset_converters.download_image import ImageProblem, PreparedImage, prepare_image

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16")


def prepared(data: bytes, size: int | None = 32) -> PreparedImage:
    return prepare_image(data, size=size, max_pixels=100_000, min_side=2)


def outcome(data: bytes) -> PreparedImage | str:
    """The image, or why there is none."""
    try:
        return prepared(data)
    except ImageProblem as problem:
        return f"{problem.status}: {problem}"


def saved(image: Image.Image, kind: str, **more: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **more)
    return out.getvalue()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), st.data())
def test_damaged_bytes_are_refused_or_usable(kind: str, data: st.DataObject) -> None:
    content = bytearray(picture(kind=kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    made = outcome(bytes(content[:cut] if data.draw(st.booleans()) else content))
    if isinstance(made, str):
        assert made
        return
    with Image.open(io.BytesIO(made.data)) as image:
        image.load()
        assert image.mode == "RGB"
        assert image.size == (made.width, made.height)
        assert max(image.size) <= 32


@given(st.binary(max_size=200))
def test_other_bytes_are_no_images(data: bytes) -> None:
    with pytest.raises(ImageProblem):
        prepared(data)


def savable(kind: str, mode: str) -> bool:
    try:
        saved(Image.new(mode, (2, 2)), kind)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


PAIRS = [(kind, mode) for kind in KINDS for mode in MODES if savable(kind, mode)]


def test_most_kinds_are_tried_in_most_modes() -> None:
    assert len(PAIRS) > 25


@pytest.mark.parametrize(("kind", "mode"), PAIRS)
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8, 99])
def test_every_mode_becomes_rgb(kind: str, mode: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.new(mode, (80, 40)), kind, exif=exif)
    made = prepared(data)
    turned = kind in ("JPEG", "PNG", "WEBP") and 5 <= orientation <= 8
    assert (made.width, made.height) == ((16, 32) if turned else (32, 16))
    assert Image.open(io.BytesIO(made.data)).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_pillow(orientation: int) -> None:
    from PIL import ImageOps

    pixels = np.random.default_rng(0).integers(0, 256, (20, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(pixels), "PNG", exif=exif)
    made = Image.open(io.BytesIO(prepared(data, size=None).data))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if orientation > 1:  # upright bytes stay as they came, with their EXIF
        assert not made.getexif()
    np.testing.assert_array_equal(np.asarray(made), np.asarray(expected.convert("RGB")))


def test_what_needs_nothing_stays_as_it_came() -> None:
    for kind, extension in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
        data = picture(kind=kind)
        assert prepared(data, size=40) == PreparedImage(data, extension, 40, 30)
        assert prepared(data, size=None).data == data
        assert prepared(data, size=39).data != data
