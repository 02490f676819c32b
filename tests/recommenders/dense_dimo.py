"""DIMO written out densely with loops, from the paper's formulas: the reference for the tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pair_counts(sessions: Sequence[Sequence[int]], n: int) -> np.ndarray:
    """F: every ordered pair of positions with different items."""
    counts = np.zeros((n, n))
    for session in sessions:
        for i, a in enumerate(session):
            for j, b in enumerate(session):
                if i != j and a != b:
                    counts[a, b] += 1
    return counts


def adjacency(counts: np.ndarray, unseen: Sequence[int] = ()) -> Tensor:
    """A: counts divided by their row sums; an unseen item is its own neighbour."""
    with_own = counts.copy()
    for item in unseen:
        with_own[item, item] = 1
    return torch.tensor(with_own / (with_own.sum(1, keepdims=True) + 1e-8))


def partners_of(counts: np.ndarray, item: int, k: int) -> list[int]:
    """The k most frequent partners, smaller ids first among equals."""
    met = [j for j in range(len(counts)) if counts[item, j] > 0]
    return sorted(met, key=lambda j: (-counts[item, j], j))[:k]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.norm().clamp(min=1e-8) * b.norm().clamp(min=1e-8))


def log10_share(x: Tensor, *others: Tensor) -> Tensor:
    return torch.log10(x.exp() / (x.exp() + sum(o.exp() for o in others)))


def attend(module: Any, rows: Tensor, heads: int) -> Tensor:
    """Full self-attention over a session's rows without padding; output at the last position."""
    q = rows @ module.query.weight.T + module.query.bias
    k = rows @ module.key.weight.T + module.key.bias
    v = rows @ module.value.weight.T + module.value.bias
    width = rows.shape[1] // heads
    outputs = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        weights = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(width), dim=1)
        outputs.append(weights @ v[:, part])
    return torch.cat(outputs, dim=1)[-1]


def reference(
    model: Any,
    modality: Tensor | None,
    counts: np.ndarray,
    strangers: Sequence[Sequence[int]],
    contexts: Sequence[Sequence[int]],
    targets: Sequence[int],
    *,
    layers: int,
    heads: int,
    k: int,
    official: bool,
    unseen: Sequence[int] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits over items 1…N−1 and the four losses, the auxiliaries summed.

    Items `unseen` in training have no ID row, are their own neighbour and are no negatives.
    """
    n = len(counts)
    step = torch.eye(n, dtype=torch.float64) + adjacency(counts, unseen)
    power = torch.matrix_power(step, layers)
    seen = torch.tensor([[float(i not in unseen)] for i in range(n)])
    e = power @ (model.item_embedding.weight * seen)
    m = None if modality is None else power @ modality

    logits, proxy, criterion = [], torch.zeros(()), torch.zeros(())
    for context, target in zip(contexts, targets, strict=True):
        rows = e[list(context)]
        s_id, p_id = attend(model.id_attention, rows, heads), rows.mean(0)
        score = s_id @ e.T
        if m is not None:
            rows_mo = m[list(context)]
            s_mo, p_mo = attend(model.modality_attention, rows_mo, heads), rows_mo.mean(0)
            score = score + s_mo @ m.T
            maps = {key: lambda x, f=f: f(x) for key, f in model.proxy_loss.maps.items()}
            if official:
                a = cosine(maps["m1"](s_id), maps["m2"](s_mo))
                b = cosine(maps["m3"](s_id), maps["m4"](p_id))
                c = cosine(maps["m4"](p_id), maps["m5"](p_mo))
                d = cosine(maps["m7"](p_id), maps["m8"](s_id))
            else:
                a = cosine(maps["m1"](s_id), maps["m2"](p_id))
                b = cosine(maps["m3"](s_id), maps["m4"](s_mo))
                c = cosine(maps["m4"](s_mo), maps["m5"](p_mo))
                d = cosine(maps["m7"](s_mo), maps["m8"](s_id))
            proxy = proxy - log10_share(a, b) - log10_share(c, d)
            together = any(target in partners_of(counts, i, k) for i in context)
            y = target - 1 if official else target
            share = log10_share(cosine(s_id, e[y]), cosine(s_mo, m[y]))
            criterion = criterion - (1 if together else -1) * share
        logits.append(score[1:])
    table = torch.stack(logits)
    picked = torch.tensor(targets) - 1
    negatives = table.clone()
    negatives[:, [i - 1 for i in unseen]] = float("-inf")
    ce = -torch.log_softmax(negatives, 1)[torch.arange(len(targets)), picked].mean()

    cooccurrence = torch.zeros(())
    for i in range(1, n):
        best = partners_of(counts, i, k)
        if not best:
            continue
        weights = torch.tensor(counts[i, best] / counts[i, best].sum())
        positive = cosine(e[i], weights @ e[best])
        cooccurrence = cooccurrence - log10_share(
            positive, *(cosine(e[i], e[j]) for j in strangers[i])
        )
    losses = {
        "recommendation": ce,
        "cooccurrence": cooccurrence,
        "proxy": proxy,
        "criterion": criterion,
    }
    return table, losses
