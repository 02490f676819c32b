"""Suites: which models, item embeddings, variants and seeds are compared, from YAML to runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from recbole_tpad.bridge.models import SEVERAL_TABLES
from recbole_tpad.errors import InputError, nearest
from recbole_tpad.presets import preset_values, read_preset, read_yaml

# Models with nothing that an embedding could feed: only the pair with "none" is run.
WITHOUT_EMBEDDINGS = frozenset({"BiPNet", "Popularity", "RepeatLast", "SKNN", "SPop"})
# Models that need the store of one kind of generator, and nothing else.
NEEDS_STORE_OF = {"NoteLLM2NE": "notellm2"}
# Set by the expansion itself; the same keys inside `config` would contradict it.
RESERVED = frozenset({"model", "dataset", "data_path", "seed", "item_embeddings"})
# What all rows of a table must share: masking a session's own items alone moves NDCG@10 by a fifth.
PROTOCOL_KEYS = frozenset({"mask_history", "valid_metric", "topk"})


@dataclass(frozen=True, slots=True)
class Variant:
    """Further rows: some of the suite's pairs once more, with other keys.

    Attributes:
        models: of the suite; each row is called "<model>, <variant>".
        item_embeddings: as in `Suite`.
        config: RecBole keys on top of the suite's and the model's.
    """

    models: tuple[str, ...]
    item_embeddings: tuple[str | None, ...]
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Suite:
    """A grid of runs.

    Attributes:
        name: preset or file name, for messages and the command line shown in the report.
        models: RecBole model names.
        item_embeddings: store names or paths; None is the model's own id embeddings.
        seeds: one run per model, embeddings and seed.
        config: RecBole keys for every run.
        model_config: RecBole keys for one model's runs, by model name.
        variants: by name.
        generators: by the name of a store the suite makes itself: ``generator`` (a preset or a YAML
            path) and the settings that differ from it.
        reference: one of the item embeddings, also of a variant's, which every other one of the
            same row of models is compared with, beside the comparisons every suite has.
    """

    name: str
    models: tuple[str, ...]
    item_embeddings: tuple[str | None, ...] = (None,)
    seeds: tuple[int, ...] = (1, 2, 3)
    config: Mapping[str, Any] | None = None
    model_config: Mapping[str, Mapping[str, Any]] | None = None
    variants: Mapping[str, Variant] | None = None
    generators: Mapping[str, Mapping[str, Any]] | None = None
    reference: str | None = None

    def stores(self) -> list[str]:
        """Return the names of all stores that occur, in order of appearance; "a+b" is two."""
        lists = [self.item_embeddings, *(v.item_embeddings for v in (self.variants or {}).values())]
        return list(dict.fromkeys(part for names in lists for n in names for part in parts_of(n)))


def parts_of(item_embeddings: str | None) -> list[str]:
    """Return the stores of a row: none, one, or those joined by +."""
    return [] if item_embeddings is None else item_embeddings.split("+")


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run of a suite: its place in the table and the complete config for the runner."""

    model: str
    item_embeddings: str | None
    seed: int
    config: Mapping[str, Any]
    variant: str | None = None

    @property
    def row_model(self) -> str:
        """The model's name in tables, with the variant's."""
        return self.model if self.variant is None else f"{self.model}, {self.variant}"

    @property
    def title(self) -> str:
        """How progress lines and messages name the run."""
        store = f" + {self.item_embeddings}" if self.item_embeddings else ""
        return f"{self.row_model}{store}, seed {self.seed}"


def read_suite(
    suite: str | Path | Mapping[str, Any], seeds: int | list[int] | None = None
) -> Suite:
    """Read a suite from a preset's name, a YAML file or a mapping.

    Args:
        suite: 'demo', 'my/suite.yaml', or the mapping itself.
        seeds: replaces the suite's seeds; a number n means seeds 1..n.

    Raises:
        InputError: unknown preset, unknown key (the nearest known one is suggested), or a value of
            the wrong type.
    """
    if isinstance(suite, Mapping):
        name, content = str(suite.get("name", "custom")), dict(suite)
    elif isinstance(suite, Path) or suite.endswith((".yaml", ".yml")):
        path = Path(suite)
        name, content = path.name, read_yaml(path)
    else:
        name, content = suite, read_preset("evaluation", suite)
    content.pop("name", None)

    known = [field.name for field in fields(Suite) if field.name != "name"]
    for key in content:
        if key not in known:
            raise InputError(
                f"Suite '{name}': unknown key '{key}'.{nearest(str(key), known)} "
                f"Known: {', '.join(known)}; RecBole's own keys belong under 'config'."
            )
    models = _names(name, "models", content.get("models"))
    stores = _names(name, "item_embeddings", content.get("item_embeddings", ["none"]))
    config = _mapping(name, "config", content.get("config"))
    _refuse_reserved(f"Suite '{name}': 'config'", config, of_all=True)
    model_config: dict[str, Mapping[str, Any]] = {}
    for model, keys in _mapping(name, "model_config", content.get("model_config")).items():
        if model not in models:
            raise InputError(
                f"Suite '{name}': 'model_config' names '{model}', which is not among its models."
                f"{nearest(str(model), models)}"
            )
        model_config[model] = _mapping(name, f"model_config.{model}", keys)
        _refuse_reserved(f"Suite '{name}': 'model_config.{model}'", model_config[model])
    variants = _variants(name, content.get("variants"), models, stores)
    every = [*_stores(stores), *(s for v in variants.values() for s in v.item_embeddings)]
    return Suite(
        name=name,
        models=tuple(models),
        item_embeddings=_stores(stores),
        seeds=_seeds(name, content.get("seeds", 3) if seeds is None else seeds),
        config=config,
        model_config=model_config,
        variants=variants,
        generators=_generators(name, content.get("generators")),
        reference=_reference(name, content.get("reference"), every),
    )


def expand(suite: Suite, overrides: Mapping[str, Any] | None = None) -> list[RunSpec]:
    """Return the suite's runs, impossible pairs dropped, in table order (seeds innermost).

    Args:
        overrides: RecBole keys that win over the suite's own, for every run.

    Raises:
        InputError: an override of what the suite itself varies, or a suite without any run.
    """
    overrides = dict(overrides or {})
    _refuse_reserved("Overrides of a suite", overrides, of_all=True)
    every = Variant(suite.models, suite.item_embeddings, {})
    rows: list[tuple[str | None, Variant]] = [(None, every), *(suite.variants or {}).items()]
    runs = []
    for name, variant in rows:
        for model in variant.models:
            own = (suite.model_config or {}).get(model, {})
            keys = {**(suite.config or {}), **own, **variant.config, **overrides}
            for store in variant.item_embeddings:
                if store is not None and model in WITHOUT_EMBEDDINGS:
                    continue
                if model in NEEDS_STORE_OF and not _made_by(suite, store, NEEDS_STORE_OF[model]):
                    continue
                if store is not None and model in SEVERAL_TABLES:
                    raise InputError(
                        f"Suite '{suite.name}': {model} cannot take the item embeddings '{store}': "
                        "its items live in several tables (docs/models.md). Leave the model out, "
                        "or run it in a suite whose item_embeddings are [none]."
                    )
                if keys.get("rerank") is not None:
                    # Written out, so that a changed preset or file makes the run anew.
                    keys["rerank"] = preset_values("rerank", keys["rerank"])
                    if keys["rerank"].get("sessions"):
                        raise InputError(
                            f"Suite '{suite.name}': rerank.sessions leaves out test sessions, and "
                            "rows are compared on the same ones. Set it to 0."
                        )
                for seed in suite.seeds:
                    config = {**keys, "model": model, "seed": seed, "item_embeddings": store}
                    runs.append(RunSpec(model, store, seed, config, name))
    if not runs:
        raise InputError(
            f"Suite '{suite.name}' has no possible run: {', '.join(suite.models)} take no item "
            "embeddings. Add 'none' to item_embeddings."
        )
    return runs


def _made_by(suite: Suite, store: str | None, kind: str) -> bool:
    """Whether a store is, by its generator's name or its own, of a kind."""
    if store is None:
        return False
    maker = (suite.generators or {}).get(store, {}).get("generator", store)
    return Path(str(maker)).stem.startswith(kind)


def _stores(names: list[str]) -> tuple[str | None, ...]:
    return tuple(None if name.lower() == "none" else name for name in names)


def _variants(suite: str, value: Any, models: list[str], stores: list[str]) -> dict[str, Variant]:
    found: dict[str, Variant] = {}
    known = [field.name for field in fields(Variant)]
    for name, content in _mapping(suite, "variants", value).items():
        where = f"variants.{name}"
        given = _mapping(suite, where, content)
        for key in given:
            if key not in known:
                raise InputError(
                    f"Suite '{suite}': unknown key '{key}' in '{where}'.{nearest(str(key), known)} "
                    f"Known: {', '.join(known)}."
                )
        config = _mapping(suite, f"{where}.config", given.get("config"))
        _refuse_reserved(f"Suite '{suite}': '{where}.config'", config)
        if not config:
            raise InputError(
                f"Suite '{suite}': '{where}' has no 'config', so its rows would repeat others."
            )
        chosen = _names(suite, f"{where}.models", given.get("models", models))
        for model in chosen:
            if model not in models:
                raise InputError(
                    f"Suite '{suite}': '{where}' names '{model}', which is not among its models."
                    f"{nearest(model, models)}"
                )
        own = _names(suite, f"{where}.item_embeddings", given.get("item_embeddings", stores))
        found[str(name)] = Variant(tuple(chosen), _stores(own), config)
    return found


def _generators(suite: str, value: Any) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for name, content in _mapping(suite, "generators", value).items():
        given = _mapping(suite, f"generators.{name}", content)
        if not isinstance(given.get("generator"), str):
            raise InputError(
                f"Suite '{suite}': 'generators.{name}' must name its 'generator', for example "
                "{generator: tfidf}."
            )
        found[str(name)] = given
    return found


def _reference(suite: str, value: Any, stores: list[str | None]) -> str | None:
    if value is None:
        return None
    named = list(dict.fromkeys(store for store in stores if store is not None))
    if value not in named:
        raise InputError(
            f"Suite '{suite}': 'reference' must be one of its item_embeddings "
            f"({', '.join(named) or 'it has none'}), not {value!r}.{nearest(str(value), named)}"
        )
    return str(value)


def _names(suite: str, key: str, value: Any) -> list[str]:
    """A non-empty list of distinct names; YAML's null stands for 'none'."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"Suite '{suite}': '{key}' must be a list of names, for example [SASRec].")
    names = ["none" if name is None else name for name in value]
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"Suite '{suite}': '{key}' holds {name!r}, which is not a name.")
        if names.count(name) > 1:
            raise InputError(f"Suite '{suite}': '{key}' names '{name}' twice.")
    return names


def _seeds(suite: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        value = list(range(1, value + 1))
    if (
        not isinstance(value, list | tuple)
        or not value
        or any(isinstance(seed, bool) or not isinstance(seed, int) for seed in value)
        or len(set(value)) != len(value)
    ):
        raise InputError(
            f"Suite '{suite}': 'seeds' must be a number of seeds (at least 1) or a list of "
            "different whole numbers."
        )
    return tuple(value)


def _mapping(suite: str, key: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"Suite '{suite}': '{key}' must hold 'key: value' lines.")
    return dict(value)


def _refuse_reserved(where: str, config: Mapping[str, Any], *, of_all: bool = False) -> None:
    for key in config:
        if key in PROTOCOL_KEYS and not of_all:
            raise InputError(
                f"{where} sets '{key}' for some rows only, and rows of different protocols cannot "
                "be compared. Set it under the suite's 'config'."
            )
        if key in RESERVED:
            raise InputError(
                f"{where} sets '{key}', which the suite itself varies: use the suite's models, "
                "item_embeddings and seeds, and the --dataset and --data_path options."
            )
