"""Which models there are: RecBole's sequential ones and ours."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from recbole_tpad.errors import InputError, nearest
from recbole_tpad.own_code import is_own, own_class

OUR_MODELS = {
    "BiPNet": "recbole_tpad.recommenders.bipnet",
    "CoOccurrence": "recbole_tpad.recommenders.cooccurrence",
    "DIMO": "recbole_tpad.recommenders.dimo",
    "MMSBR": "recbole_tpad.recommenders.mmsbr",
    "NoteLLM2NE": "recbole_tpad.recommenders.notellm2ne",
    "Popularity": "recbole_tpad.recommenders.popularity",
    "RepeatLast": "recbole_tpad.recommenders.repeatlast",
    "SKNN": "recbole_tpad.recommenders.sknn",
    "SPop": "recbole_tpad.recommenders.spop",
}
# Models that cannot take item embeddings because their items live in more than one table.
SEVERAL_TABLES = frozenset({"FPMC", "GRU4RecKG", "HGN", "NPE", "RepeatNet", "TransRec"})
# RecBole's general models score a user by id; here users are sessions, unseen before their test.
_GENERAL = {
    "BPR": "DIMO or SASRec",
    "ItemKNN": "CoOccurrence",
    "Pop": "Popularity",
}


def recbole_folder() -> Path:
    """Return the folder of the installed RecBole package, without importing it.

    Raises:
        InputError: RecBole is not installed.
    """
    spec = importlib.util.find_spec("recbole")
    if spec is None or spec.origin is None:
        raise InputError("RecBole is not installed. Run 'pip install recbole==1.2.1 --no-deps'.")
    return Path(spec.origin).parent


def builtin_models() -> list[str]:
    """Return the names of RecBole's sequential models."""
    folder = recbole_folder()
    modules = {p.stem for p in (folder / "model" / "sequential_recommender").glob("*.py")}
    names = (p.stem for p in (folder / "properties" / "model").glob("*.yaml"))
    return sorted(n for n in names if n.lower() in modules)


def general_models() -> list[str]:
    """Return the names of RecBole's recommenders that are not sequential."""
    folder = recbole_folder()
    sequential = {p.stem for p in (folder / "model" / "sequential_recommender").glob("*.py")}
    names = (p.stem for p in (folder / "properties" / "model").glob("*.yaml"))
    return sorted(n for n in names if n.lower() not in sequential)


def known_models() -> list[str]:
    """Return every model name `run` accepts."""
    return sorted({*OUR_MODELS, *builtin_models()})


def model_class(name: str) -> Any:
    """Return the class of a model by name, or from a user's ``FILE.py`` or ``FILE.py:Class``.

    Raises:
        InputError: unknown (the nearest name is suggested), or not sequential; a file without one
            `SequentialRecommender`.
    """
    if is_own(name):
        return own_class(name, _is_sequential, "SequentialRecommender")
    if name in OUR_MODELS:
        return getattr(importlib.import_module(OUR_MODELS[name]), name)
    known = known_models()
    if name == "KSR":
        raise InputError(
            "KSR does not run in RecBole 1.2.1 either: its code multiplies 32-bit by 64-bit "
            "numbers, which torch refuses. Use GRU4RecKG, or SASRec with item_embeddings."
        )
    if name in general_models():
        instead = _GENERAL.get(name, "CoOccurrence or Popularity")
        raise InputError(
            f"{name} is a general recommender of RecBole's: it scores users by id and has nothing "
            "for a session it was not trained on, leaves the history out of its ranking where "
            f"sequential models keep it, and is therefore not comparable here. Use {instead}."
        )
    if name not in known:
        raise InputError(
            f"Unknown sequential model '{name}'.{nearest(name, known)} Known: {', '.join(known)}; "
            "or a Python file with a model of your own."
        )
    # RecBole's SINE, imported with the package, turns autograd's anomaly mode on for the whole
    # process: every backward pass of every model then records and checks each operation.
    anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    try:
        module = importlib.import_module(f"recbole.model.sequential_recommender.{name.lower()}")
    finally:
        torch.autograd.set_detect_anomaly(*anomaly)
    return getattr(module, name)


def _is_sequential(found: type) -> bool:
    from recbole.model.abstract_recommender import SequentialRecommender

    return issubclass(found, SequentialRecommender)


def build_model(config: Any, train: Any) -> Any:
    """Build the configured model on RecBole's training data set, with its item embeddings.

    Raises:
        InputError: one of RecBole's models refuses its keys; item embeddings are refused.
    """
    from recbole_tpad.recommenders.item_embeddings import attach_item_embeddings
    from recbole_tpad.recommenders.score_adjustments import attach_score_adjustments

    try:
        model = config.model_class(config, train).to(config["device"])
    except (NotImplementedError, ValueError, KeyError, AssertionError) as error:
        if isinstance(error, InputError) or not config.model_class.__module__.startswith(
            "recbole."
        ):
            raise
        raise InputError(f"{config['model']} refuses its configuration: {error!r}") from error
    if not getattr(config.model_class, "takes_item_embeddings", False):
        attach_item_embeddings(model, config, train)
    attach_score_adjustments(model, config, train)
    _refuse_unused_smoothing(model, config)
    return model


def _refuse_unused_smoothing(model: Any, config: Any) -> None:
    from recbole_tpad.recommenders.row_smoothing import NONE, RowSmoothing

    given = config["row_smoothing"]
    if given in (None, NONE) or any(isinstance(m, RowSmoothing) for m in model.modules()):
        return
    reason = "needs item_embeddings"
    if config["item_embeddings"] is not None:
        reason = "changes item tables made from item_embeddings, and this model has none"
    raise InputError(f"{config['model']}: row_smoothing={given} {reason}. Leave it out.")
