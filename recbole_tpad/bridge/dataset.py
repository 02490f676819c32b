"""RecBole's data set and loaders for our data set folders."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from recbole.data.dataset import SequentialDataset
from recbole.data.utils import create_samplers, get_dataloader
from recbole.utils import FeatureType
from torch.nn.functional import pad

from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.sessions import training_fingerprint


class SessionDataset(SequentialDataset):  # type: ignore[misc]
    """RecBole's sequential data set with ids in the order of sorted tokens.

    RecBole numbers tokens by first appearance over train, valid and test together, so a change in
    the test part would renumber items and change initial weights. Sorted ids depend on the
    vocabulary alone, and make the order of tied items that of their tokens.
    """

    def _remap(self, remap_list: list[tuple[Any, str, Any]]) -> None:
        fields = {field for _, field, _ in remap_list}
        if not fields & {self.uid_field, self.iid_field}:
            super()._remap(remap_list)
            return
        tokens, ends = self._concat_remaped_tokens(remap_list)
        if pd.isna(tokens).any():
            raise InputError(
                f"{self.dataset_path}: an id in {', '.join(sorted(fields))} is empty or reads as "
                "a missing value to pandas (NA, null, nan). Rename it."
            )
        vocabulary, ids = np.unique(tokens.astype(str), return_inverse=True)
        id_token = np.array(["[PAD]", *vocabulary])
        token_id = {token: i for i, token in enumerate(id_token)}
        for (feat, field, kind), new in zip(remap_list, np.split(ids + 1, ends), strict=True):
            self.field2id_token[field], self.field2token_id[field] = id_token, token_id
            if kind == FeatureType.TOKEN_SEQ:
                lengths = [len(row) for row in feat[field]]
                feat[field] = np.split(new, np.cumsum(lengths)[:-1])
            else:
                feat[field] = new


class Loaders(NamedTuple):
    """RecBole's loaders of the three parts."""

    train: Any
    valid: Any
    test: Any


def load_data(config: Any) -> Loaders:
    """Read the data set of a `SessionConfig` and build RecBole's loaders; see `read_data`."""
    return read_data(config)[1]


def read_data(config: Any) -> tuple[SessionDataset, Loaders]:
    """Read the data set of a `SessionConfig`; return it whole, and RecBole's loaders.

    Raises:
        InputError: an empty part, lists longer than MAX_ITEM_LIST_LENGTH, or a training part that
            is not the one ``split.json`` describes.
    """
    folder = Path(config["data_path"])
    split = _read_split(folder) if config.data_set_is_ours else None
    try:
        with warnings.catch_warnings():
            # RecBole's use of pandas, correct for the pandas versions this package allows.
            warnings.filterwarnings("ignore", category=FutureWarning)
            dataset = SessionDataset(config)
            parts = dataset.build()
    except (ValueError, KeyError) as error:
        raise InputError(f"RecBole cannot read the data set in {folder}: {error}") from error
    names = ("train", "valid", "test")
    for name, part in zip(names, parts, strict=True):
        if len(part) == 0:
            raise InputError(f"The {name} part of {folder} is empty; split the data otherwise.")
    width = max(p.inter_feat[dataset.iid_field + config["LIST_SUFFIX"]].shape[1] for p in parts)
    if width > config["MAX_ITEM_LIST_LENGTH"]:
        raise InputError(
            f"MAX_ITEM_LIST_LENGTH={config['MAX_ITEM_LIST_LENGTH']} is shorter than the lists of "
            f"{folder} (up to {width} items). Leave the key out, or convert with --max_len."
        )
    _widen(parts, dataset.iid_field + config["LIST_SUFFIX"], config["MAX_ITEM_LIST_LENGTH"])
    if split is not None:
        _check_training_part(parts[0], split, folder)
    samplers = create_samplers(config, dataset, parts)
    loaders = [
        get_dataloader(config, name)(
            config, part, sampler, shuffle=name == "train" and bool(config["shuffle"])
        )
        for name, part, sampler in zip(names, parts, samplers, strict=True)
    ]
    return dataset, Loaders(*loaders)


def _widen(parts: list[Any], field: str, width: int) -> None:
    """Pad the lists to the full width, as RecBole's own augmentation does.

    Caser and others are built for that width; models that are not get it cut off again.
    """
    for part in parts:
        rows = part.inter_feat[field]
        part.inter_feat[field] = pad(rows, (0, width - rows.shape[1]))
        part.field2seqlen[field] = width


def _read_split(folder: Path) -> dict[str, Any]:
    split: dict[str, Any] = json.loads((folder / "split.json").read_text(encoding="utf-8"))
    for name in ("train", "valid", "test"):
        if not split.get("parts", {}).get(name, {}).get("sessions"):
            raise InputError(
                f"{folder / 'split.json'}: part '{name}' has no sessions. Training needs all three "
                "parts; convert the data with another split rule."
            )
    return split


def _check_training_part(train: Any, split: dict[str, Any], folder: Path) -> None:
    expected, found = split["parts"]["train"].get("sha256"), training_fingerprint(train)
    if found != expected:
        raise InputError(
            f"{folder}: what RecBole trains on is not the training part of split.json (fingerprint "
            f"{found[:12]}… instead of {str(expected)[:12]}…). The files were changed after "
            "conversion; run 'recbole-tpad convert … --overwrite' and embed again."
        )
