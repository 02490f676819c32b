"""Colour histograms of the item images: the control that sees an image and understands nothing."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from recbole_tpad.backbones.images import UnreadableImage, read_image
from recbole_tpad.data import DatasetFolder
from recbole_tpad.errors import InputError
from recbole_tpad.files import sha256_file, sha256_json
from recbole_tpad.generators.base import Encoded, RunRecord

_SIDE = 128  # pixels; a histogram needs no more


@dataclass(frozen=True, slots=True)
class ColourHistogramSettings:
    """Attributes:
    hue_bins, saturation_bins, value_bins: cells of the joint histogram.
    grid: the image is cut into grid x grid fields with a histogram each (1: one for all).
    """

    hue_bins: int = 8
    saturation_bins: int = 3
    value_bins: int = 3
    grid: int = 2

    def __post_init__(self) -> None:
        for name in ("hue_bins", "saturation_bins", "value_bins", "grid"):
            value = getattr(self, name)
            if not 1 <= value <= 64:
                raise InputError(f"colour_histogram: {name} is {value}; it must be 1 to 64.")


class ColourHistogramGenerator:
    """Joint HSV histograms, a field of the image each, as square roots of shares.

    The dot product of two such vectors is the Bhattacharyya coefficient of the histograms, summed
    over the fields. Items without a readable image get the mean of the others.
    """

    def __init__(self, settings: ColourHistogramSettings) -> None:
        self._settings = settings

    def fingerprint(self, dataset: DatasetFolder) -> dict[str, str]:
        """Depends on the settings and the image files."""
        images = [(i.item_id, sha256_file(i.image) if i.image else "") for i in dataset.items]
        return {"settings": sha256_json(asdict(self._settings)), "images": sha256_json(images)}

    def generate(self, dataset: DatasetFolder, work: Path, record: RunRecord) -> Encoded:
        """Read every image once.

        Raises:
            InputError: no item has a readable image.
        """
        started = time.perf_counter()
        rows: dict[int, npt.NDArray[np.float32]] = {}
        unreadable: list[str] = []
        for number, item in enumerate(dataset.items):
            if item.image is None:
                continue
            try:
                image = read_image(item.image)
            except UnreadableImage as error:
                unreadable.append(str(error))
            else:
                rows[number] = self._histogram(image)
        if not rows:
            raise InputError(
                f"Data set '{dataset.name}' has no readable image; colour histograms need images. "
                f"Run: recbole-tpad images --dataset {dataset.name}"
            )
        if unreadable:
            text = f"{len(unreadable)} images cannot be read: {'; '.join(unreadable[:3])}"
            record.warnings.append(text)
            warnings.warn(text, stacklevel=2)
        vectors = np.tile(np.mean(list(rows.values()), axis=0), (len(dataset.items), 1))
        for number, row in rows.items():
            vectors[number] = row
        record.stages.append(
            {
                "name": "colour_histogram",
                "seconds": time.perf_counter() - started,
                "history": [],
                "summary": {"images": len(rows), "without_image": len(dataset.items) - len(rows)},
            }
        )
        return Encoded({"image": vectors}, "other", False, self.fingerprint(dataset))

    def _histogram(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """(grid² · cells,) square roots of the shares of pixels."""
        settings = self._settings
        image.thumbnail((_SIDE, _SIDE))
        pixels = np.asarray(image.convert("HSV"))
        counts = (settings.hue_bins, settings.saturation_bins, settings.value_bins)
        fields = []
        for band in np.array_split(pixels, settings.grid, axis=0):
            for field in np.array_split(band, settings.grid, axis=1):
                cells = np.zeros(int(np.prod(counts)))
                if field.size:
                    bins = [
                        field[..., axis].astype(np.int64) * count // 256
                        for axis, count in enumerate(counts)
                    ]
                    index = np.ravel_multi_index(bins, counts).ravel()
                    cells = np.bincount(index, minlength=len(cells)) / len(index)
                fields.append(np.sqrt(cells))
        return np.concatenate(fields).astype(np.float32)
