"""Product photographs: a coloured shape, and everything that varies from photograph to photograph.

Colour and shape are the signal; background tint, size, position, rotation, light and noise are not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from recbole_tpad.demo.world import COLOURS, SHAPES

_RGB = {
    "red": (205, 30, 35),
    "orange": (240, 130, 20),
    "yellow": (235, 210, 30),
    "green": (40, 140, 55),
    "turquoise": (40, 195, 190),
    "blue": (35, 70, 200),
    "purple": (130, 45, 165),
    "black": (30, 30, 32),
}
_SUPERSAMPLING = 4

Points = npt.NDArray[np.float64]


def _polygon(corners: int, *, first: float = -np.pi / 2) -> Points:
    angles = first + 2 * np.pi * np.arange(corners) / corners
    return np.stack((np.cos(angles), np.sin(angles)), axis=1)


def _star() -> Points:
    points = _polygon(10)
    points[1::2] *= 0.42
    return points


def _cross() -> Points:
    a, b = 0.95, 0.33
    quarter = np.array([(-b, -a), (b, -a), (b, -b)])
    turns = [quarter @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return np.concatenate(turns)


# Outlines within the unit circle.
_OUTLINES: dict[str, Points] = {
    "round": _polygon(48),
    "square": _polygon(4, first=-np.pi / 4),
    "triangle": _polygon(3),
    "star": _star(),
    "cross": _cross(),
    "ring": _polygon(48),
}


def photograph(
    rng: np.random.Generator, colour: str, shape: str, *, size: int, noise: float
) -> Image.Image:
    """Draw one product photograph.

    Args:
        colour, shape: words of `COLOURS` and `SHAPES`.
        size: edge in pixels.
        noise: standard deviation of the pixel noise, of 255.

    Returns:
        RGB image, size × size.
    """
    edge = size * _SUPERSAMPLING
    background = _rgb(rng.integers(200, 256, size=3))
    paint = _rgb(np.clip(np.array(_RGB[colour]) + rng.integers(-12, 13, size=3), 0, 255))
    radius = edge * rng.uniform(0.26, 0.42)
    angle = np.deg2rad(rng.uniform(-12, 12))
    centre = edge / 2 + rng.uniform(-1, 1, size=2) * (edge / 2 - radius) * 0.8
    image = Image.new("RGB", (edge, edge), background)
    draw = ImageDraw.Draw(image)
    draw.polygon(_placed(_OUTLINES[shape], radius, angle, centre), fill=paint)
    if shape == "ring":
        draw.polygon(_placed(_OUTLINES[shape], radius * 0.55, angle, centre), fill=background)
    small = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(small, dtype=np.float64) * _light(rng, size)[..., None]
    pixels += rng.normal(0.0, noise, size=pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), "RGB")


def _rgb(values: npt.NDArray[np.int64]) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in values)
    return red, green, blue


def _placed(
    outline: Points, radius: float, angle: float, centre: Points
) -> list[tuple[float, float]]:
    cos, sin = np.cos(angle), np.sin(angle)
    turned = outline @ np.array([[cos, sin], [-sin, cos]]) * radius + centre
    return [(float(x), float(y)) for x, y in turned]


def _light(rng: np.random.Generator, size: int) -> Points:
    """(size, size) brightness falling off in a random direction."""
    direction = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-1, 1, size)
    slope = np.cos(direction) * axis[None, :] + np.sin(direction) * axis[:, None]
    brightness: Points = rng.uniform(0.88, 1.0) + rng.uniform(0.03, 0.12) * slope
    return brightness


def visual_keywords(colour: str, shape: str) -> tuple[str, str]:
    """What someone who sees the photograph would note down."""
    if colour not in COLOURS or shape not in SHAPES:
        raise ValueError(f"no photograph shows {colour!r} and {shape!r}")
    return colour, shape
