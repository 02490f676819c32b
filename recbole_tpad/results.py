"""The results file (results.json, format 1): typed reading, and mean and spread over seeds.

Written by `recbole_tpad.evaluation`, read by the report and by other programs. Anything may write
such a file; reading therefore checks it and names the key that is wrong.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_tpad.errors import InputError
from recbole_tpad.results_reader import Reader

FORMAT = 1
METRICS = ("HR@5", "HR@10", "NDCG@5", "NDCG@10")
SLICES = ("warm", "rare", "unseen")
# Training interactions of a target from which it is warm; below, it is rare (or unseen at 0).
WARM_FROM = 5
MIN_SESSIONS = 100


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation over seeds.

    Attributes:
        sd: None for a single seed; 0 for a model that no seed changes.
        n: number of seeds.
        sessions: test sessions behind each seed's value, 0 where unknown.
    """

    mean: float
    sd: float | None
    n: int
    sessions: int = 0

    @property
    def low(self) -> float:
        """Mean minus one standard deviation."""
        return self.mean - (self.sd or 0.0)

    @property
    def high(self) -> float:
        """Mean plus one standard deviation."""
        return self.mean + (self.sd or 0.0)

    @property
    def sampling_error(self) -> float:
        """Standard error of a hit rate from this many test sessions, an upper bound for NDCG.

        One hit and one miss are added, so that a rate of 0 is not certain either (Laplace).
        """
        share = (self.mean * self.sessions + 1) / (self.sessions + 2)
        return math.sqrt(max(share * (1 - share), 0.0) / max(self.sessions, 1))

    def separable_from(self, other: Spread) -> bool:
        """Whether the means differ by more than both standard deviations together.

        A deliberately simple rule (assumption): with the few seeds of a suite a p-value would
        promise more than it can hold. Nothing is separable on a single seed or on fewer than
        `MIN_SESSIONS` test sessions. Two models that no seed changes have no spread; for them the
        sampling error of the test sessions takes its place.
        """
        if self.sd is None or other.sd is None:
            return False
        if any(0 < spread.sessions < MIN_SESSIONS for spread in (self, other)):
            return False
        margin = self.sd + other.sd
        if margin == 0:
            margin = self.sampling_error + other.sampling_error
        return abs(self.mean - other.mean) > margin


@dataclass(frozen=True, slots=True)
class Spaces:
    """A run's ID vectors beside its content vectors of the same items.

    `gap`, `separability`, `overlap` and its `chance` are those of `bridge.item_spaces`; `points` is
    a map of both sets, (x, y) in [0, 1], IDs first.
    """

    items: int
    gap: float
    separability: float
    overlap: float
    chance: float
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Row:
    """One run: a model with item embeddings (or None) and a seed. Metrics are in [0, 1].

    `mask_history` says whether a session's own items were left out of the ranking; None in files
    that do not say it by row. `latency_ms` is the median time of one request, where measured;
    `by_frequency` the metrics by training interactions of the target; `item_spaces` how the model's
    ID vectors lie to its content vectors. `rerank` is the account of a re-ranked run: its recall
    ceiling, latencies, and metrics before.
    """

    model: str
    item_embeddings: str | None
    seed: int
    metrics: Mapping[str, float]
    valid: Mapping[str, float]
    slices: Mapping[str, Mapping[str, float]]
    seconds: float | None
    peak_mb: float | None
    loss: str
    parameters: int | None
    epochs: int | None
    best_epoch: int | None
    curve: Sequence[Mapping[str, Any]]
    error: str | None
    mask_history: bool | None = None
    latency_ms: float | None = None
    by_frequency: Sequence[Mapping[str, float | None]] = ()
    item_spaces: Spaces | None = None
    rerank: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of one (model, item embeddings) pair, failed ones left out."""

    model: str
    item_embeddings: str | None
    rows: tuple[Row, ...]

    def metric(self, name: str) -> Spread | None:
        """Mean and spread of a test metric; None where no run has it."""
        sessions = max((ranked_sessions(row) for row in self.rows), default=0)
        return spread((r.metrics[name] for r in self.rows if name in r.metrics), sessions)

    def slice_metric(self, names: Sequence[str], metric: str) -> Spread | None:
        """Mean and spread of a metric over the test rows of several slices together."""
        values = (pooled_slices(row, names, metric) for row in self.rows)
        sessions = max((ranked_sessions(row, names) for row in self.rows), default=0)
        return spread((value for value in values if value is not None), sessions)

    def seconds(self) -> Spread | None:
        """Wall-clock seconds a run took."""
        return spread(row.seconds for row in self.rows if row.seconds is not None)

    def latency_ms(self) -> Spread | None:
        """Median milliseconds of a request."""
        return spread(row.latency_ms for row in self.rows if row.latency_ms is not None)

    def recall_ceiling(self) -> Spread | None:
        """Share of test rows whose target a re-ranker saw; None where nothing was re-ranked."""
        accounts = [row.rerank for row in self.rows if row.rerank is not None]
        return spread(float(account["recall_ceiling"]) for account in accounts)

    def peak_mb(self) -> Spread | None:
        """Peak resident memory of a run in MB."""
        return spread(row.peak_mb for row in self.rows if row.peak_mb is not None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference between two groups on the same test rows.

    Attributes:
        kind: ``best baseline`` (best without embeddings, chosen on validation), ``without
            embeddings`` (the same model), or ``reference`` (the same model with the suite's
            reference embeddings).
        targets: ``all``, or ``rare and unseen`` (fewer than five training interactions).
        against: (model, item embeddings) of the other side.
        low, high: 95% interval of a paired bootstrap; p_holm: p-value after Holm's correction.
        seeds: the smaller number of seeds of both sides; with 1, only sessions were drawn.
    """

    kind: str
    targets: str
    metric: str
    model: str
    item_embeddings: str | None
    against: tuple[str, str | None]
    difference: float
    low: float
    high: float
    p_holm: float
    seeds: int
    sessions: int

    @property
    def certain(self) -> bool:
        """Whether the interval excludes no difference and the corrected p-value is below .05."""
        return (self.low > 0 or self.high < 0) and self.p_holm < 0.05


@dataclass(frozen=True, slots=True)
class Results:
    """A results file; `rows` includes failed runs, `content` is the JSON as read."""

    path: Path
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    content: Mapping[str, Any]

    @property
    def failed(self) -> tuple[Row, ...]:
        """Runs that ended with an error."""
        return tuple(row for row in self.rows if row.error is not None)

    def groups(self) -> list[Group]:
        """Successful runs by (model, item embeddings), in the file's order of first appearance."""
        found: dict[tuple[str, str | None], list[Row]] = {}
        for row in self.rows:
            if row.error is None:
                found.setdefault((row.model, row.item_embeddings), []).append(row)
        return [Group(model, name, tuple(rows)) for (model, name), rows in found.items()]


def spread(values: Iterable[float], sessions: int = 0) -> Spread | None:
    """Return mean and sample standard deviation; None for no values."""
    found = [float(value) for value in values]
    if not found:
        return None
    sd = statistics.stdev(found) if len(found) > 1 else None
    return Spread(statistics.fmean(found), sd, len(found), sessions)


def pooled_slices(row: Row, names: Sequence[str], metric: str) -> float | None:
    """Return a metric over the test rows of several slices: the row-weighted mean.

    None where those slices hold no test rows.
    """
    parts = [row.slices[name] for name in names if name in row.slices]
    parts = [part for part in parts if part.get("rows", 0) > 0 and metric in part]
    total = sum(part["rows"] for part in parts)
    if not total:
        return None
    return sum(part["rows"] * part[metric] for part in parts) / total


def ranked_sessions(row: Row, names: Sequence[str] = SLICES) -> int:
    """Return the number of test sessions in some slices of a run, 0 when the file does not say."""
    return int(sum(row.slices[name].get("rows", 0) for name in names if name in row.slices))


def read_results(path: str | Path) -> Results:
    """Read and check a results file.

    Raises:
        InputError: unreadable, not JSON, another format, or a key that is missing or of the wrong
            type; the message names the file and the key.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"Cannot read the results file {path}: {error.strerror}. `recbole-tpad evaluate` "
            "writes one."
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error
    reader = Reader(path)
    top = reader.mapping(content, "the file's top level")
    if top.get("format") != FORMAT:
        raise InputError(
            f"{path}: key 'format' is {top.get('format')!r}, this version reads {FORMAT}. "
            "Run `recbole-tpad evaluate` again to write the file anew."
        )
    for key in ("dataset", "protocol", "generators", "environment"):
        reader.mapping(reader.get(top, key, ""), key)
    reader.text(reader.get(top["dataset"], "name", "dataset."), "dataset.name")
    for index, command in enumerate(reader.sequence(reader.get(top, "commands", ""), "commands")):
        reader.text(command, f"commands[{index}]")
    listed = reader.sequence(reader.get(top, "rows", ""), "rows")
    rows = tuple(_row(reader, item, f"rows[{i}]") for i, item in enumerate(listed))
    compared = reader.sequence(top.get("comparisons") or [], "comparisons")
    comparisons = tuple(_comparison(reader, c, f"comparisons[{i}]") for i, c in enumerate(compared))
    return Results(path, rows, comparisons, top)


def _row(reader: Reader, value: Any, key: str) -> Row:
    row = reader.mapping(value, key)
    prefix = f"{key}."
    model = reader.text(reader.get(row, "model", prefix), prefix + "model")
    store = reader.get(row, "item_embeddings", prefix)
    error = row.get("error")
    metrics = reader.get(row, "metrics", prefix) if error is None else row.get("metrics") or {}
    parameters, epochs, best_epoch = (
        reader.optional_number(row.get(name), prefix + name)
        for name in ("parameters", "epochs", "best_epoch")
    )
    slices = reader.mapping(row.get("slices") or {}, prefix + "slices")
    curve = reader.sequence(row.get("curve") or [], prefix + "curve")
    return Row(
        model=model,
        item_embeddings=None if store is None else reader.text(store, prefix + "item_embeddings"),
        seed=int(reader.number(reader.get(row, "seed", prefix), prefix + "seed")),
        metrics=reader.numbers(metrics, prefix + "metrics"),
        valid=reader.known_numbers(row.get("valid") or {}, prefix + "valid"),
        slices={
            name: reader.known_numbers(part, f"{prefix}slices.{name}")
            for name, part in slices.items()
        },
        seconds=reader.optional_number(row.get("seconds"), prefix + "seconds"),
        peak_mb=reader.optional_number(row.get("peak_mb"), prefix + "peak_mb"),
        loss=str(row.get("loss") or ""),
        parameters=None if parameters is None else int(parameters),
        epochs=None if epochs is None else int(epochs),
        best_epoch=None if best_epoch is None else int(best_epoch),
        curve=[reader.mapping(point, f"{prefix}curve[{i}]") for i, point in enumerate(curve)],
        error=None if error is None else reader.text(error, prefix + "error"),
        mask_history=reader.optional_flag(row.get("mask_history"), prefix + "mask_history"),
        latency_ms=reader.optional_number(row.get("latency_ms"), prefix + "latency_ms"),
        by_frequency=[
            {
                k: reader.optional_number(v, f"{prefix}by_frequency[{i}].{k}")
                for k, v in part.items()
            }
            for i, part in enumerate(_bins(reader, row, prefix))
        ],
        rerank=None
        if row.get("rerank") is None
        else reader.mapping(row["rerank"], prefix + "rerank"),
        item_spaces=_spaces(reader, row.get("item_spaces"), f"{prefix}item_spaces"),
    )


def _spaces(reader: Reader, value: Any, key: str) -> Spaces | None:
    if value is None:
        return None
    entry, prefix = reader.mapping(value, key), f"{key}."
    numbers = {
        name: reader.number(reader.get(entry, name, prefix), prefix + name)
        for name in ("items", "gap", "separability", "overlap", "chance")
    }
    points = []
    for i, pair in enumerate(reader.sequence(reader.get(entry, "points", prefix), f"{key}.points")):
        where = f"{prefix}points[{i}]"
        if len(reader.sequence(pair, where)) != 2:
            raise reader.fail(where, "must be two numbers")
        points.append((reader.number(pair[0], where), reader.number(pair[1], where)))
    items = int(numbers.pop("items"))
    return Spaces(items=items, points=points, **numbers)


def _bins(reader: Reader, row: Mapping[str, Any], prefix: str) -> list[dict[str, Any]]:
    listed = reader.sequence(row.get("by_frequency") or [], f"{prefix}by_frequency")
    return [reader.mapping(part, f"{prefix}by_frequency[{i}]") for i, part in enumerate(listed)]


def _comparison(reader: Reader, value: Any, key: str) -> Comparison:
    entry, prefix = reader.mapping(value, key), f"{key}."

    def get(name: str) -> Any:
        return reader.get(entry, name, prefix)

    def pair(found: Mapping[str, Any], where: str) -> tuple[str, str | None]:
        store = reader.get(found, "item_embeddings", where)
        return (
            reader.text(reader.get(found, "model", where), where + "model"),
            None if store is None else reader.text(store, where + "item_embeddings"),
        )

    model, store = pair(entry, prefix)
    numbers = {
        name: reader.number(get(name), prefix + name)
        for name in ("difference", "low", "high", "p_holm", "sessions")
    }
    seeds = [
        reader.number(n, f"{prefix}seeds") for n in reader.sequence(get("seeds"), f"{prefix}seeds")
    ]
    return Comparison(
        kind=reader.text(get("kind"), prefix + "kind"),
        targets=reader.text(get("targets"), prefix + "targets"),
        metric=reader.text(get("metric"), prefix + "metric"),
        model=model,
        item_embeddings=store,
        against=pair(reader.mapping(get("against"), prefix + "against"), f"{prefix}against."),
        difference=numbers["difference"],
        low=numbers["low"],
        high=numbers["high"],
        p_holm=numbers["p_holm"],
        seeds=int(min(seeds, default=0)),
        sessions=int(numbers["sessions"]),
    )
