"""Runs one recommender on one data set: our `run`, and `run_recbole` with RecBole's signature."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from recbole.utils import init_seed

from recbole_tpad.bridge.adjustments import (
    check_adjustments,
    cold_rates,
    fit_adjustments,
    flooding_warning,
)
from recbole_tpad.bridge.config import SessionConfig, parse_value
from recbole_tpad.bridge.dataset import Loaders, load_data
from recbole_tpad.bridge.examples import example_sessions
from recbole_tpad.bridge.item_spaces import item_spaces
from recbole_tpad.bridge.models import build_model
from recbole_tpad.bridge.ranking import Ranking, metrics_at, slices_by_frequency
from recbole_tpad.bridge.saved_runs import load_run
from recbole_tpad.bridge.scoring import request_milliseconds
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.bridge.trainer import SessionTrainer
from recbole_tpad.recommenders.sessions import training_item_counts

__all__ = ["RunResult", "build_model", "evaluate_saved_run", "load_run", "run", "run_recbole"]

logger = logging.getLogger("recbole_tpad")
TOPK = (5, 10)


@dataclass(frozen=True, slots=True)
class RunResult:
    """One row of ``results.json``, and what it was computed from.

    Attributes:
        metrics, valid: HR@k and NDCG@k on the test and on the validation part (best epoch, with
            what was chosen after it).
        slices: test metrics by training frequency of the target: ``warm`` (≥ 5), ``rare``
            (1 to 4), ``unseen`` (0), each with its number of ``rows``; with item embeddings and
            cold targets also the rates of `cold_rates`.
        adjustments: what was chosen after training: ``kernel_weight``, ``cold_shift``, ….
        seconds: wall-clock time of training and evaluation, without reading the data.
        peak_mb: peak memory; on a GPU what torch allocated, else the process's resident peak.
        parameters: trainable parameters.
        epochs, best_epoch: epochs trained, and the index of the best one.
        curve: {"epoch", "train_loss", "valid"} an epoch.
        examples: what `example_sessions` returns, with the key ``example_sessions``.
        item_spaces: what `item_spaces` returns, with the key ``item_spaces``.
        latency_ms: median time of one request, with ``latency_sessions`` or ``rerank``; else None.
        rerank: with ``rerank``, what `Reranked.summary` says: recall ceiling, latencies, metrics
            before; else None.
        mask_history: whether a session's own items were left out of the ranking.
        ranks, targets, sessions: test rows: rank of the target, item token, session token.
        target_counts: training interactions of each row's target.
        checkpoint: the best epoch's file, None if not saved.
        recbole: valid and test metrics under RecBole's names.
    """

    model: str
    item_embeddings: str | None
    seed: int
    metrics: dict[str, float]
    valid: dict[str, float]
    slices: dict[str, dict[str, float]]
    seconds: float
    peak_mb: float
    loss: str
    parameters: int
    epochs: int
    best_epoch: int
    curve: list[dict[str, Any]]
    mask_history: bool = False
    error: str | None = None
    adjustments: dict[str, float] = field(default_factory=dict)
    latency_ms: float | None = None
    rerank: dict[str, Any] | None = None
    examples: list[dict[str, Any]] = field(default_factory=list)
    item_spaces: dict[str, Any] | None = None
    ranks: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    targets: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    target_counts: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(0, dtype=np.int64)
    )
    checkpoint: str | None = None
    recbole: dict[str, Any] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """Return the row of ``results.json`` (format 1)."""
        extra = {"ranks", "targets", "sessions", "target_counts", "checkpoint", "recbole"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in extra}

    @property
    def hr(self) -> float:
        """HR@10 on the test part."""
        return self.metrics["HR@10"]

    @property
    def ndcg(self) -> float:
        """NDCG@10 on the test part."""
        return self.metrics["NDCG@10"]


def run(
    config_dict: Mapping[str, Any],
    *,
    config_file_list: Sequence[str | Path] | None = None,
    saved: bool = False,
    on_epoch: Any = None,
) -> RunResult:
    """Train and test one model.

    Args:
        config_dict: keys with typed values, ``model`` and ``dataset`` among them; the model may
            be a class. RecBole's keys, the model's, and those of ``properties/overall.yaml``.
        config_file_list: YAML files, below `config_dict`.
        saved: write the best epoch to ``checkpoint_dir``.
        on_epoch: called with (epoch, valid score) after each validation.

    Returns:
        The result; the same configuration and seed give the same metrics on the same machine.

    Raises:
        InputError: anything about the configuration, the data set or the item embeddings.
        TrainingError, EvaluationError: NaN losses, scores that cannot be ranked.
    """
    with numpy_names():
        config = SessionConfig(None, None, config_file_list, config_dict)
        return _run(config, saved=saved, on_epoch=on_epoch)


def run_recbole(
    model: Any = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
    queue: Any = None,
) -> dict[str, Any]:
    """Train and test with RecBole's signature and return keys, where its own does not run.

    As in RecBole, ``--key=value`` arguments of the program override `config_dict`; here only keys
    the configuration knows, read as YAML.

    Returns:
        best_valid_score, valid_score_bigger, best_valid_result, test_result.
    """
    given = dict(config_dict or {})
    with numpy_names():
        config = SessionConfig(model, dataset, config_file_list, given)
        overrides = _program_arguments(config)
        if overrides:
            config = SessionConfig(model, dataset, config_file_list, {**given, **overrides})
        result = _run(config, saved=saved, on_epoch=None).recbole
    if queue is not None:
        queue.put(result)
    return result


def objective_function(
    config_dict: Mapping[str, Any] | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    saved: bool = True,
) -> dict[str, Any]:
    """Be RecBole's function of this name, for its ``HyperTuning``: one run of ours.

    Unlike RecBole's it takes item embeddings for RecBole's own models. `config_dict` holds what is
    fixed and what is tried (``learning_rate``, ``item_embeddings_fusion``, …).

    Returns:
        `run_recbole`'s keys, and model.
    """
    with numpy_names():
        config = SessionConfig(None, None, config_file_list, config_dict)
        result = _run(config, saved=saved, on_epoch=None)
    return {"model": result.model, **result.recbole}


def evaluate_saved_run(
    checkpoint: str | Path,
    config_dict: Mapping[str, Any] | None = None,
    *,
    trust_checkpoint: bool = False,
) -> RunResult:
    """Test a saved run again, without training.

    Args:
        checkpoint, config_dict, trust_checkpoint: see `load_run`.

    Returns:
        The result; ``epochs`` is 0, ``best_epoch`` -1 and ``adjustments`` empty, since nothing
        was trained or chosen here.

    Raises:
        InputError: see `load_run`.
    """
    config, model, loaders = load_run(checkpoint, config_dict, trust_checkpoint=trust_checkpoint)
    start = time.perf_counter()
    trainer = SessionTrainer(config, model)
    with numpy_names():
        ranking = trainer.rank(loaders.test, bool(config["show_progress"]))
    seconds = time.perf_counter() - start
    return _result(config, trainer, loaders, ranking, {}, seconds, str(checkpoint))


def _run(config: SessionConfig, *, saved: bool, on_epoch: Any) -> RunResult:
    check_adjustments(config)
    seed = int(config["seed"])
    init_seed(seed, config["reproducibility"])
    loaders = load_data(config)
    train = loaders.train._dataset
    if config["rerank"] is not None:
        _check_rerank(config, train)
    # Again, so that the model's start does not depend on what reading the data drew.
    init_seed(seed, config["reproducibility"])
    if config["device"].type == "cuda":
        torch.cuda.reset_peak_memory_stats(config["device"])
    start = time.perf_counter()
    trainer = SessionTrainer(config, build_model(config, train))
    show = bool(config["show_progress"])
    trainer.fit(loaders.train, loaders.valid, saved=saved, show_progress=show, callback_fn=on_epoch)
    adjustments = fit_adjustments(config, trainer.model, trainer, loaders, saved=saved)
    ranking = trainer.rank(loaders.test, show)
    seconds = trainer.seconds_before + time.perf_counter() - start
    file = str(trainer.saved_model_file) if saved else None
    result = _result(config, trainer, loaders, ranking, adjustments, seconds, file)
    if adjustments:  # the best epoch's score is without them
        ranks = trainer.rank(loaders.valid, show).ranks
        result = replace(result, valid=metrics_at(ranks, config["topk"]))
    trainer.forget_state()
    return result


def _result(
    config: Any,
    trainer: SessionTrainer,
    loaders: Loaders,
    ranking: Ranking,
    adjustments: dict[str, float],
    seconds: float,
    checkpoint: str | None,
) -> RunResult:
    model, curve, train = trainer.model, trainer.curve, loaders.train._dataset
    trained = getattr(model, "is_trained", True)
    interactions = training_item_counts(train)
    counts = interactions[ranking.targets]
    item_token = train.field2id_token[train.iid_field]
    session_token = train.field2id_token[train.uid_field]
    topk = sorted({*TOPK, *config["topk"]})
    latency = request_milliseconds(
        model, config, config["device"], loaders.test, int(config["latency_sessions"] or 0)
    )
    account = None
    if config["rerank"] is not None:
        ranking, latency, account = _rerank(model, config, loaders, topk)
        counts = interactions[ranking.targets]
    slices = slices_by_frequency(ranking.ranks, counts, topk)
    for name, rates in cold_rates(config, model, loaders).items():
        slices[name].update(rates)
    warned = flooding_warning(slices, max(config["topk"]))
    adjusted = getattr(model, "score_adjustments", None)
    if warned is not None and (adjusted is None or adjusted.mode == "score"):
        logger.warning(warned)
    store = config["item_embeddings"]
    best = curve[trainer.best_epoch] if trainer.best_epoch >= 0 else {}
    shown = example_sessions(
        model, config, config["device"], loaders.test, int(config["example_sessions"] or 0)
    )
    return RunResult(
        latency_ms=latency,
        rerank=account,
        examples=shown,
        item_spaces=item_spaces(
            model, torch.as_tensor(interactions > 0), int(config["item_spaces"] or 0)
        ),
        model=str(config["model"]),
        item_embeddings=None if store is None else Path(str(store)).name,
        seed=int(config["seed"]),
        metrics=metrics_at(ranking.ranks, topk),
        valid=dict(best.get("valid", {})),
        slices=slices,
        adjustments=adjustments,
        seconds=seconds,
        peak_mb=_peak_mb(config["device"] if config["device"].type == "cuda" else None),
        loss=str(config["loss_type"] or "model's own") if trained else "none",
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad) if trained else 0,
        epochs=len(curve) if trained else 0,
        best_epoch=trainer.best_epoch,
        curve=curve if trained else [],
        mask_history=bool(config["mask_history"]),
        ranks=ranking.ranks,
        targets=tuple(str(t) for t in item_token[ranking.targets]),
        sessions=tuple(str(t) for t in session_token[ranking.sessions]),
        target_counts=counts,
        checkpoint=checkpoint,
        recbole={
            "best_valid_score": trainer.best_valid_score,
            "valid_score_bigger": config["valid_metric_bigger"],
            "best_valid_result": trainer.best_valid_result,
            "test_result": trainer._recbole_result(ranking),
        },
    )


def _check_rerank(config: Any, dataset: Any) -> None:
    """Refuse an impossible re-ranking; what it needs is imported only by runs that re-rank."""
    from recbole_tpad.bridge.reranking import check_rerank

    check_rerank(config, dataset)


def _rerank(
    model: Any, config: Any, loaders: Loaders, topk: Sequence[int]
) -> tuple[Ranking, float, dict[str, Any]]:
    from recbole_tpad.bridge.reranking import check_rerank, rerank_run

    settings = check_rerank(config, loaders.train._dataset)
    return rerank_run(settings, model, config, loaders, topk)


def _program_arguments(config: SessionConfig) -> dict[str, Any]:
    found = {}
    for argument in sys.argv[1:]:
        key, separator, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not separator or key in ("model", "dataset"):
            continue
        if key in config:
            found[key] = parse_value(text)
        else:
            logger.warning("%s is ignored: the configuration has no key '%s'.", argument, key)
    return found


def _peak_mb(device: torch.device | None) -> float:
    if device is not None:
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
