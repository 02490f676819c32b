"""RecBole's data set and loaders for our data set folders."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.data.utils import create_samplers, get_dataloader
from recbole.utils import FeatureSource, FeatureType
from torch import Tensor
from torch.nn.functional import pad

from recbole_tpad.bridge.fast_loading import (
    cut,
    first_seen_vocabulary,
    flatten,
    gather_windows,
    leave_one_out,
    pad_rows,
    prefix_windows,
    read_table,
    sorted_vocabulary,
    split_lists,
)
from recbole_tpad.bridge.negative_histories import (
    add_negative_histories,
    needs_negative_histories,
)
from recbole_tpad.errors import InputError
from recbole_tpad.recommenders.sessions import training_fingerprint


class SessionDataset(SequentialDataset):  # type: ignore[misc]
    """RecBole's sequential data set with ids in the order of sorted tokens.

    RecBole numbers tokens by first appearance over train, valid and test together, so a change in
    the test part would renumber items and change initial weights. Sorted ids depend on the
    vocabulary alone, and make the order of tied items that of their tokens.

    Reading, augmentation and the selection of rows work on whole columns; ``fast_loading``,
    ``fast_augmentation`` and ``fast_collate`` switch back to RecBole's own loops, to equal results.
    """

    inter_feat: Any

    # -- reading -----------------------------------------------------------------------------------

    def _load_feat(self, filepath: str, source: Any) -> Any:
        config = self.config
        separator, encoding = config["field_separator"], config["encoding"]
        wanted, unwanted = self._get_load_and_unload_col(source)
        plain = config["fast_loading"] and not config["seq_len"] and len(separator) == 1
        if not plain or not isinstance(source, FeatureSource) or wanted == set():
            return super()._load_feat(filepath, source)
        with open(filepath, encoding=encoding) as stream:
            header = stream.readline().rstrip("\n").split(separator)
        entries = [entry for entry in header if self._is_loaded(entry, wanted, unwanted)]
        types = {entry: FeatureType(entry.split(":")[1]) for entry in entries}
        if FeatureType.FLOAT_SEQ in types.values() or not entries:
            return super()._load_feat(filepath, source)
        dtypes = {e: np.float64 if types[e] == FeatureType.FLOAT else str for e in entries}
        table = read_table(Path(filepath), entries, dtypes, delimiter=separator, encoding=encoding)
        table.columns = [entry.split(":")[0] for entry in entries]
        for entry, kind in types.items():
            field = entry.split(":")[0]
            self.field2source[field], self.field2type[field] = source, kind
            self.field2seqlen[field] = 1
            if kind == FeatureType.FLOAT:
                self.field2bucketnum[field] = 2
            if kind == FeatureType.TOKEN_SEQ:
                rows = split_lists(table[field].values, config["seq_separator"])
                table[field] = rows
                self.field2seqlen[field] = max(map(len, rows))
        return table

    @staticmethod
    def _is_loaded(entry: str, wanted: set[str] | None, unwanted: set[str] | None) -> bool:
        field = entry.split(":")[0]
        return (wanted is None or field in wanted) and (unwanted is None or field not in unwanted)

    def _remap(self, remap_list: list[tuple[Any, str, Any]]) -> None:
        fields = {field for _, field, _ in remap_list}
        ids_of = fields & {self.uid_field, self.iid_field}
        if not remap_list or not (ids_of or self.config["fast_loading"]):
            super()._remap(remap_list)
            return
        if self.config["fast_loading"]:
            columns = [
                flatten(feat[field].values) if kind == FeatureType.TOKEN_SEQ else feat[field].values
                for feat, field, kind in remap_list
            ]
            ends = np.cumsum([len(column) for column in columns])[:-1]
            number = sorted_vocabulary if ids_of else first_seen_vocabulary
            vocabulary, ids = number(np.concatenate(columns))
            missing = bool((ids < 0).any())
        else:
            tokens, ends = self._concat_remaped_tokens(remap_list)
            missing = bool(pd.isna(tokens).any())
            vocabulary, ids = np.unique(tokens.astype(str), return_inverse=True)
        if missing and ids_of:
            raise InputError(
                f"{self.dataset_path}: an id in {', '.join(sorted(fields))} is empty or reads as "
                "a missing value to pandas (NA, null, nan). Rename it."
            )
        id_token = np.array(["[PAD]", *vocabulary])
        token_id = {token: i for i, token in enumerate(id_token)}
        for (feat, field, kind), new in zip(remap_list, np.split(ids + 1, ends), strict=True):
            if ids_of or field not in self.field2id_token:
                self.field2id_token[field], self.field2token_id[field] = id_token, token_id
            is_list = kind == FeatureType.TOKEN_SEQ
            feat[field] = cut(new, [len(row) for row in feat[field]]) if is_list else new

    def _dataframe_to_interaction(self, data: Any) -> Any:
        lists = [
            field
            for field in data
            if self.field2type[field] == FeatureType.TOKEN_SEQ and self.config["fast_loading"]
        ]
        found = super()._dataframe_to_interaction(data.drop(columns=lists))
        columns = {
            field: pad_rows(data[field].values, self.field2seqlen[field])
            if field in lists
            else found[field]
            for field in data
        }
        return Interaction(columns)

    # -- splitting ---------------------------------------------------------------------------------

    def leave_one_out(self, group_by: str, leave_one_mode: str) -> list[Any]:
        """Split by RecBole's leave one out: training, validation and test part."""
        parts = {"valid_and_test": 2, "valid_only": 1, "test_only": 1}.get(leave_one_mode)
        if not self.config["fast_loading"] or group_by is None or parts is None:
            found: list[Any] = super().leave_one_out(group_by, leave_one_mode)
            return found
        rows = leave_one_out(self.inter_feat[group_by].numpy(), parts)
        if parts == 1:
            rows.insert(2 if leave_one_mode == "valid_only" else 1, np.zeros(0, dtype=np.int64))
        self._drop_unused_col()
        return [self.copy(_select(self.inter_feat, torch.from_numpy(part))) for part in rows]

    def data_augmentation(self) -> None:
        """Make a row for each prefix of a user's interactions, see `prefix_windows`."""
        if not self.config["fast_augmentation"]:
            super().data_augmentation()
            return
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        self.sort(by=[self.uid_field, self.time_field], ascending=True)
        old = self.inter_feat
        targets, begin, lengths = prefix_windows(
            old[self.uid_field].numpy(), self.config["MAX_ITEM_LIST_LENGTH"]
        )
        new = _select(old, torch.from_numpy(targets))
        new[self.item_list_length_field] = torch.from_numpy(lengths)
        for field in old:
            if field == self.uid_field:
                continue
            list_field = getattr(self, f"{field}_list_field")
            width = self.field2seqlen[list_field]
            shape = (len(targets), *((width,) if isinstance(width, int) else width))
            if (
                self.field2type[field] in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ)
                and field in self.config["numerical_features"]
            ):
                shape += (2,)
            new[list_field] = gather_windows(old[field], begin, lengths, shape)
        self.inter_feat = new

    # -- rows --------------------------------------------------------------------------------------

    def __getitem__(self, index: Any, join: bool = True) -> Any:
        """Return rows as an interaction, with user and item features if `join`."""
        if not self.config["fast_collate"] or not isinstance(index, (np.ndarray, Tensor)):
            return super().__getitem__(index, join)
        rows = _select(self.inter_feat, torch.as_tensor(index))
        return self.join(rows) if join else rows

    def join(self, df: Any) -> Any:
        """Add the user and item features of an interaction's rows to it."""
        if not self.config["fast_collate"]:
            return super().join(df)
        for feat, field in ((self.user_feat, self.uid_field), (self.item_feat, self.iid_field)):
            if feat is not None and field in df:
                df.update(_select(feat, df[field]))
        return df


def _select(interaction: Any, rows: Tensor) -> Any:
    """Return rows of an interaction; RecBole's own turns the row numbers into a Python list."""
    return Interaction({name: interaction[name].index_select(0, rows) for name in interaction})


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
        _refuse_empty_contexts(part, name, config, folder)
    width = max(p.inter_feat[dataset.iid_field + config["LIST_SUFFIX"]].shape[1] for p in parts)
    if width > config["MAX_ITEM_LIST_LENGTH"]:
        raise InputError(
            f"MAX_ITEM_LIST_LENGTH={config['MAX_ITEM_LIST_LENGTH']} is shorter than the lists of "
            f"{folder} (up to {width} items). Leave the key out, or convert with --max_len."
        )
    _widen(parts, dataset.iid_field + config["LIST_SUFFIX"], config["MAX_ITEM_LIST_LENGTH"])
    if split is not None:
        _check_training_part(parts[0], split, folder)
    if needs_negative_histories(config.model_class):
        add_negative_histories(parts, config)
    samplers = create_samplers(config, dataset, parts)
    loaders = [
        get_dataloader(config, name)(
            config, part, sampler, shuffle=name == "train" and bool(config["shuffle"])
        )
        for name, part, sampler in zip(names, parts, samplers, strict=True)
    ]
    return dataset, Loaders(*loaders)


def _refuse_empty_contexts(part: Any, name: str, config: Any, folder: Path) -> None:
    empty = np.flatnonzero(part.inter_feat[config["ITEM_LIST_LENGTH_FIELD"]].numpy() == 0)
    if empty.size:
        users = part.inter_feat[part.uid_field].numpy()[empty[:3]]
        shown = ", ".join(str(t) for t in part.field2id_token[part.uid_field][users])
        raise InputError(
            f"{folder}: {empty.size} rows of the {name} part have an empty item list, first of "
            f"session {shown}. There is nothing to recommend from: remove these rows."
        )


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
