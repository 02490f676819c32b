"""Small pictures of items for pages that fetch nothing."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

THUMBNAIL = 56  # pixels, the longer side


def thumbnail(path: Path | None) -> str | None:
    """Return an image as a small JPEG in a data URI; None where there is none to be read."""
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=75)
    except OSError:
        # An image that is gone since the conversion is no reason to lose the whole page.
        return None
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
