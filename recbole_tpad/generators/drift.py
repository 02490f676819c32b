"""How far a catalogue has moved from the items that a tower was trained on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.files import atomic_path
from recbole_tpad.store.item_embeddings import Hashes
from recbole_tpad.store.shards import Rows, shard_slices

# From which values on re-training is advised (assumptions; docs/store.md).
NEW_ITEMS, UNSEEN_TOKENS, UNSEEN_CATEGORIES, SHIFT = 0.3, 0.15, 0.05, 0.5
_WORD = re.compile(r"\w+")
_BLOCK = 4096

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Drift:
    """A catalogue against the items that a tower was trained on.

    Attributes:
        items: in the catalogue now.
        new_items: of these, not trained on, or with another content than then.
        unseen_tokens: share of the new items' words (occurrences) that no item trained on has.
        unseen_categories: share of the new items whose category no item trained on has.
        shift: modality → distance between the mean of the new items and that of the items trained
            on, over the root mean square distance of the latter from their mean; what as many
            items drawn from them would show by chance is taken off.
        spread: modality → that root mean square distance of the new items over the one of the
            items trained on.
    """

    items: int
    new_items: int
    unseen_tokens: float
    unseen_categories: float
    shift: dict[str, float]
    spread: dict[str, float]

    def reasons(self) -> list[str]:
        """Why re-training is advised; empty where it is not."""
        found = []
        if self.new_items > NEW_ITEMS * self.items:
            share = self.new_items / self.items
            found.append(f"{share:.0%} of the items are not those trained on")
        if self.unseen_tokens > UNSEEN_TOKENS:
            found.append(f"{self.unseen_tokens:.0%} of the new items' words were never seen")
        if self.unseen_categories > UNSEEN_CATEGORIES:
            found.append(f"{self.unseen_categories:.0%} of the new items are of unseen categories")
        moved = [f"{n} {v:.2f}" for n, v in self.shift.items() if v > SHIFT]
        if moved:
            found.append(f"the new items' embeddings lie elsewhere (shift {', '.join(moved)})")
        return found

    def lines(self) -> list[str]:
        """What to tell people."""
        if not self.new_items:
            return ["Every item is one the towers were trained on."]
        said = [
            f"Not trained on: {self.new_items:,} of {self.items:,} items; of their words "
            f"{self.unseen_tokens:.1%} and of their categories {self.unseen_categories:.1%} were "
            "never seen in training",
            "Embeddings of these: "
            + ", ".join(
                f"{name} mean moved by {shift:.2f} of the spread, spread x {self.spread[name]:.2f}"
                for name, shift in self.shift.items()
            ),
        ]
        reasons = self.reasons()
        if reasons:
            return [*said, f"Re-train soon ('embed' without --update): {'; '.join(reasons)}."]
        return [
            *said,
            f"No need to re-train yet: advised from {NEW_ITEMS:.0%} new items, "
            f"{UNSEEN_TOKENS:.0%} unseen words, {UNSEEN_CATEGORIES:.0%} unseen categories or a "
            f"shift of {SHIFT} on.",
        ]


@dataclass(frozen=True, slots=True)
class Baseline:
    """What is kept of the items trained on.

    Attributes:
        content: (N, 16) sorted content hashes.
        words, categories: sorted 64-bit hashes of what occurs.
        mean: modality → (dim,) mean vector.
        spread: modality → root mean square distance from it.
    """

    content: npt.NDArray[np.void]
    words: npt.NDArray[np.int64]
    categories: npt.NDArray[np.int64]
    mean: dict[str, Float64]
    spread: dict[str, float]

    @classmethod
    def of(cls, items: Sequence[Item], content: Hashes, arrays: Mapping[str, Rows]) -> Baseline:
        """Summarise the items trained on.

        Args:
            items: as they were read.
            content: (N, 16) their content hashes.
            arrays: modality → their vectors (N, dim).
        """
        words = {word for item in items for word in _words(item)}
        moments = {n: _moments(array, np.arange(len(items))) for n, array in arrays.items()}
        return cls(
            np.unique(_keys(content)),
            _hashed(words),
            _hashed({i.category for i in items}),
            {n: mean for n, (mean, _) in moments.items()},
            {n: spread for n, (_, spread) in moments.items()},
        )

    def drift(self, items: Sequence[Item], content: Hashes, arrays: Mapping[str, Rows]) -> Drift:
        """Compare a catalogue; arguments as of `of`."""
        new = np.flatnonzero(~np.isin(_keys(content), self.content))
        fresh = [items[row] for row in new.tolist()]
        words = _hashes([word for item in fresh for word in _words(item)])
        categories = _hashes([item.category for item in fresh])
        shift, spread = {}, {}
        for name, array in arrays.items() if len(new) else ():
            mean, own = _moments(array, new)
            scale = max(self.spread[name], 1e-12)
            moved = float(((mean - self.mean[name]) ** 2).sum()) / scale**2
            shift[name] = max(0.0, moved - 1 / len(new)) ** 0.5
            spread[name] = own / scale
        return Drift(
            len(items),
            len(new),
            _unseen(words, self.words),
            _unseen(categories, self.categories),
            shift,
            spread,
        )

    def save(self, file: Path) -> None:
        """Write it as safetensors."""
        tensors = {
            "content": self.content.view(np.uint8),
            "words": self.words,
            "categories": self.categories,
        }
        tensors |= {f"mean.{n}": m for n, m in self.mean.items()}
        tensors |= {f"spread.{n}": np.array([s]) for n, s in self.spread.items()}
        with atomic_path(file) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def read(cls, file: Path) -> Baseline:
        """Read what `save` wrote.

        Raises:
            InputError: absent or damaged.
        """
        try:
            tensors = load_file(file)
            named = [n.removeprefix("mean.") for n in tensors if n.startswith("mean.")]
            return cls(
                _keys(tensors["content"].reshape(-1, 16)),
                tensors["words"],
                tensors["categories"],
                {n: tensors[f"mean.{n}"] for n in named},
                {n: float(tensors[f"spread.{n}"][0]) for n in named},
            )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(
                f"{file} cannot be read ({error}). Run 'recbole-tpad embed' without --update."
            ) from error


def _words(item: Item) -> list[str]:
    return _WORD.findall(f"{item.title} {item.brand} {item.description}".lower())


def _hashes(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    digests = (hashlib.blake2b(t.encode(), digest_size=8).digest() for t in texts)
    return np.array([int.from_bytes(d, "little", signed=True) for d in digests], dtype=np.int64)


def _hashed(texts: set[str]) -> npt.NDArray[np.int64]:
    return np.sort(_hashes(sorted(texts)))


def _keys(content: Hashes) -> npt.NDArray[np.void]:
    rows = np.ascontiguousarray(content)
    return rows.view(np.dtype((np.void, rows.shape[1]))).ravel()


def _unseen(found: npt.NDArray[np.int64], known: npt.NDArray[np.int64]) -> float:
    return float((~np.isin(found, known)).mean()) if len(found) else 0.0


def _moments(array: Rows, rows: npt.NDArray[np.int64]) -> tuple[Float64, float]:
    """Mean vector and root mean square distance from it of some rows, in one pass."""
    total = np.zeros(array.shape[1])
    squares = 0.0
    for part in shard_slices(len(rows), _BLOCK):
        values = np.asarray(array[rows[part]], dtype=np.float64)  # type: ignore[index]
        total += values.sum(axis=0)
        squares += float((values**2).sum())
    mean = total / len(rows)
    return mean, max(0.0, squares / len(rows) - float((mean**2).sum())) ** 0.5
