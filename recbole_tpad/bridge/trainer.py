"""Training and evaluation: RecBole's Trainer interface, our checkpoints, ranks by counting."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from recbole.trainer import Trainer
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from recbole_tpad.bridge.batches import TRIMMED, by_length, shuffled, trimmed
from recbole_tpad.bridge.checkpoints import (
    check_origin,
    describe_run,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from recbole_tpad.bridge.pretraining import PRETRAIN, pretraining_epochs, start_fine_tuning
from recbole_tpad.bridge.ranking import (
    Ranking,
    metrics_at,
    recbole_metrics,
)
from recbole_tpad.bridge.scoring import rank_part
from recbole_tpad.bridge.training_state import (
    Progress,
    SavedState,
    read_state,
    save_state,
    state_path,
)
from recbole_tpad.errors import InputError
from recbole_tpad.host_memory import keep_freed_memory
from recbole_tpad.progress import progress

__all__ = ["TRIMMED", "SessionTrainer", "TrainingError"]

logger = logging.getLogger("recbole_tpad")


class TrainingError(InputError):
    """Training cannot go on: the loss is not a number."""


class SessionTrainer(Trainer):  # type: ignore[misc]
    """RecBole's Trainer for sequential models, for CPU or one GPU.

    Differences: the best epoch is kept (in memory, and as safetensors and JSON when saving) and
    put back after training; metrics come from ranks, so that ties are reproducible and
    unrankable scores are an error; no TensorBoard, no wandb; padding that a whole batch shares is
    cut off for the models of `TRIMMED`.
    """

    def __init__(self, config: Any, model: Any) -> None:
        # Not RecBole's own constructor: it opens a TensorBoard writer and a wandb run.
        self.config, self.model = config, model
        self.device = config["device"]
        keep_freed_memory(self.device.type)
        fine_tuning = int(config["epochs"])
        self.pretraining = pretraining_epochs(config, model)
        self.epochs = self.pretraining + fine_tuning
        # A model that only counts is through after one epoch.
        looked_at = fine_tuning if getattr(model, "is_trained", True) else 1
        self.eval_step = max(1, min(int(config["eval_step"]), looked_at))
        self.stopping_step = int(config["stopping_step"])
        self.valid_metric = str(config["valid_metric"]).lower()
        self.valid_metric_bigger = bool(config["valid_metric_bigger"])
        self.clip_grad_norm = config["clip_grad_norm"]
        self.enable_amp = bool(config["enable_amp"])
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=bool(config["enable_scaler"]) and self.device.type == "cuda"
        )
        self.learner, self.weight_decay = config["learner"], config["weight_decay"]
        self.learning_rate, self.logger = config["learning_rate"], logger
        self.optimizer = self._new_optimizer()
        stamp = time.strftime("%Y%m%d-%H%M%S")
        name = f"{config['model']}-{Path(config['data_path']).name}-seed{config['seed']}-{stamp}"
        file = Path(config["checkpoint_dir"]) / f"{name}.safetensors"
        self.progress = Progress(best_valid_score=-math.inf, saved_model_file=str(file))
        self._best_state: dict[str, Tensor] | None = None
        self._state_file: Path | None = None
        self._resumed: SavedState | None = None
        self._started = self._last_kept = time.monotonic()
        self.seconds_before = 0.0  # spent before the interruption that this run goes on from

    @property
    def curve(self) -> list[dict[str, Any]]:
        """One entry an epoch, {"epoch", "train_loss" (mean over batches), "valid": {…}}."""
        return self.progress.curve

    @property
    def best_epoch(self) -> int:
        """Index of the best epoch so far, -1 before the first."""
        return self.progress.best_epoch

    @property
    def best_valid_score(self) -> float:
        """Validation score of the best epoch."""
        return self.progress.best_valid_score

    @property
    def best_valid_result(self) -> dict[str, float] | None:
        """Validation metrics of the best epoch, under RecBole's names."""
        return self.progress.best_valid_result

    @property
    def saved_model_file(self) -> Path:
        """File of the best epoch."""
        return Path(self.progress.saved_model_file)

    # -- training ----------------------------------------------------------------------------------

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, dict[str, float] | None]:
        """Train with early stopping, then put the best epoch's parameters back.

        With ``resume: true`` the state is kept every ``checkpoint_seconds``, and a run of the same
        configuration, data and code goes on where a killed one stopped, to the same result.

        Args:
            train_data, valid_data: RecBole's loaders.
            verbose: log a line an epoch.
            saved: write the best epoch to `saved_model_file`.
            show_progress: progress bars.
            callback_fn: called with (epoch, valid score) after each validation.

        Returns:
            Best validation score and metrics, under RecBole's names.

        Raises:
            TrainingError: the loss is NaN or infinite; the best epoch so far stays saved.
            InputError: the state of an interrupted run is damaged.
        """
        if self.config["train_neg_sample_args"].get("dynamic"):
            train_data.get_model(self.model)
        if self.config["resume"]:
            self._resume(train_data, valid_data)
        # RecBole's SINE turns anomaly mode on for the whole process wherever a script imports one
        # of RecBole's models: every operation is then recorded and checked, several times slower.
        with torch.autograd.set_detect_anomaly(bool(self.config["detect_anomaly"])):
            while not self.progress.finished:
                self._begin_stage()
                self._one_epoch(train_data, valid_data, verbose, saved, show_progress, callback_fn)
                self._keep_state(train_data)
        if self._best_state is not None:
            restore(self.model, self._best_state, "The best epoch")
        return self.best_valid_score, self.best_valid_result

    def _new_optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self._build_optimizer()
        if self.config["fused_optimizer"] is not False and self.device.type == "cpu":
            fuse(optimizer)
        return optimizer

    def _begin_stage(self) -> None:
        """Fine-tune after the last pretraining epoch, with a new optimiser as in RecBole."""
        if getattr(self.model, "train_stage", None) != PRETRAIN:
            return
        if self.progress.epoch >= self.pretraining:
            start_fine_tuning(self.model)
            if self.progress.epoch == self.pretraining and not self.progress.batch:
                self.optimizer = self._new_optimizer()

    def _one_epoch(
        self,
        train_data: Any,
        valid_data: Any,
        verbose: bool,
        saved: bool,
        show_progress: bool,
        callback_fn: Any,
    ) -> None:
        progress = self.progress
        epoch = progress.epoch
        loss = self._train_epoch(train_data, epoch, show_progress=show_progress)
        entry: dict[str, Any] = {"epoch": epoch, "train_loss": loss}
        pretrained = epoch < self.pretraining
        if pretrained:
            entry["stage"] = PRETRAIN
        progress.curve.append(entry)
        progress.epoch, progress.batch, progress.loss = epoch + 1, 0, 0.0
        last = epoch + 1 >= (self.epochs if getattr(self.model, "is_trained", True) else 1)
        progress.finished = last
        if pretrained:
            progress.finished = False
        elif valid_data and not (epoch + 1 - self.pretraining) % self.eval_step:
            ranking = self.rank(valid_data, show_progress)
            result = self._recbole_result(ranking)
            score = self._score(result)
            entry["valid"] = metrics_at(ranking.ranks, self.config["topk"])
            if callback_fn:
                callback_fn(epoch, score)
            bigger = score if self.valid_metric_bigger else -score
            if self.best_epoch < 0 or bigger > self._signed_best():
                self._keep_best(epoch, score, result, train_data._dataset, saved)
                progress.without_gain = 0
            else:
                progress.without_gain += 1
                progress.finished = last or progress.without_gain > self.stopping_step
        elif last and not valid_data:
            self._keep_best(epoch, math.nan, None, train_data._dataset, saved)
        self._log(verbose, entry)

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        """Train for one epoch, or the rest of it; return the mean loss of its batches."""
        if not getattr(self.model, "is_trained", True):
            return 0.0
        self.model.train()
        loss_func = loss_func or self.model.calculate_loss
        generator = train_data.generator.get_state()
        bucketed = self.config["length_bucketing"]
        batches = iter(by_length(self.config, train_data) if bucketed else train_data)
        first = self.progress.batch
        for _ in range(first):
            next(batches)  # trained on before the interruption
        if self._resumed is not None:
            self._resumed.restore_random()
            self._resumed = None
        steps = progress(
            batches,
            desc=f"Epoch {epoch_idx}",
            initial=first,
            total=len(train_data),
            wanted=show_progress,
            delay=0,
        )
        for batch, interaction in enumerate(steps, start=first):
            self.progress.loss += self._step(loss_func, interaction, epoch_idx, batch)
            self.progress.batch = batch + 1
            due = time.monotonic() - self._last_kept >= self._interval
            # A model may hold something between batches that its weights do not tell.
            if self._state_file and due and getattr(self.model, "resumable", True):
                self._keep_state(train_data, generator)
        return self.progress.loss / max(len(train_data), 1)

    def _step(self, loss_func: Any, interaction: Any, epoch: int, batch: int) -> float:
        interaction = trimmed(self.config, interaction.to(self.device))
        if self.config["shuffle_history"]:
            interaction = shuffled(self.config, interaction)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, enabled=self.enable_amp):
            losses = loss_func(interaction)
        loss: Tensor = torch.stack(losses).sum() if isinstance(losses, tuple) else losses
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(self._diverged(epoch, batch, value, interaction))
        if loss.requires_grad:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if self.clip_grad_norm:
                self.scaler.unscale_(self.optimizer)
                clip_grad_norm_(self.model.parameters(), **self.clip_grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return value

    # -- interruption ------------------------------------------------------------------------------

    @property
    def _interval(self) -> float:
        return float(self.config["checkpoint_seconds"] or 0)

    def _resume(self, train_data: Any, valid_data: Any) -> None:
        self._state_file = state_path(self.config, self.model, train_data, valid_data)
        if not self._state_file.is_file():
            return
        state = read_state(self._state_file, self.model, self.optimizer, self.scaler)
        self.progress, self._resumed = state.progress, state
        self.seconds_before = state.progress.seconds
        if state.best is not None:
            self._best_state = {k: v.to(self.device) for k, v in state.best.items()}
        train_data.generator.set_state(state.generator)
        logger.info(
            "going on from epoch %d, batch %d (%s)",
            state.progress.epoch,
            state.progress.batch,
            self._state_file,
        )

    def _keep_state(self, train_data: Any, generator: Tensor | None = None) -> None:
        """Write the state; between epochs the generator's present state is the next epoch's."""
        if self._state_file is None:
            return
        now = time.monotonic()
        due = now - self._last_kept >= self._interval
        if not due and not (self.progress.finished and self._state_file.is_file()):
            return
        self.progress.seconds = self.seconds_before + now - self._started
        begin = train_data.generator.get_state() if generator is None else generator
        save_state(
            self._state_file,
            self.progress,
            self.model,
            self.optimizer,
            self.scaler,
            self._best_state,
            begin,
        )
        self._last_kept = time.monotonic()

    def forget_state(self) -> None:
        """Remove the state kept for resuming; to be called once the run's result is safe."""
        if self._state_file is not None:
            self._state_file.unlink(missing_ok=True)
            # Half-written ones of killed runs.
            for file in self._state_file.parent.glob(f".{self._state_file.name}.*.tmp"):
                file.unlink(missing_ok=True)

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Put a saved checkpoint's parameters into the model (RecBole's name for it).

        A checkpoint holds no optimiser state; to go on with an interrupted run to the same result
        use ``resume: true``.
        """
        tensors, state = read_checkpoint(resume_file)
        check_origin(state, str(self.config["model"]), None, str(resume_file))
        restore(self.model, tensors, str(resume_file))

    def _diverged(self, epoch: int, batch: int, value: float, interaction: Any) -> str:
        users = interaction[self.config["USER_ID_FIELD"]][:3].tolist()
        kept = (
            f" The best epoch so far is in {self.saved_model_file}." if self.progress.saved else ""
        )
        return (
            f"Training of {self.config['model']} diverged: loss {value} in epoch {epoch}, batch "
            f"{batch} (first sessions, as RecBole ids: {users}). Lower learning_rate or set "
            f"clip_grad_norm.{kept}"
        )

    def _signed_best(self) -> float:
        return self.best_valid_score if self.valid_metric_bigger else -self.best_valid_score

    def _score(self, result: dict[str, float]) -> float:
        if self.valid_metric not in result:
            raise InputError(
                f"valid_metric '{self.config['valid_metric']}' is not among the metrics "
                f"{', '.join(result)}; set metrics, topk and valid_metric to agree."
            )
        return result[self.valid_metric]

    def _keep_best(
        self,
        epoch: int,
        score: float,
        result: dict[str, float] | None,
        dataset: Any,
        saved: bool,
    ) -> None:
        progress = self.progress
        progress.best_epoch, progress.best_valid_score = epoch, score
        progress.best_valid_result = result
        state = self.model.state_dict()
        self._best_state = {k: v.detach().clone() for k, v in state.items()}
        if saved:
            content = {
                **describe_run(self.config, dataset),
                "epoch": epoch,
                "valid": result,
                "item_embeddings_sha256": _store_hash(self.model),
            }
            save_checkpoint(self.saved_model_file, self.model, content)
            progress.saved = True

    def _log(self, verbose: bool, entry: dict[str, Any]) -> None:
        if verbose:
            valid = " ".join(f"{k} {v:.4f}" for k, v in entry.get("valid", {}).items())
            logger.info("epoch %d loss %.4f %s", entry["epoch"], entry["train_loss"], valid)

    # -- evaluation --------------------------------------------------------------------------------

    def rank(self, eval_data: Any, show_progress: bool = False) -> Ranking:
        """Rank every row's target among all items; see `rank_part`."""
        return rank_part(self.model, self.config, self.device, eval_data, show_progress)

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | Path | None = None,
        show_progress: bool = False,
    ) -> OrderedDict[str, float]:
        """Evaluate under RecBole's signature and metric names.

        `fit` has put the best epoch back already; `model_file` loads another checkpoint first.
        """
        if load_best_model and model_file is not None:
            tensors, state = read_checkpoint(model_file)
            check_origin(state, str(self.config["model"]), eval_data._dataset, str(model_file))
            restore(self.model, tensors, str(model_file))
        result = OrderedDict(self._recbole_result(self.rank(eval_data, show_progress)))
        # RecBole's own line calls this last.
        self.forget_state()
        return result

    def _recbole_result(self, ranking: Ranking) -> dict[str, float]:
        return recbole_metrics(ranking.ranks, self.config["metrics"], self.config["topk"])


def fuse(optimizer: torch.optim.Optimizer) -> None:
    """Let Adam update each parameter in one pass over memory, where it can.

    torch's default on a CPU makes about ten passes; the arithmetic is the same up to rounding.
    """
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        for group in optimizer.param_groups:
            group["fused"] = all(p.is_floating_point() for p in group["params"])


def _store_hash(model: Any) -> str | None:
    for module in model.modules():
        found = getattr(module, "store_sha256", None)
        if isinstance(found, str):
            return found
    return None
