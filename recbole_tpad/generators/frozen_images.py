"""One vector an image from a frozen encoder; equal images once, unreadable ones named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from recbole_tpad.backbones.images import UnreadableImage, read_image
from recbole_tpad.backbones.vision_cache import VisionCache
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.files import sha256_file
from recbole_tpad.generators.base import RunRecord
from recbole_tpad.progress import progress


@torch.no_grad()
def image_vectors(
    items: Sequence[Item],
    cache: VisionCache,
    encode: Callable[[list[Image.Image]], torch.Tensor],
    batch: int,
    record: RunRecord,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Vectors of the items' images.

    Args:
        items: with image files that are there, or none.
        cache: for this encoder; a killed run goes on from what it holds.
        encode: upright RGB images → (B, width).
        batch: images at a time.
        record: gets a warning where images cannot be read.

    Returns:
        (N, width), zero where there is no image; and (N,): which items have one.

    Raises:
        InputError: not a single image can be read.
    """
    paths = {row: item.image for row, item in enumerate(items) if item.image is not None}
    image_of = {row: sha256_file(path) for row, path in paths.items()}
    new = {image: row for row, image in image_of.items() if image not in cache}
    rows = sorted(new.values())
    unreadable: list[str] = []
    for start in progress(range(0, len(rows), batch), desc="images"):
        read, images = [], []
        for row in rows[start : start + batch]:
            try:
                images.append(read_image(paths[row]))
                read.append(image_of[row])
            except UnreadableImage as error:
                unreadable.append(str(error))
        if images:
            found = encode(images).float().cpu()
            cache.add({i: {"vector": v} for i, v in zip(read, found, strict=True)})
    if unreadable:
        record.warnings.append(
            f"{len(unreadable):,} images cannot be read and count as absent: "
            + "; ".join(unreadable[:5])
        )
    known = {row: cache.get(i)["vector"] for row, i in image_of.items() if i in cache}
    if not known:
        raise InputError(f"None of the images can be read: {'; '.join(unreadable[:5])}")
    table = np.zeros((len(items), len(next(iter(known.values())))), dtype=np.float32)
    present = np.zeros(len(items), dtype=bool)
    for row, vector in known.items():
        table[row], present[row] = vector.numpy(), True
    return table, present
