"""What becomes of downloaded bytes: a checked RGB image, upright and not larger than needed."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# By the decoder that recognises the bytes; whatever else Pillow could open is refused unopened.
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
_KEPT = frozenset({"JPEG", "PNG", "WEBP"})
_LOSSY = frozenset({"JPEG", "WEBP"})
_UPRIGHT = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}
_QUALITY = 92


class ImageProblem(Exception):
    """The bytes are no usable image; `status` is the item's, the message says why."""

    def __init__(self, status: Literal["unreadable", "placeholder"], reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image file's bytes, its extension and its size in pixels."""

    data: bytes
    extension: str
    width: int
    height: int


def prepare_image(
    data: bytes, *, size: int | None, max_pixels: int, min_side: int
) -> PreparedImage:
    """Check and normalise an image, told by content.

    The first frame; turned as its EXIF orientation says; RGB, transparency over white; scaled down
    so that neither side is longer than `size`. Bytes that are all that already stay as they are;
    others are encoded again, JPEG and WebP as JPEG, the rest as PNG.

    Args:
        size: longest side in pixels; None keeps the size.
        max_pixels: larger images are not decoded.
        min_side: an image with a shorter side stands for a missing one.

    Raises:
        ImageProblem: no JPEG, PNG, WebP, GIF or BMP, damaged, too large, or too small.
    """
    try:
        with Image.open(BytesIO(data), formats=tuple(_EXTENSIONS)) as image:
            return _prepare(data, image, size, max_pixels, min_side)
    except UnidentifiedImageError:
        raise ImageProblem("unreadable", _what_else(data)) from None
    except ImageProblem:
        raise
    except Exception as error:
        # Decoders raise all sorts of errors on bytes that were made to break them.
        told = f"damaged image ({type(error).__name__}: {error})"
        raise ImageProblem("unreadable", told[:200]) from error


def _prepare(
    data: bytes, image: Image.Image, size: int | None, max_pixels: int, min_side: int
) -> PreparedImage:
    kind = image.format or ""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageProblem(
            "unreadable", f"{width:,} x {height:,} pixels, more than {max_pixels:,} in all"
        )
    if min(width, height) < min_side:
        raise ImageProblem("placeholder", f"{width} x {height} pixels")
    turns = _UPRIGHT.get(_orientation(image), ())
    fits = size is None or max(width, height) <= size
    still = getattr(image, "n_frames", 1) == 1
    unchanged = kind in _KEPT and fits and still and not turns and image.mode == "RGB"
    if not fits and size is not None:
        image.draft("RGB", (2 * size, 2 * size))  # JPEG: decodes at a fraction of the size
    image.load()
    if unchanged and "transparency" not in image.info:
        return PreparedImage(data, _EXTENSIONS[kind], width, height)
    pixels = _rgb(image)
    for turn in turns:
        pixels = pixels.transpose(turn)
    if not fits and size is not None:
        pixels.thumbnail((size, size), Image.Resampling.LANCZOS)
    out = BytesIO()
    if kind in _LOSSY:
        pixels.save(out, "JPEG", quality=_QUALITY)
        return PreparedImage(out.getvalue(), "jpg", *pixels.size)
    pixels.save(out, "PNG")
    return PreparedImage(out.getvalue(), "png", *pixels.size)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1  # a broken EXIF block says nothing about the pixels
    return found if isinstance(found, int) else 1


def _rgb(image: Image.Image) -> Image.Image:
    """Return the pixels as RGB, whatever lies under transparency being white."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which a plain conversion would clip
        grey = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _what_else(data: bytes) -> str:
    """Say what bytes that are no image look like."""
    if not data:
        return "an empty answer"
    start = data[:1000].lstrip().lower()
    if b"<svg" in start:
        return "an SVG drawing, which is not supported"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page, not an image"
    return f"not an image (it starts with {data[:12]!r})"
