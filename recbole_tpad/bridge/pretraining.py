"""S3Rec in one run: ``pretrain_epochs`` of pretraining, then ``epochs`` of fine-tuning.

RecBole trains them in two runs, the second of which unpickles the first one's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole.model.loss import BPRLoss
from torch import nn

from recbole_tpad.errors import InputError

PRETRAIN, FINE_TUNE = "pretrain", "finetune"


def check_stage(external: Mapping[str, Any]) -> None:
    """Refuse keys of a run that RecBole would start from a pretrained file.

    Raises:
        InputError: ``train_stage`` is not 'pretrain', or ``pre_model_path`` is given.
    """
    for key, neutral in (("train_stage", PRETRAIN), ("pre_model_path", "")):
        value = external.get(key, neutral)
        if value != neutral:
            raise InputError(
                f"{key}={value!r}: here one run pretrains for pretrain_epochs and then fine-tunes "
                "for epochs. Leave train_stage and pre_model_path out; pretrain_epochs=0 skips "
                "pretraining."
            )


def pretraining_epochs(config: Any, model: nn.Module) -> int:
    """Return how many of a run's epochs come before fine-tuning; 0 for most models."""
    return int(config["pretrain_epochs"]) if hasattr(model, "train_stage") else 0


def start_fine_tuning(model: Any) -> None:
    """Switch a pretrained model to its fine-tuning loss."""
    model.train_stage = FINE_TUNE
    model.loss_fct = BPRLoss() if model.loss_type == "BPR" else nn.CrossEntropyLoss()
