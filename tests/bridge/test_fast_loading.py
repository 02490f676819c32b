"""What is done on whole columns equals RecBole's own loops, and has a switch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.dataset import SequentialDataset

from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.dataset import Loaders, read_data
from recbole_tpad.bridge.fast_loading import pad_rows, sorted_vocabulary
from recbole_tpad.bridge.runner import run
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.errors import InputError

SWITCHES = ("fast_loading", "fast_augmentation", "fast_collate")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data path with RecBole's atomic files: interleaved users, features, gaps, quotes."""
    path = tmp_path_factory.mktemp("dataset")
    folder = path / "plain"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["user_id:token\titem_id:token\ttimestamp:float\trating:float\ttags:token_seq"]
    for time in range(400):
        user, item = int(rng.integers(12)), int(rng.integers(25))
        tags = " ".join(f"t{k}" for k in rng.integers(6, size=rng.integers(0, 4)))
        rating = "" if time % 7 == 0 else f"{rng.random():.17g}"
        lines.append(f"u{user}\ti{item}\t{1000 + time // 2}.25\t{rating}\t{tags}")
    lines += ["u98\ti1\t1.0\t1.0\tt1", "u99\ti1\t1.0\t1.0\t", "u99\ti2\t2.0\t1.0\tt1  t2"]
    (folder / "plain.inter").write_text("\n".join(lines) + "\n")
    items = ["item_id:token\tprice:float\tname:token_seq\tbrand:token"]
    items += [
        f"i{k}\t{k}.1\tthe 'item' {k}\t{'' if k % 5 == 0 else f'b{k % 3}'}" for k in range(25)
    ]
    (folder / "plain.item").write_text("\n".join(items) + "\n")
    return path


def keys(path: Path, **more: Any) -> dict[str, Any]:
    return {
        "data_path": str(path),
        "dataset": "plain",
        "model": "SASRec",
        "load_col": {
            "inter": ["user_id", "item_id", "timestamp", "rating", "tags"],
            "item": ["item_id", "price", "name", "brand"],
        },
        "MAX_ITEM_LIST_LENGTH": 9,
        "epochs": 1,
        "train_batch_size": 64,
        **more,
    }


def loaded(given_keys: dict[str, Any]) -> tuple[Any, Loaders]:
    with numpy_names():
        return read_data(SessionConfig(config_dict=given_keys))


def equal(first: Any, second: Any) -> None:
    assert list(first.interaction) == list(second.interaction)
    for name in first:
        assert first[name].dtype == second[name].dtype, name
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("mode", ["valid_and_test", "valid_only", "test_only", "ratio"])
def test_plain_data_sets_are_read_as_recbole_reads_them(plain: Path, mode: str) -> None:
    if mode.endswith("only"):  # a part is empty, which `read_data` refuses
        with pytest.raises(InputError, match="is empty"):
            loaded(keys(plain, eval_args={"split": {"LS": mode}, "order": "TO"}))
        return
    split = {"RS": [0.8, 0.1, 0.1]} if mode == "ratio" else {"LS": mode}
    more = {"eval_args": {"split": split, "order": "TO", "group_by": "user"}}
    fast, fast_loaders = loaded(keys(plain, **more))
    slow, slow_loaders = loaded(keys(plain, **more, **dict.fromkeys(SWITCHES, False)))
    assert fast.field2seqlen == slow.field2seqlen
    assert fast.field2type == slow.field2type
    for field, tokens in slow.field2id_token.items():
        assert list(map(str, fast.field2id_token[field])) == list(map(str, tokens)), field
    equal(fast.item_feat, slow.item_feat)
    for one, other in zip(fast_loaders, slow_loaders, strict=True):
        equal(one._dataset.inter_feat, other._dataset.inter_feat)
        for first, second in zip(one, other, strict=True):
            if isinstance(first, tuple):
                first, second = first[0], second[0]
            equal(first, second)


def test_each_switch_brings_back_recboles_loop(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: set[str] = set()
    loops = ("_load_feat", "data_augmentation", "__getitem__")
    for name in loops:
        original = getattr(SequentialDataset, name)

        def spy(self: Any, *args: Any, _n: str = name, _f: Any = original, **kw: Any) -> Any:
            calls.add(_n)
            return _f(self, *args, **kw)

        monkeypatch.setattr(SequentialDataset, name, spy)
    more = {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user"}}
    next(iter(loaded(keys(plain, **more))[1].train))
    assert calls == set()
    for switch, name in zip(
        SWITCHES, ("_load_feat", "data_augmentation", "__getitem__"), strict=True
    ):
        calls.clear()
        next(iter(loaded(keys(plain, **more, **{switch: False}))[1].train))
        assert calls == {name}


def test_data_set_folders_are_read_as_recbole_reads_them(quick: dict[str, Any]) -> None:
    given_keys = {**quick, "model": "SASRecF", "selected_features": ["brand", "category"]}
    fast, fast_loaders = loaded(given_keys)
    slow, slow_loaders = loaded({**given_keys, **dict.fromkeys(SWITCHES, False)})
    assert fast.field2seqlen == slow.field2seqlen
    for field, tokens in slow.field2id_token.items():
        np.testing.assert_array_equal(fast.field2id_token[field], tokens)
    equal(fast.item_feat, slow.item_feat)
    for one, other in zip(fast_loaders, slow_loaders, strict=True):
        equal(one._dataset.inter_feat, other._dataset.inter_feat)


@pytest.mark.parametrize("masked", [False, True])
def test_ranking_has_the_same_result_with_every_switch_off(
    quick: dict[str, Any], masked: bool
) -> None:
    given_keys = {**quick, "model": "CoOccurrence", "mask_history": masked, "eval_batch_size": 7}
    fast = run(given_keys)
    for switch in ("rank_by_counting", "trim_padding", *SWITCHES):
        slow = run({**given_keys, switch: False})
        np.testing.assert_array_equal(fast.ranks, slow.ranks, err_msg=switch)
        assert (fast.sessions, fast.targets) == (slow.sessions, slow.targets)


def test_missing_ids_are_still_refused(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    text = (plain / "plain" / "plain.inter").read_text().replace("\ti3\t", "\tNA\t")
    for name in ("plain.train.inter", "plain.valid.inter", "plain.test.inter", "plain.inter"):
        (folder / name).write_text(text)
    more = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
    benchmark = {"benchmark_filename": ["train", "valid", "test"], "alias_of_item_id": []}
    for switch in (True, False):
        with pytest.raises(InputError, match="missing value"):
            loaded(keys(tmp_path, **more, **benchmark, fast_loading=switch))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["b", "a", "10", "9", "é", "A", ""]), min_size=1, max_size=20))
def test_vocabulary_equals_numpys(tokens: list[str]) -> None:
    names, places = sorted_vocabulary(np.array(tokens, dtype=object))
    expected, inverse = np.unique(np.array(tokens), return_inverse=True)
    assert list(names) == list(expected)
    np.testing.assert_array_equal(places, inverse)
    _, with_gap = sorted_vocabulary(np.array([*tokens, np.nan], dtype=object))
    assert with_gap[-1] == -1
    assert pd.Series(with_gap[:-1]).min() >= 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=9), st.integers(1, 7))
def test_padding_equals_row_by_row(rows: list[list[int]], width: int) -> None:
    longest = min(max(map(len, rows)), width)
    expected = [(row[:width] + [0] * longest)[:longest] for row in rows]
    found = pad_rows([np.array(row, dtype=np.int64) for row in rows], width)
    assert found.tolist() == expected
