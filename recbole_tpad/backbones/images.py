"""Item images as a vision encoder wants them: upright RGB, or a reason why not."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

from PIL import Image, ImageOps

from recbole_tpad.errors import InputError

MAX_PIXELS = 50_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # some of Pillow's other decoders start programs
_SMALLEST = 4  # pixels; resizing filters and patch grids need an extent
_LARGEST_RATIO = 100  # of the sides
# What Pillow's decoders raise on damaged files.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnreadableImage(InputError):
    """An image that cannot be shown to an encoder; the message says which and why."""


def read_image(path: Path) -> Image.Image:
    """Decode an image to upright RGB.

    The first frame of an animation; CMYK and palettes converted; 16-bit grey scaled to 8 bits;
    transparency on white; very small or very long images padded with white, which only keeps
    resizing defined.

    Raises:
        UnreadableImage: absent, damaged, of another format, or above 50 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnreadableImage(
                        f"{path.name}: {image.width:,} x {image.height:,} pixels, the limit is "
                        f"{MAX_PIXELS:,} in all"
                    )
                image.load()
                return _padded(_to_rgb(ImageOps.exif_transpose(image)))
    except UnreadableImage:
        raise
    except _DECODE_ERRORS as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UnreadableImage(f"{path.name}: {reason}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = image.convert("I")
    if image.mode in ("I", "F"):
        # Pillow's own conversion would cut every value above 255.
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _padded(image: Image.Image) -> Image.Image:
    least = max(_SMALLEST, -(-max(image.size) // _LARGEST_RATIO))
    size = (max(image.width, least), max(image.height, least))
    if size == image.size:
        return image
    if max(image.size) < _SMALLEST:
        return image.resize(size, Image.Resampling.NEAREST)
    return ImageOps.pad(image, size, color="white")
