"""The made shop's truth: attributes, what follows what, sessions, and the best possible ranking.

What an item shows (colour, shape) is independent of what its text says (style, brand), and the next
item in a session depends on both, so that neither modality alone explains the sessions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_tpad.errors import InputError

KINDS = ("mug", "lamp", "clock", "vase", "bowl", "tray")
COLOURS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "black")
SHAPES = ("round", "square", "triangle", "star", "cross", "ring")
BRANDS = (
    "Norvane",
    "Haldenby",
    "Castlemoor",
    "Fjordlund",
    "Mirabell",
    "Oakhurst",
    "Pemberline",
    "Tallisker",
)
STYLES = ("rustic", "retro", "modern", "minimalist", "baroque", "industrial")
VALUES = {"kind": KINDS, "colour": COLOURS, "shape": SHAPES, "brand": BRANDS, "style": STYLES}
# The attributes that decide what follows, in the order of the weights in `ShopConfig`.
DRIVERS = ("colour", "style", "shape", "brand")
DAYS = 365
FIRST_DAY = 17_167  # 2017-01-01, in days since 1970
_ALPHABET = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"))

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ShopConfig:
    """Size and nature of a made shop.

    Attributes:
        colour_weight, style_weight, shape_weight, brand_weight: log-odds gained by an item whose
            attribute is the one that follows the last item's.
        popularity_exponent: popularity is (rank + popularity_shift) ** -popularity_exponent.
        late_share: share of the items that go on sale between `late_from` and `late_to`
            (fractions of the year).
        late_boost: factor on a late item's popularity: a new arrival is shown more.
        min_length, max_length, mean_length: interactions a session.
        image_size: edge of the square photographs, in pixels.
        noise: standard deviation of the photographs' pixel noise, of 255.
    """

    seed: int = 7
    items: int = 600
    users: int = 1500
    sessions: int = 4000
    colour_weight: float = 3.0
    style_weight: float = 3.0
    shape_weight: float = 1.5
    brand_weight: float = 1.5
    popularity_exponent: float = 1.2
    popularity_shift: float = 10.0
    late_share: float = 0.15
    late_from: float = 0.81
    late_to: float = 0.9
    late_boost: float = 6.0
    min_length: int = 2
    max_length: int = 8
    mean_length: float = 4.0
    image_size: int = 64
    noise: float = 8.0

    def __post_init__(self) -> None:
        if self.items < 3 * self.max_length or self.users < 1 or self.sessions < 10:
            raise InputError(
                "A shop needs at least 10 sessions, 1 user and three times max_length items."
            )
        if not 2 <= self.min_length <= self.mean_length <= self.max_length:
            raise InputError("Session lengths need 2 <= min_length <= mean_length <= max_length.")
        if not (0 <= self.late_share < 1 and 0 <= self.late_from <= self.late_to <= 1):
            raise InputError("late_share must lie in [0, 1), late_from and late_to in [0, 1].")
        if self.sessions > self.users * DAYS // 2:
            raise InputError("Too many sessions: a user has at most one a day. Raise users.")

    @property
    def weights(self) -> Float64:
        """(4,) weights in the order of `DRIVERS`."""
        return np.array(
            [self.colour_weight, self.style_weight, self.shape_weight, self.brand_weight]
        )


@dataclass(frozen=True)
class Truth:
    """Everything that decides the sessions; N items.

    Attributes:
        item_ids: N ids.
        attributes: for each attribute of `VALUES`, (N,) indices into its values.
        follows: for each driver, (values,) the value that follows each value. Values come in
            pairs that follow each other, so what belongs together never looks the same: a tower
            that only knows what items are cannot know what follows what.
        popularity: (N,) unnormalised; `launch_day`: (N,) first day on sale, days since 1970.
        weights: (4,) in the order of `DRIVERS`.
    """

    item_ids: Sequence[str]
    attributes: Mapping[str, Int64]
    follows: Mapping[str, Int64]
    popularity: Float64
    launch_day: Int64
    weights: Float64

    def value(self, item: int, attribute: str) -> str:
        return VALUES[attribute][int(self.attributes[attribute][item])]

    @cached_property
    def matches(self) -> Float64:
        """(4, N, N) 1 where item j has the driver's value that follows item i's."""
        rows = []
        for driver in DRIVERS:
            values = self.attributes[driver]
            rows.append(self.follows[driver][values][:, None] == values[None, :])
        return np.array(rows, dtype=np.float64)

    @cached_property
    def affinity(self) -> Float64:
        """(N, N) log-odds of j after i from their attributes, without popularity."""
        return np.tensordot(self.weights, self.matches, axes=1)

    def affinity_after(self, item: int) -> Float64:
        """(N,) a row of `affinity`; for shops whose N×N table would not fit in memory."""
        row = np.zeros(len(self.item_ids))
        for weight, driver in zip(self.weights, DRIVERS, strict=True):
            values = self.attributes[driver]
            row += weight * (values == self.follows[driver][values[item]])
        return row

    @cached_property
    def profiles(self) -> tuple[Float64, Int64]:
        """(P, P) odds of an item of profile q after one of profile p, and (N,) profiles.

        A profile is a combination of the drivers' values. Items of one have the same affinities,
        and there are far fewer profiles than items of a large shop.
        """
        values = np.stack([self.attributes[driver] for driver in DRIVERS])
        first, profile = np.unique(values, axis=1, return_index=True, return_inverse=True)[1:]
        rows = np.array([self.affinity_after(item)[first] for item in first])
        return np.exp(rows), profile.reshape(-1)

    @cached_property
    def position(self) -> dict[str, int]:
        """Index of each item id."""
        return {item_id: index for index, item_id in enumerate(self.item_ids)}


@dataclass(frozen=True)
class MadeSession:
    """One user's session on one day: N item indices and their times (seconds since 1970)."""

    user: str
    items: list[int]
    times: list[int]


def make_truth(config: ShopConfig) -> Truth:
    """Draw the catalogue: balanced independent attributes, transitions, popularity, launch days."""
    rng = np.random.default_rng([config.seed, 0])
    n = config.items
    attributes = {
        name: rng.permutation(np.arange(n) % len(values)) for name, values in VALUES.items()
    }
    follows = {}
    for driver in DRIVERS:
        first, second = rng.permutation(len(VALUES[driver])).reshape(2, -1)
        partner = np.empty(len(VALUES[driver]), dtype=np.int64)
        partner[first], partner[second] = second, first
        follows[driver] = partner
    rank = rng.permutation(n) + 1
    popularity: Float64 = np.power(
        rank + config.popularity_shift, -config.popularity_exponent, dtype=np.float64
    )
    late = rng.permutation(n) < round(config.late_share * n)
    popularity = popularity * np.where(late, config.late_boost, 1.0)
    earliest, latest = int(config.late_from * DAYS), int(config.late_to * DAYS)
    launch = np.where(late, rng.integers(earliest, latest + 1, size=n), 0) + FIRST_DAY
    return Truth(
        item_ids=_codes(rng, "B0", 8, n),
        attributes=attributes,
        follows=follows,
        popularity=popularity,
        launch_day=launch.astype(np.int64),
        weights=config.weights,
    )


def make_sessions(config: ShopConfig, truth: Truth) -> list[MadeSession]:
    """Draw sessions, spread evenly over the year, each a Markov chain without repeats.

    The first item follows popularity, each next one popularity times the exponential of its
    affinity to the item before; only items on sale that day. A user has one session a day at most.
    """
    rng = np.random.default_rng([config.seed, 1])
    users = _codes(rng, "A", 13, config.users)
    offsets = (np.arange(config.sessions) + rng.random(config.sessions)) / config.sessions
    days = FIRST_DAY + np.floor(offsets * DAYS).astype(np.int64)
    spread = config.max_length - config.min_length
    share = (config.mean_length - config.min_length) / spread if spread else 0.0
    lengths = config.min_length + rng.binomial(spread, share, size=config.sessions)
    seen_today: set[str] = set()
    odds, profile = truth.profiles
    sessions = []
    for k, (day, length) in enumerate(zip(days.tolist(), lengths.tolist(), strict=True)):
        if k and day != days[k - 1]:
            seen_today.clear()
        user = users[rng.integers(len(users))]
        while user in seen_today:
            user = users[rng.integers(len(users))]
        seen_today.add(user)
        base = truth.popularity * (truth.launch_day <= day)
        items = [_draw(rng, base)]
        while len(items) < length:
            weight = base * odds[profile[items[-1]]][profile]
            weight[items] = 0.0
            items.append(_draw(rng, weight))
        # From six in the morning, minutes apart: the order is known and the day never ends.
        start = day * 86_400 + int(rng.integers(6 * 3600, 20 * 3600))
        times = start + np.cumsum(rng.integers(20, 900, size=length))
        sessions.append(MadeSession(user, items, times.tolist()))
    return sessions


def oracle_scores(
    truth: Truth, contexts: Sequence[Sequence[str]], days: Sequence[int] | None = None
) -> Float64:
    """Return the log-odds of each item coming next, by the law that made the sessions.

    No ranking can have a higher expected hit rate. Items of the context, and with `days` (days
    since 1970, one a context) items not yet on sale, score -inf.

    Returns:
        (contexts, N), columns in the order of `truth.item_ids`.

    Raises:
        InputError: a context is empty or has an item that is not the shop's.
    """
    scores = np.empty((len(contexts), len(truth.item_ids)))
    log_popularity = np.log(truth.popularity)
    for row, context in enumerate(contexts):
        unknown = [item for item in context if item not in truth.position]
        if unknown or not context:
            raise InputError(
                f"Context {row} "
                + (f"has the unknown item '{unknown[0]}'." if unknown else "is empty.")
            )
        indices = [truth.position[item] for item in context]
        scores[row] = log_popularity + truth.affinity_after(indices[-1])
        scores[row, indices] = -np.inf
        if days is not None:
            scores[row, truth.launch_day > days[row]] = -np.inf
    return scores


def truth_to_json(truth: Truth) -> dict[str, Any]:
    """Return the truth as JSON values, attribute values by name."""
    return {
        "weights": dict(zip(DRIVERS, truth.weights.tolist(), strict=True)),
        "follows": {
            driver: {
                VALUES[driver][a]: VALUES[driver][b]
                for a, b in enumerate(truth.follows[driver].tolist())
            }
            for driver in DRIVERS
        },
        "items": {
            item_id: {
                **{name: truth.value(index, name) for name in VALUES},
                "popularity": float(truth.popularity[index]),
                "launch_day": int(truth.launch_day[index]),
            }
            for index, item_id in enumerate(truth.item_ids)
        },
    }


def truth_from_json(content: Mapping[str, Any]) -> Truth:
    """Inverse of `truth_to_json`.

    Raises:
        InputError: a key or value is missing.
    """
    try:
        items = content["items"]
        return Truth(
            item_ids=list(items),
            attributes={
                name: np.array([values.index(item[name]) for item in items.values()])
                for name, values in VALUES.items()
            },
            follows={
                driver: np.array(
                    [VALUES[driver].index(content["follows"][driver][v]) for v in VALUES[driver]]
                )
                for driver in DRIVERS
            },
            popularity=np.array([item["popularity"] for item in items.values()]),
            launch_day=np.array([item["launch_day"] for item in items.values()]),
            weights=np.array([content["weights"][driver] for driver in DRIVERS]),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"Not the truth of a made shop ({error!r}). Make the shop again."
        ) from error


def _draw(rng: np.random.Generator, weight: Float64) -> int:
    cumulative = np.cumsum(weight)
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def _codes(rng: np.random.Generator, prefix: str, length: int, count: int) -> list[str]:
    """Draw `count` different codes of `length` characters after `prefix`."""
    codes: dict[str, None] = {}
    while len(codes) < count:
        codes[prefix + "".join(rng.choice(_ALPHABET, size=length))] = None
    return list(codes)
