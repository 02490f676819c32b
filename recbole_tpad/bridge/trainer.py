"""Training and evaluation: RecBole's Trainer interface, our checkpoints, ranks by counting."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from recbole_tpad.bridge.checkpoints import read_checkpoint, restore, save_checkpoint
from recbole_tpad.bridge.ranking import (
    Ranking,
    metrics_at,
    recbole_metrics,
    refuse_constant,
    rows_per_batch,
    target_ranks,
)
from recbole_tpad.errors import InputError

logger = logging.getLogger("recbole_tpad")

_POOL = 50  # batches

# Models whose scores do not change when padding to the right is cut off.
TRIMMED = {
    "CORE",
    "CoOccurrence",
    "DIMO",
    "GCSAN",
    "GRU4Rec",
    "NARM",
    "Popularity",
    "RepeatLast",
    "SASRec",
    "SKNN",
    "SPop",
    "SRGNN",
    "STAMP",
}


class TrainingError(InputError):
    """Training cannot go on: the loss is not a number."""


class SessionTrainer(Trainer):  # type: ignore[misc]
    """RecBole's Trainer for sequential models, for CPU or one GPU.

    Differences: the best epoch is kept (in memory, and as safetensors and JSON when saving) and
    put back after training; metrics come from ranks, so that ties are reproducible and
    unrankable scores are an error; no TensorBoard, no wandb; padding that a whole batch shares is
    cut off for the models of `TRIMMED`.

    Attributes:
        curve: one entry an epoch, {"epoch", "train_loss" (mean over batches), "valid": {…}}.
        best_epoch: index of the best epoch so far, -1 before the first.
    """

    def __init__(self, config: Any, model: Any) -> None:
        # Not RecBole's own constructor: it opens a TensorBoard writer and a wandb run.
        self.config, self.model = config, model
        self.device = config["device"]
        self.epochs = int(config["epochs"])
        self.eval_step = max(1, min(int(config["eval_step"]), max(self.epochs, 1)))
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
        self.optimizer = self._build_optimizer()
        stamp = time.strftime("%Y%m%d-%H%M%S")
        name = f"{config['model']}-{Path(config['data_path']).name}-seed{config['seed']}-{stamp}"
        self.saved_model_file = Path(config["checkpoint_dir"]) / f"{name}.safetensors"
        self.curve: list[dict[str, Any]] = []
        self.best_epoch, self.best_valid_score = -1, -math.inf
        self.best_valid_result: dict[str, float] | None = None
        self._best_state: dict[str, Tensor] | None = None
        self._saved = False

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
        """
        trained = getattr(self.model, "is_trained", True)
        without_gain = 0
        for epoch in range(self.epochs if trained else 1):
            loss = self._train_epoch(train_data, epoch, show_progress=show_progress)
            entry: dict[str, Any] = {"epoch": epoch, "train_loss": loss}
            self.curve.append(entry)
            if not valid_data or (epoch + 1) % self.eval_step:
                self._log(verbose, entry)
                continue
            ranking = self.rank(valid_data, show_progress)
            result = self._recbole_result(ranking)
            score = self._score(result)
            entry["valid"] = metrics_at(ranking.ranks, self.config["topk"])
            self._log(verbose, entry)
            if callback_fn:
                callback_fn(epoch, score)
            bigger = score if self.valid_metric_bigger else -score
            if self.best_epoch < 0 or bigger > self._signed_best():
                self._keep_best(epoch, score, result, saved)
                without_gain = 0
            else:
                without_gain += 1
                if without_gain > self.stopping_step:
                    break
        if not valid_data:
            self._keep_best(len(self.curve) - 1, math.nan, None, saved)
        elif self._best_state is not None:
            restore(self.model, self._best_state, "The best epoch")
        return self.best_valid_score, self.best_valid_result

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        """Train for one epoch; return the mean loss of its batches."""
        if not getattr(self.model, "is_trained", True):
            return 0.0
        self.model.train()
        loss_func = loss_func or self.model.calculate_loss
        total = 0.0
        batches = self._by_length(train_data) if self.config["length_bucketing"] else train_data
        progress = tqdm(
            batches,
            desc=f"Epoch {epoch_idx}",
            total=len(train_data),
            disable=not show_progress,
            leave=False,
        )
        for batch, interaction in enumerate(progress):
            interaction = self._trimmed(interaction.to(self.device))
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, enabled=self.enable_amp):
                losses = loss_func(interaction)
            loss: Tensor = torch.stack(losses).sum() if isinstance(losses, tuple) else losses
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(self._diverged(epoch_idx, batch, value, interaction))
            if loss.requires_grad:
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                if self.clip_grad_norm:
                    self.scaler.unscale_(self.optimizer)
                    clip_grad_norm_(self.model.parameters(), **self.clip_grad_norm)
                self.scaler.step(self.optimizer)
                self.scaler.update()
            total += value
        return total / max(len(train_data), 1)

    def _diverged(self, epoch: int, batch: int, value: float, interaction: Any) -> str:
        users = interaction[self.config["USER_ID_FIELD"]][:3].tolist()
        kept = f" The best epoch so far is in {self.saved_model_file}." if self._saved else ""
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
        self, epoch: int, score: float, result: dict[str, float] | None, saved: bool
    ) -> None:
        self.best_epoch, self.best_valid_score, self.best_valid_result = epoch, score, result
        state = self.model.state_dict()
        self._best_state = {k: v.detach().clone() for k, v in state.items()}
        if saved:
            content = {
                "epoch": epoch,
                "valid": result,
                "config": self.config.for_json() if hasattr(self.config, "for_json") else {},
                "item_embeddings_sha256": _store_hash(self.model),
            }
            save_checkpoint(self.saved_model_file, self.model, content)
            self._saved = True

    def _log(self, verbose: bool, entry: dict[str, Any]) -> None:
        if verbose:
            valid = " ".join(f"{k} {v:.4f}" for k, v in entry.get("valid", {}).items())
            logger.info("epoch %d loss %.4f %s", entry["epoch"], entry["train_loss"], valid)

    # -- evaluation --------------------------------------------------------------------------------

    @torch.no_grad()
    def rank(self, eval_data: Any, show_progress: bool = False) -> Ranking:
        """Rank every row's target among all items.

        Rows are scored in the order of their length, so that little padding is computed; the
        result is in the order of the data set.

        Raises:
            EvaluationError: NaN scores, or the same score for all items in every row.
            InputError: the model has no full ranking.
        """
        self.model.eval()
        dataset = eval_data._dataset
        lengths = dataset.inter_feat[self.config["ITEM_LIST_LENGTH_FIELD"]].numpy()
        order = np.argsort(lengths, kind="stable")
        ranks = np.zeros(len(order), dtype=np.int64)
        constant = np.zeros(len(order), dtype=np.bool_)
        for rows in tqdm(
            list(self._batches(order, dataset.item_num)),
            desc="Ranking",
            disable=not show_progress,
            leave=False,
        ):
            interaction = eval_data.collate_fn(rows)[0].to(self.device)
            interaction = self._trimmed(interaction)
            scores = self._scores(interaction, dataset.item_num)
            history = interaction[self._list_field] if self.config["mask_history"] else None
            targets = interaction[self.config["ITEM_ID_FIELD"]]
            found, same = target_ranks(scores, targets, history)
            ranks[rows], constant[rows] = found.cpu().numpy(), same.cpu().numpy()
        refuse_constant(constant, str(self.config["model"]))
        rows_of = dataset.inter_feat
        return Ranking(
            ranks, rows_of[dataset.iid_field].numpy(), rows_of[dataset.uid_field].numpy()
        )

    def _batches(self, order: Any, n_items: int) -> Iterator[Any]:
        budget = self.config["rank_memory_mb"] or 512
        size = rows_per_batch(n_items, budget, int(self.config["eval_batch_size"]))
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def _scores(self, interaction: Any, n_items: int) -> Tensor:
        try:
            scores = self.model.full_sort_predict(interaction)
        except NotImplementedError as error:
            raise InputError(
                f"{self.config['model']} has no full ranking (full_sort_predict); it cannot be "
                "compared here."
            ) from error
        found: Tensor = scores.detach().reshape(-1, n_items)
        return found if found.dtype.is_floating_point else found.float()

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
            tensors, _ = read_checkpoint(model_file)
            restore(self.model, tensors, str(model_file))
        return OrderedDict(self._recbole_result(self.rank(eval_data, show_progress)))

    def _recbole_result(self, ranking: Ranking) -> dict[str, float]:
        return recbole_metrics(ranking.ranks, self.config["metrics"], self.config["topk"])

    # -- batches -----------------------------------------------------------------------------------

    @property
    def _list_field(self) -> str:
        return str(self.config["ITEM_ID_FIELD"] + self.config["LIST_SUFFIX"])

    def _by_length(self, train_data: Any) -> Iterator[Any]:
        """Yield an epoch's batches with sessions of similar length in each.

        The rows are shuffled, cut into pools of `_POOL` batches, sorted by length within a pool,
        and the batches shuffled again: chance stays in what is together and in the order.
        """
        lengths = train_data._dataset.inter_feat[self.config["ITEM_LIST_LENGTH_FIELD"]]
        generator, size = train_data.generator, int(train_data.step)
        order = torch.randperm(len(lengths), generator=generator)
        batches: list[Tensor] = []
        for pool in torch.split(order, size * _POOL):
            batches += torch.split(pool[lengths[pool].argsort(stable=True)], size)
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield train_data.collate_fn(batches[index].numpy())

    def _trimmed(self, interaction: Any) -> Any:
        if self.config["model"] not in TRIMMED:
            return interaction
        longest = int(interaction[self.config["ITEM_LIST_LENGTH_FIELD"]].max())
        items = interaction[self._list_field]
        if longest >= items.shape[1]:
            return interaction
        trimmed = dict(interaction.interaction)
        trimmed[self._list_field] = items[:, :longest]
        return Interaction(trimmed)


def _store_hash(model: Any) -> str | None:
    for module in model.modules():
        found = getattr(module, "store_sha256", None)
        if isinstance(found, str):
            return found
    return None
