"""MMSBR and BiPNet written from their equations, one session and one item at a time, all dense.

Weights come from the model under test; nothing else does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def linear(module: Any, x: Tensor) -> Tensor:
    y = x @ module.weight.T
    return y if module.bias is None else y + module.bias


def norm(module: Any, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + module.eps) * module.weight + module.bias


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention over (tokens, d), one head and one query after the other."""
    width = query.shape[1] // heads
    out = torch.zeros_like(query)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        for i in range(len(query)):
            logits = (key[:, part] * query[i, part]).sum(1) / math.sqrt(width)
            out[i, part] = (logits.softmax(0)[:, None] * value[:, part]).sum(0)
    return out


# -- MMSBR ---------------------------------------------------------------------------------------


def pivot_layer(layer: Any, tokens: Tensor) -> Tensor:
    mixed = attend(
        linear(layer.query, tokens),
        linear(layer.key, tokens),
        linear(layer.value, tokens),
        layer.heads,
    )
    tokens = norm(layer.norm, tokens + linear(layer.mix, mixed))
    wide = linear(layer.wide, tokens).clamp(min=0)
    return norm(layer.norm, tokens + linear(layer.narrow, wide))


def mmsbr_items(model: Any) -> Tensor:
    fusion, size = model.fusion, model.price_mean.weight.shape[1]
    found = []
    for item in range(model.n_items):
        pivots = model.pivots.weight[item].view(model.n_pivots, size)
        parts = []
        for table, features in zip(model.modalities, fusion.features, strict=True):
            rows = [
                torch.tanh(linear(second, torch.tanh(linear(first, table.weight[item]))))
                for first, second in zip(features.first, features.second, strict=True)
            ]
            parts.append(torch.stack(rows))
        for layers in fusion.layers:
            for k, layer in enumerate(layers):
                read = pivot_layer(layer, torch.cat([pivots, parts[k]]))
                pivots = (read[: model.n_pivots] + pivots) / 2
                parts[k] = parts[k] + read[model.n_pivots :]
        hidden = linear(fusion.first, pivots.flatten()).clamp(min=0)
        found.append(linear(fusion.second, hidden).clamp(min=0))
    return torch.stack(found)


def plus(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, torch.exp(x))


def wasserstein(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor) -> Tensor:
    return ((m1 - m2) ** 2).sum() + ((c1.sqrt() - c2.sqrt()) ** 2).sum()


def mmsbr_price(model: Any, session: list[int]) -> tuple[Tensor, Tensor]:
    attention = model.price_attention
    level, kind = model.item_price[session], model.item_category[session]
    mean, cov = model.price_mean.weight[level], model.price_cov.weight[level]
    category = norm(attention.norm, model.category.weight[kind])
    states = {
        "mean": norm(attention.norm, mean) + category,
        "cov": plus(norm(attention.norm, cov) + category),
    }
    maps = attention.maps
    made = {
        f"{k}_{r}": linear(maps[f"{k}_{r}"], states[k])
        for k in states
        for r in ("query", "key", "value")
    }
    made = {n: plus(x) if n.startswith("cov") else x for n, x in made.items()}
    size, heads = mean.shape[1], attention.heads
    width = size // heads
    out_mean, out_cov = torch.zeros_like(mean), torch.zeros_like(cov)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        for i in range(len(session)):
            distances = torch.stack(
                [
                    wasserstein(
                        made["mean_query"][i, part],
                        made["cov_query"][i, part],
                        made["mean_key"][j, part],
                        made["cov_key"][j, part],
                    )
                    for j in range(len(session))
                ]
            )
            weights = (-distances / math.sqrt(width)).softmax(0)
            out_mean[i, part] = (weights[:, None] * made["mean_value"][:, part]).sum(0)
            out_cov[i, part] = (weights[:, None] ** 2 * made["cov_value"][:, part]).sum(0)
    last_mean = norm(attention.norm, linear(maps["mean_output"], out_mean) + mean)[-1]
    last_cov = norm(attention.norm, linear(maps["cov_output"], out_cov) + cov)[-1]
    return last_mean, plus(last_cov)


def mmsbr_scores(model: Any, sessions: list[list[int]]) -> Tensor:
    """Scores of items 1…, (B, N − 1)."""
    items = mmsbr_items(model)
    rows = []
    for session in sessions:
        own = items[session]
        mean = linear(model.mean, own.mean(0))
        weights = [linear(model.weight, torch.sigmoid(linear(model.own, x) + mean)) for x in own]
        interest = sum(w * x for w, x in zip(weights, own, strict=True))
        price_mean, price_cov = mmsbr_price(model, session)
        scores = []
        for item in range(1, model.n_items):
            kind = model.category.weight[model.item_category[item]]
            level = model.item_price[item]
            distance = wasserstein(
                price_mean,
                price_cov,
                model.price_mean.weight[level] + kind,
                plus(model.price_cov.weight[level] + kind),
            )
            fit = (interest * items[item]).sum()
            scores.append(fit + fit * distance)
        rows.append(torch.stack(scores))
    return torch.stack(rows)


def mmsbr_contrast(model: Any) -> Tensor:
    """Both contrasts, by the whole matrix of exponentials."""
    real = [m.weight[1:] for m in model.modalities]
    pseudo = [p.weight[1:] for p in model.pseudo] or [real[1], real[0]]
    total = real[0].new_zeros(())
    for x, g in zip(real, pseudo, strict=True):
        matrix = torch.exp(x @ g.T)
        top = matrix.sort(dim=1, descending=True).values[:, : model.negatives]
        total = total + torch.log10(top.sum(1)).sum() - torch.log10(matrix.diagonal()).sum()
    return total


# -- BiPNet --------------------------------------------------------------------------------------


def transition(sessions: list[np.ndarray], count: int) -> Tensor:
    held = torch.zeros(len(sessions), count)
    for s, values in enumerate(sessions):
        for value in values:
            if value:
                held[s, value] = 1
    by_session = held / held.sum(1, keepdim=True).clamp(min=1)
    by_value = held.T / held.T.sum(1, keepdim=True).clamp(min=1)
    return by_value @ by_session


def bipnet_tables(model: Any, sessions: list[np.ndarray]) -> dict[str, Tensor]:
    kinds = ("item", "price", "category", "brand")
    others = {
        "item": ("price", "category", "brand"),
        "price": ("item", "category", "brand"),
        "category": ("price", "item", "brand"),
        "brand": ("price", "category", "item"),
    }
    graph = model.graph
    value = {"item": torch.arange(model.n_items)}
    value |= {k: graph.get_buffer(f"{k}_of_item") for k in kinds[1:]}
    now = {k: model.tables[k].weight for k in kinds}
    moves = {
        k: transition([value[k][torch.from_numpy(s)].numpy() for s in sessions], len(now[k]))
        for k in kinds
    }
    met = {}
    for a in kinds:
        for b in kinds:
            matrix = torch.zeros(len(now[a]), len(now[b]))
            matrix[value[a][1:], value[b][1:]] = 1
            met[a, b] = matrix
    for _ in range(graph.layers):
        following = {}
        for kind in kinds:
            messages = []
            for other in others[kind]:
                if kind == "item":
                    messages.append(met[kind, other] @ now[other])
                    continue
                keys = linear(graph.attentions[f"{kind}_{other}"].map, now[other])
                weights = (now[kind] @ keys.T).softmax(1) * met[kind, other]
                total = weights.sum(1, keepdim=True)
                weights = weights / torch.where(total > 0, total, torch.ones_like(total))
                messages.append(weights @ now[other])
            gate, own = graph.gates[kind], now[kind]
            joint = linear(gate.joint, torch.cat([own, *messages], dim=1))
            mixed = own
            for single, message in zip(gate.single, messages, strict=True):
                mixed = mixed + torch.tanh(joint + linear(single, message)) * message
            following[kind] = mixed + moves[kind] @ own
        now = following
    return now


def bipnet_preferences(
    model: Any, tables: dict[str, Tensor], session: list[int]
) -> tuple[Tensor, Tensor]:
    place = model.position.weight[: len(session)]
    level = model.graph.get_buffer("price_of_item")[session]
    prices = linear(model.place_price, torch.cat([place, tables["price"][level]], dim=1))
    attention = model.price_attention
    price = attend(
        linear(attention.query, prices),
        linear(attention.key, prices),
        linear(attention.value, prices),
        attention.heads,
    )[-1]
    rows = tables["item"][session[::-1]]
    final = rows[0] if model.variant == "corrected" else rows[-1]
    placed = linear(model.place_item, torch.cat([place, rows], dim=1))
    shift = linear(model.mean, rows.mean(0)) + linear(model.last, final)
    weights = [linear(model.weight, torch.sigmoid(linear(model.own, x) + shift)) for x in placed]
    interest = torch.stack([w * x for w, x in zip(weights, rows, strict=True)]).sum(0)
    merge = model.merge
    joint = torch.tanh(linear(merge["interest"], interest) + linear(merge["price"], price))
    of_price = torch.sigmoid(
        linear(merge["gate_price"], price) + linear(merge["gate_price_joint"], joint)
    )
    of_interest = torch.sigmoid(
        linear(merge["gate_interest"], interest) + linear(merge["gate_interest_joint"], joint)
    )
    return (
        of_interest * interest + (1 - of_interest) * price,
        of_price * price + (1 - of_price) * interest,
    )
