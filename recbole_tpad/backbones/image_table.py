"""One row of frozen image features an item: equal images once, unreadable ones named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from recbole_tpad.backbones.base import Inputs
from recbole_tpad.backbones.images import UnreadableImage, read_image
from recbole_tpad.backbones.vision_cache import VisionCache
from recbole_tpad.data.image_hashes import image_sha256
from recbole_tpad.progress import progress


@torch.no_grad()
def image_table(
    inputs: Inputs,
    cache: VisionCache | None,
    read: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    encode: Callable[[torch.Tensor], torch.Tensor],
    shape: tuple[int, ...],
    chunk: int = 64,
) -> torch.Tensor:
    """Features of every item's image, (N, *shape) fp16, zero where there is none.

    Images that the cache knows are not read again.

    Args:
        inputs: the items; what cannot be read is noted there.
        cache: of this encoder; None: nothing outlives the call.
        read: rows → which of them could be read (places), and their pixels.
        encode: pixels (B, …) → features (B, *shape).
        shape: of an image's features.
        chunk: images encoded at a time.
    """
    cache = VisionCache() if cache is None else cache
    rows = torch.nonzero(inputs.has_image).flatten().tolist()
    image_of = {row: image_sha256(image_path(inputs, row)) for row in rows}
    new = {image: row for row, image in image_of.items() if image not in cache}
    wanted = torch.tensor(sorted(new.values()), dtype=torch.int64)
    parts = wanted.split(chunk) if len(wanted) else ()
    for part in progress(parts, desc="vision features"):
        good, pixels = read(part)
        if len(good):
            named = zip(part[good].tolist(), encode(pixels), strict=True)
            cache.add({image_of[row]: {"features": found} for row, found in named})
    table = torch.zeros(len(inputs.items), *shape, dtype=torch.float16)
    for row, image in image_of.items():
        if image in cache:
            table[row] = cache.get(image)["features"]
        elif inputs.has_image[row]:  # the same bytes as another item's unreadable image
            reject(inputs, row, inputs.unreadable[inputs.items[new[image]].item_id])
    return table


def image_path(inputs: Inputs, row: int) -> Path:
    """File of an item's image; only for items that have one."""
    path = inputs.items[row].image
    assert path is not None  # only asked for rows that have one
    return path


def readable_images(inputs: Inputs, rows: torch.Tensor) -> tuple[torch.Tensor, list[Image.Image]]:
    """Read the images of some items.

    Returns:
        Places in `rows` (int64) of those that can be read, and these images; the others are noted.
    """
    good, images = [], []
    for place, row in enumerate(rows.tolist()):
        try:
            images.append(read_image(image_path(inputs, row)))
            good.append(place)
        except UnreadableImage as error:
            reject(inputs, row, str(error))
    return torch.tensor(good, dtype=torch.int64), images


def reject(inputs: Inputs, row: int, reason: str) -> None:
    """Count an item's image as absent."""
    inputs.has_image[row] = False
    inputs.unreadable[inputs.items[row].item_id] = reason
