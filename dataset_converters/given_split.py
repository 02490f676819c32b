"""A split that the source gives, with a validation part carved where it gives none."""

from __future__ import annotations

from dataset_converters.errors import InputError
from dataset_converters.sessions import IntArray, Part, SessionTable
from dataset_converters.split import PARTS, Split


def split_as_given(table: SessionTable, parts: IntArray, *, valid_share: float = 0.1) -> Split:
    """Put each session into the part that the source names.

    Without a session in "valid", the last `valid_share` of the training sessions, in the table's
    order, become it, so an item may occur in valid and test and yet not in train (assumption, as
    under "dimo" of `split_tables`).

    Args:
        parts: (N,) 0 for train, 1 for valid, 2 for test; one entry a session of `table`.

    Raises:
        InputError: `valid_share` outside (0, 1), or a part without a session.
    """
    if not 0 < valid_share < 1:
        raise InputError(f"valid_share={valid_share} must lie between 0 and 1.")
    train, valid, test = (
        (parts == code).nonzero()[0].astype(parts.dtype) for code in range(len(PARTS))
    )
    if len(valid) == 0:
        first = len(train) - int(len(train) * valid_share)
        train, valid = train[:first], train[first:]
    sizes = dict(zip(PARTS, (len(train), len(valid), len(test)), strict=True))
    if not all(sizes.values()):
        raise InputError(
            "The source's split leaves a part without sessions: "
            + ", ".join(f"{name} {size}" for name, size in sizes.items())
            + ". Loosen the filters, or add sessions."
        )
    made = [Part(table, indices) for indices in (train, valid, test)]
    return Split(made[0], made[1], made[2], tuple(made))
