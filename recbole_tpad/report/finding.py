"""The report's first lines: what the numbers show, and what they do not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from recbole_tpad.results import METRICS, MIN_SESSIONS, Group, Results, Spread, ranked_sessions

COLD = ("rare", "unseen")
_STORE = "\0"  # where a sentence names the item embeddings


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model with item embeddings against the same model without."""

    model: str
    store: str
    before: Spread
    after: Spread

    @property
    def relative(self) -> float | None:
        """Relative change of the mean; None where the mean without embeddings is zero."""
        return self.after.mean / self.before.mean - 1 if self.before.mean else None

    @property
    def verdict(self) -> str:
        """'higher', 'lower' or 'not separable'."""
        if not self.after.separable_from(self.before):
            return "not separable"
        return "higher" if self.after.mean > self.before.mean else "lower"


@dataclass(frozen=True, slots=True)
class Finding:
    """A headline, the sentences behind it, and the reservations."""

    headline: str
    details: tuple[str, ...]
    cautions: tuple[str, ...]


def main_metric(results: Results) -> str:
    """Return the metric that models were selected by, or NDCG@10 where it is not reported."""
    named = str(results.content["protocol"].get("valid_metric", ""))
    return next((m for m in METRICS if m.lower() == named.lower()), "NDCG@10")


def compare(groups: Sequence[Group], metric: str) -> list[Comparison]:
    """Return every pair of groups that differ in having item embeddings only."""
    plain = {g.model: g.metric(metric) for g in groups if g.item_embeddings is None}
    found = []
    for group in groups:
        before, after = plain.get(group.model), group.metric(metric)
        if group.item_embeddings is not None and before is not None and after is not None:
            found.append(Comparison(group.model, group.item_embeddings, before, after))
    return found


def find(results: Results) -> Finding:
    """Return what the results show about the main metric."""
    metric = main_metric(results)
    groups = [group for group in results.groups() if group.metric(metric) is not None]
    if not groups:
        return Finding("No run finished, so there is nothing to compare.", (), _failed(results))
    comparisons = compare(groups, metric)
    headlines = _headlines(comparisons, metric)
    best = _best(groups, metric)
    details = [_sentence(c, metric) for c in comparisons]
    details += _cold_sentences(groups)
    if headlines:
        details.append(best)
    return Finding(
        " ".join(headlines) or best,
        tuple(details),
        (*_cautions(results, groups), *_failed(results)),
    )


def trained_losses(groups: Sequence[Group]) -> list[str]:
    """Return the losses of the runs that trained for at least one epoch."""
    return sorted({r.loss for g in groups for r in g.rows if r.loss and r.epochs != 0})


def percent(share: float | None) -> str:
    """Return a signed percentage, or a dash."""
    if share is None:
        return "n/a"
    return f"{share * 100:+.1f} %".replace("-", "\N{MINUS SIGN}")


def shown(value: Spread) -> str:
    """Return 'mean ± sd' with four decimals, or the value alone for one seed."""
    return f"{value.mean:.4f}" if value.sd is None else f"{value.mean:.4f} ± {value.sd:.4f}"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _headlines(comparisons: Sequence[Comparison], metric: str) -> list[str]:
    """One sentence for all item embeddings that it holds for."""
    of_sentence: dict[str, list[str]] = {}
    for store in dict.fromkeys(c.store for c in comparisons):
        own = [c for c in comparisons if c.store == store]
        of_sentence.setdefault(_store_headline(_STORE, own, metric), []).append(store)
    return [
        sentence.replace(_STORE, _each_of(stores, begins=sentence.startswith(_STORE)))
        for sentence, stores in of_sentence.items()
    ]


def _each_of(names: Sequence[str], *, begins: bool) -> str:
    if len(names) == 1:
        return names[0]
    each = "Each of" if begins else "each of"
    return f"{each} {', '.join(names[:-1])} and {names[-1]}"


def _store_headline(store: str, comparisons: Sequence[Comparison], metric: str) -> str:
    if any(c.before.sd is None or c.after.sd is None for c in comparisons):
        up = sum(c.after.mean > c.before.mean for c in comparisons)
        return (
            f"With {store}, {metric} is higher for {up} of {_models(len(comparisons))}, on a "
            "single seed: the spread is unknown, so this is no evidence yet."
        )
    verdicts = [c.verdict for c in comparisons]
    total, up, down = len(verdicts), verdicts.count("higher"), verdicts.count("lower")
    if up == down == 0:
        return f"With {store}, no change of {metric} is separable from the spread over seeds."
    parts = [f"raises {metric} for {up} of {_models(total)}"] if up else []
    parts += (
        [f"lowers {'it' if up else metric} for {down}{'' if up else f' of {_models(total)}'}"]
        if down
        else []
    )
    rest = total - up - down
    tail = f"; {rest} not separable from the spread over seeds" if rest else ""
    return f"{store} {' and '.join(parts)}{tail}."


def _models(count: int) -> str:
    return "1 model" if count == 1 else f"{count} models"


def _sentence(c: Comparison, metric: str) -> str:
    verdict = c.verdict
    if c.before.sd is None or c.after.sd is None:
        verdict = "spread unknown"
    elif c.before.sd == c.after.sd == 0:
        verdict = f"{verdict}; the same for every seed, judged by sampling error"
    return (
        f"{c.model}: {metric} {shown(c.before)} without, {shown(c.after)} with {c.store} "
        f"({percent(c.relative)}; {verdict}, {_seeds(min(c.before.n, c.after.n))})."
    )


def _cold_sentences(groups: Sequence[Group]) -> list[str]:
    """The effect on targets with little or no training data, where content should help most."""
    plain = {g.model: g.slice_metric(COLD, "HR@10") for g in groups if g.item_embeddings is None}
    parts = []
    for group in groups:
        before, after = plain.get(group.model), group.slice_metric(COLD, "HR@10")
        if group.item_embeddings is None or before is None or after is None:
            continue
        if before.mean == after.mean == 0:
            continue
        verdict = "" if after.separable_from(before) else ", not separable"
        parts.append(
            f"{group.model} {before.mean:.4f} → {after.mean:.4f} with "
            f"{group.item_embeddings}{verdict}"
        )
    if not parts:
        return []
    return [f"Targets with fewer than 5 training interactions, HR@10: {'; '.join(parts)}."]


def _best(groups: Sequence[Group], metric: str) -> str:
    ranked = sorted(
        ((group, value) for group in groups if (value := group.metric(metric)) is not None),
        key=lambda pair: -pair[1].mean,
    )
    (first, top), others = ranked[0], ranked[1:]
    sentence = f"Highest {metric}: {_name(first)}, {shown(top)} ({_seeds(top.n)})"
    if others and top.sd is None:
        return sentence + "; one seed, so no ranking is claimed."
    close = [_name(group) for group, value in others if not top.separable_from(value)]
    return sentence + (f"; not separable from {', '.join(close)}." if close else ".")


def _name(group: Group) -> str:
    return group.model + (f" with {group.item_embeddings}" if group.item_embeddings else "")


def _cautions(results: Results, groups: Sequence[Group]) -> list[str]:
    cautions = [
        "Separable means that the means differ by more than both standard deviations over seeds "
        f"together, on at least {MIN_SESSIONS} test sessions; it is a reading aid, not a "
        "significance test."
    ]
    counts = [ranked_sessions(row) for group in groups for row in group.rows]
    sessions = max(counts, default=0)
    rates = [v.mean for group in groups if (v := group.metric("HR@10")) is not None]
    if sessions and rates:
        rate = max(rates)
        error = math.sqrt(rate * (1 - rate) / sessions)
        cautions.append(
            f"The spread is over seeds only. With {sessions:,} test sessions, sampling alone gives "
            f"an HR@10 of {rate:.3f} a standard error of about {error:.4f}."
        )
    losses = trained_losses(groups)
    if len(losses) > 1:
        cautions.append(
            f"The models differ in loss ({', '.join(losses)}), which by itself changes metrics."
        )
    return cautions


def _failed(results: Results) -> tuple[str, ...]:
    count = len(results.failed)
    if not count:
        return ()
    runs = "1 run" if count == 1 else f"{count} runs"
    return (f"{runs} of {len(results.rows)} failed and are left out; they are listed below.",)
