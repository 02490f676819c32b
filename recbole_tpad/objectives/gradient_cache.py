"""Exact large contrastive batches in bounded memory, on one process or several.

Gradient caching (Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup"): the states are computed chunk by chunk without a graph; the loss over all of them
gives each state's gradient; each chunk is then computed again, with the same dropout, and its
gradient carried into the parameters. Memory is that of one chunk, time two forwards and a backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

States = dict[str, torch.Tensor]
Encode = Callable[[torch.Tensor], States]


def cached_states(
    encode: Encode, rows: torch.Tensor, *, chunk: int, device: torch.device
) -> States:
    """Encode rows in chunks whose graphs are rebuilt in `backward()`, one at a time.

    Only `backward()` carries gradients through; `torch.autograd.grad` does not see the parameters.

    Args:
        encode: rows (C,) → name → (C, width). It may draw from torch's global random numbers (of
            the CPU and of `device`): the second pass draws the same.
        rows: (U,) int64, what to encode.
        chunk: rows at a time.
        device: where `encode` computes.

    Returns:
        Name → (U, width), in the order of `rows`.
    """
    # Without an input that takes a gradient, autograd would not call the backward pass.
    ticket = torch.zeros((), requires_grad=torch.is_grad_enabled())
    names: list[str] = []
    parts = [
        _Chunk.apply(encode, part, device, names, ticket)  # type: ignore[no-untyped-call]
        for part in rows.split(chunk)
    ]
    return {name: torch.cat([p[n] for p in parts]) for n, name in enumerate(names)}


class _Chunk(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]  # the arguments are those of apply
        ctx: torch.autograd.function.FunctionCtx,
        encode: Encode,
        rows: torch.Tensor,
        device: torch.device,
        names: list[str],
        ticket: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.encode, ctx.rows, ctx.device = encode, rows, device  # type: ignore[attr-defined]
        ctx.random = _random_state(device)  # type: ignore[attr-defined]
        with torch.no_grad():
            states = encode(rows)
        names[:] = states
        return tuple(states.values())

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor) -> object:
        device: torch.device = ctx.device  # type: ignore[attr-defined]
        now = _random_state(device)
        _set_random_state(ctx.random, device)  # type: ignore[attr-defined]
        with torch.enable_grad():
            states = tuple(ctx.encode(ctx.rows).values())  # type: ignore[attr-defined]
        _set_random_state(now, device)
        taken = [
            (s, g) for s, g in zip(states, gradients, strict=True) if g is not None and s.grad_fn
        ]
        if taken:
            torch.autograd.backward([s for s, _ in taken], [g for _, g in taken])
        return None, None, None, None, None


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda


def _set_random_state(
    state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device
) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


# -- several processes ---------------------------------------------------------------------------


def processes() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first_process() -> bool:
    """Whether this process is the one that writes files."""
    return processes() == 1 or dist.get_rank() == 0


def own_slice(rows: torch.Tensor) -> torch.Tensor:
    """This process's share of rows (U,): a contiguous slice, lengths differing by at most one."""
    if processes() == 1:
        return rows
    return rows.tensor_split(processes())[dist.get_rank()]


def gather_slices(states: torch.Tensor, total: int) -> torch.Tensor:
    """Put the slices of all processes together, so that each sees every negative.

    Every process computes the same loss on all `total` rows; a slice's gradient is multiplied by
    the number of processes, so that averaging parameter gradients over processes (as the training
    loop does) gives the gradient of that loss, for parameters before and after the gathering.

    Args:
        states: (own rows, width) of `own_slice`.
        total: U, rows of all processes together.

    Returns:
        (U, width), the same on every process.
    """
    if processes() == 1:
        return states
    gathered: torch.Tensor = _Gather.apply(states, total)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx, states: torch.Tensor, total: int
    ) -> torch.Tensor:
        world, rank = dist.get_world_size(), dist.get_rank()
        lengths = [len(part) for part in torch.arange(total).tensor_split(world)]
        padded = states.new_zeros(max(lengths), states.shape[1])
        padded[: len(states)] = states
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        start = sum(lengths[:rank])
        ctx.place = slice(start, start + lengths[rank])  # type: ignore[attr-defined]
        return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> object:
        return gradient[ctx.place] * dist.get_world_size(), None  # type: ignore[attr-defined]


def average_gradients(parameters: Sequence[torch.Tensor]) -> None:
    """Replace every parameter's gradient by its mean over the processes."""
    if processes() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= processes()
