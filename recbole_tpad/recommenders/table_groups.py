"""Propagation once for several batches: tables that wait, and what the batches ask of them.

At batch 50 most of a step goes through every item: dropout, propagation both ways, Adam. With
``propagate_every: k`` that is done once for k batches. The propagated tables stay as they are for
the group; its last batch hands the mean of the k gradients back through the propagation, so the
tables take the step of a batch k times as large while all other weights take one a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class TableGroup:
    """The tables of a group of `every` training batches.

    Args:
        every: batches of a group, k; with 1 the tables are made anew for each.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.clear()

    def clear(self) -> None:
        """Forget the group: the next batch begins another."""
        self._made: Tensor | None = None
        self._waiting: Tensor | None = None
        self.batch = 0

    @property
    def complete(self) -> bool:
        """Whether no batch waits for the rest of its group."""
        return self.batch == 0

    def next_table(self, make: Callable[[], Tensor]) -> Tensor:
        """Return the tables of the next batch, (N, columns), made by `make` if it is the first.

        The batch's gradient must have been computed before the next one asks.
        """
        if self.every == 1:
            return make()
        if self._made is None or self._waiting is None:
            self._made = make()
            self._waiting = self._made.detach().requires_grad_()
        self.batch += 1
        if self.batch < self.every:
            return self._waiting
        found: Tensor = _LastOfGroup.apply(self._made, self._waiting.grad, self.every)  # type: ignore[no-untyped-call]
        self.clear()
        return found


class _LastOfGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, before: Tensor | None, every: int) -> Tensor:
        ctx.before, ctx.every = before, every
        return table.view_as(table)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        total = grad if ctx.before is None else grad + ctx.before
        return total / ctx.every, None, None
