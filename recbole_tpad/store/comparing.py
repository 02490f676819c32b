"""Two stores side by side: provenance, items, vectors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from recbole_tpad.store.item_embeddings import ItemEmbeddings

_BLOCK = 4096
_NAMED = 5
_NOT_COMPARED = ("files", "inputs", "items", "modalities")


@dataclass(frozen=True, slots=True)
class ModalityDifference:
    """A modality of items that both stores hold.

    Attributes:
        equal: items whose vectors are the same bit for bit.
        mean_cosine, least_cosine: of the other items' two vectors; 1 where there are none.
        farthest: the item of the least cosine; None where all are equal.
    """

    equal: int
    mean_cosine: float
    least_cosine: float
    farthest: str | None


@dataclass(frozen=True, slots=True)
class StoreDifference:
    """What `compare_stores` found.

    Attributes:
        provenance: what differs in the manifests: name → (left, right); None where absent.
        left_only, right_only: item ids.
        shared: number of items in both.
        modalities: of equal width in both → their difference.
        other_modalities: name → (left width, right width); 0 where absent.
    """

    provenance: dict[str, tuple[str | None, str | None]]
    left_only: list[str]
    right_only: list[str]
    shared: int
    modalities: dict[str, ModalityDifference]
    other_modalities: dict[str, tuple[int, int]]

    @property
    def same(self) -> bool:
        """Whether both hold the same vectors for the same items; provenance may differ."""
        return not (
            self.left_only
            or self.right_only
            or self.other_modalities
            or any(d.equal < self.shared for d in self.modalities.values())
        )

    def lines(self, left: str, right: str) -> list[str]:
        """What to tell people.

        Args:
            left, right: names of the stores.
        """
        said = []
        for name, (one, other) in self.provenance.items():
            said.append(f"{name}: {_short(one)} in {left}, {_short(other)} in {right}")
        for ids, where in ((self.left_only, left), (self.right_only, right)):
            if ids:
                named = ", ".join(ids[:_NAMED]) + (", …" if len(ids) > _NAMED else "")
                said.append(f"only in {where}: {len(ids):,} items ({named})")
        for name, (one_width, other_width) in self.other_modalities.items():
            said.append(f"{name}: width {one_width} in {left}, {other_width} in {right}")
        for name, found in self.modalities.items():
            line = f"{name}: {found.equal:,} of {self.shared:,} shared items are equal bit for bit"
            if found.farthest is not None:
                line += (
                    f"; the others' cosine is {found.mean_cosine:.4f} on average, at least "
                    f"{found.least_cosine:.4f} (item {found.farthest})"
                )
            said.append(line)
        return [*said, "the same vectors" if self.same else "other vectors"]


def compare_stores(left: ItemEmbeddings, right: ItemEmbeddings) -> StoreDifference:
    """Compare two stores; vectors are read a block at a time.

    Raises:
        InputError: a damaged file.
    """
    one, other = left.manifest, right.manifest
    provenance: dict[str, tuple[str | None, str | None]] = {}
    for field in dataclasses.fields(one):
        values = getattr(one, field.name), getattr(other, field.name)
        if field.name not in _NOT_COMPARED and values[0] != values[1]:
            provenance[field.name] = (str(values[0]), str(values[1]))
    for name in sorted(one.inputs.keys() | other.inputs.keys()):
        if one.inputs.get(name) != other.inputs.get(name):
            provenance[f"input {name}"] = one.inputs.get(name), other.inputs.get(name)
    here, there = set(left.item_ids), set(right.item_ids)
    shared = [i for i in left.item_ids if i in there]
    widths = {
        n: (one.modalities.get(n, 0), other.modalities.get(n, 0))
        for n in one.modalities | other.modalities
    }
    return StoreDifference(
        provenance,
        [i for i in left.item_ids if i not in there],
        [i for i in right.item_ids if i not in here],
        len(shared),
        {n: _modality(left, right, n, shared) for n, (a, b) in widths.items() if a == b},
        {n: pair for n, pair in widths.items() if pair[0] != pair[1]},
    )


def _modality(
    left: ItemEmbeddings, right: ItemEmbeddings, name: str, shared: list[str]
) -> ModalityDifference:
    places = left.positions(shared), right.positions(shared)
    arrays = left.array(name), right.array(name)
    equal, total, least, farthest = 0, 0.0, 1.0, None
    for start in range(0, len(shared), _BLOCK):
        a, b = (x.take(p[start : start + _BLOCK]) for x, p in zip(arrays, places, strict=True))
        differs = (a.view(np.uint16) != b.view(np.uint16)).any(axis=1)
        equal += int((~differs).sum())
        if not differs.any():
            continue
        x, y = a[differs].astype(np.float64), b[differs].astype(np.float64)
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        cosine = (x * y).sum(axis=1) / np.maximum(norms, 1e-30)
        total += float(cosine.sum())
        worst = int(cosine.argmin())
        if farthest is None or cosine[worst] < least:
            least = float(cosine[worst])
            farthest = shared[start + int(np.flatnonzero(differs)[worst])]
    changed = len(shared) - equal
    return ModalityDifference(equal, total / changed if changed else 1.0, least, farthest)


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return f"{value[:12]}…" if len(value) == 64 else value
