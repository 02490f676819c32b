"""The encoding engine: fixed batches, several processes, little memory, nothing done twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_catalogue import load_backbone, write_backbone, write_catalogue

from recbole_tpad.backbones.composed import ComposedBackbone
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.stages import encoding
from recbole_tpad.stages.encoding import EncodingSettings, encode_shards, token_batches
from recbole_tpad.stages.inputs import encode_states
from recbole_tpad.stages.processes import Processes
from recbole_tpad.store.shards import ShardFolder

CPU = torch.device("cpu")
# Two fp16 neighbours: rounding of numbers that differ by float32's rounding.
CLOSE: dict[str, Any] = {"rtol": 2e-3, "atol": 2e-4}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ComposedBackbone, list[Item]]:
    path = tmp_path_factory.mktemp("catalogue")
    items = write_catalogue(path).items
    return load_backbone(write_backbone(path / "backbone", items)), items


def run(
    made: tuple[ComposedBackbone, list[Item]], path: Path, **keys: Any
) -> tuple[ShardFolder, encoding.EncodingRecord]:
    backbone, items = made
    settings = EncodingSettings(**{"shard_items": 7, "batch_tokens": 450} | keys)
    ids = [i.item_id for i in items]
    folder = ShardFolder(path, ids, backbone.widths, settings.shard_items)
    return folder, encode_shards(backbone, items, folder, settings, CPU)


def files(folder: ShardFolder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.path.iterdir()}


@given(lengths=st.lists(st.integers(1, 60), max_size=50), tokens=st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    tensor = torch.tensor(lengths, dtype=torch.int64)
    batches = token_batches(tensor, tokens)
    every = torch.cat(batches) if batches else tensor
    assert sorted(every.tolist()) == list(range(len(lengths)))
    assert tensor[every].tolist() == sorted(lengths)
    for rows in batches:
        assert len(rows) == 1 or len(rows) * int(tensor[rows].max()) <= tokens


def test_states_are_those_of_the_stages(
    made: tuple[ComposedBackbone, list[Item]], tmp_path: Path
) -> None:
    """Without masks and with the adapter in the weights, against the path that trains."""
    backbone, items = made
    folder, record = run(made, tmp_path / "e")
    assert (record.items, record.shards) == (24, 4)
    inputs = backbone.inputs(items, CPU)
    backbone.use("knowledge")
    with torch.enable_grad():  # masked, unmerged
        whole = backbone.encode(inputs.batch(torch.arange(24))).summaries
    for name, states in whole.items():
        np.testing.assert_allclose(np.asarray(folder.arrays[name]), states.detach(), **CLOSE)
    other = encode_states(backbone, inputs, "transition")
    assert not np.allclose(np.asarray(folder.arrays["text"]), other["text"], **CLOSE)


def test_encoding_leaves_the_weights_as_they_were(
    made: tuple[ComposedBackbone, list[Item]], tmp_path: Path
) -> None:
    backbone, _ = made
    before = {n: p.clone() for n, p in backbone.named_parameters()}
    run(made, tmp_path / "e")
    assert all(torch.equal(p, before[n]) for n, p in backbone.named_parameters())
    with backbone.encoding("transition"):
        changed = [n for n, p in backbone.named_parameters() if not torch.equal(p, before[n])]
    assert changed  # so that the above says something
    assert all(torch.equal(p, before[n]) for n, p in backbone.named_parameters())


@pytest.mark.parametrize("keys", [{"batch_tokens": 1}, {"batch_tokens": 5000}, {"shard_items": 5}])
def test_batch_size_and_shard_size_move_less_than_rounding(
    made: tuple[ComposedBackbone, list[Item]], tmp_path: Path, keys: dict[str, int]
) -> None:
    wanted, _ = run(made, tmp_path / "e")
    found, _ = run(made, tmp_path / "other", **keys)
    for name, rows in wanted.arrays.items():
        np.testing.assert_allclose(np.asarray(found.arrays[name]), np.asarray(rows), **CLOSE)


def test_only_missing_shards_are_encoded(
    made: tuple[ComposedBackbone, list[Item]], tmp_path: Path
) -> None:
    folder, _ = run(made, tmp_path / "e")
    wanted = files(folder)
    times = {p.name: p.stat().st_mtime_ns for p in folder.path.iterdir()}
    for lost in ("text.00001.npy", "visual.00003.npy"):
        (folder.path / lost).unlink()
    assert folder.missing() == [1, 3]
    _, record = run(made, tmp_path / "e")
    assert record.shards == 2
    assert files(folder) == wanted
    kept = [n for n, t in times.items() if (folder.path / n).stat().st_mtime_ns == t]
    assert sorted(kept) == sorted(n for n in wanted if ".00001." not in n and ".00003." not in n)
    assert run(made, tmp_path / "e")[1].shards == 0


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_number_of_processes_changes_no_byte(
    made: tuple[ComposedBackbone, list[Item]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    wanted = files(run(made, tmp_path / "one")[0])
    ids = [i.item_id for i in made[1]]
    folder = ShardFolder(tmp_path / "many", ids, made[0].widths, 7)
    # All look before anyone writes; then one after the other, which any order would do.
    monkeypatch.setattr(folder, "missing", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    for rank in reversed(range(count)):
        monkeypatch.setattr(encoding, "processes", lambda rank=rank: Processes(rank, count))
        settings = EncodingSettings(batch_tokens=450, shard_items=7)
        encode_shards(made[0], made[1], folder, settings, CPU)
    assert files(folder) == wanted


class OutOfMemory:
    """Lets a backbone encode at most so many padded tokens."""

    def __init__(self, backbone: ComposedBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
        self.limit = 10**9
        self.tried: list[int] = []
        encode = backbone.encode

        def limited(batch: Any) -> Any:
            self.tried.append(batch.prompts.ids.numel())
            if self.tried[-1] > self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            return encode(batch)

        monkeypatch.setattr(backbone, "encode", limited)


def test_without_memory_batches_are_halved_and_results_stay(
    made: tuple[ComposedBackbone, list[Item]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, _ = run(made, tmp_path / "e", batch_tokens=5000)
    memory = OutOfMemory(made[0], monkeypatch)
    memory.limit = 350
    found, record = run(made, tmp_path / "tight", batch_tokens=5000)
    assert record.smaller_batches > 0
    for name, rows in wanted.arrays.items():
        np.testing.assert_allclose(np.asarray(found.arrays[name]), np.asarray(rows), **CLOSE)
    refused = [n for n in memory.tried if n > 350]
    assert 1 <= len(refused) <= 3  # what did not fit is not tried again, nor is anything larger


def test_an_item_that_never_fits_is_named_and_finished_shards_stay(
    made: tuple[ComposedBackbone, list[Item]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = OutOfMemory(made[0], monkeypatch)
    write = ShardFolder.write

    def then_no_memory(self: ShardFolder, number: int, rows: Any) -> None:
        write(self, number, rows)
        memory.limit = 1

    monkeypatch.setattr(ShardFolder, "write", then_no_memory)
    with pytest.raises(InputError, match=r"Item 'i\d\d' alone, \d+ tokens, does not fit"):
        run(made, tmp_path / "e")
    assert (tmp_path / "e" / "text.00000.npy").is_file()


def test_other_errors_are_not_taken_for_want_of_memory(
    made: tuple[ComposedBackbone, list[Item]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(batch: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(made[0], "encode", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(made, tmp_path / "e")


def test_states_beyond_fp16_name_the_item(
    made: tuple[ComposedBackbone, list[Item]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = made[0].encode

    def huge(batch: Any) -> Any:
        found = encode(batch)
        found.summaries["text"] = found.summaries["text"] * 1e8
        return found

    monkeypatch.setattr(made[0], "encode", huge)
    with pytest.raises(InputError, match="'text' has 7 rows with NaN or values beyond fp16"):
        run(made, tmp_path / "e")


def test_the_head_of_the_language_model_is_not_run(
    made: tuple[ComposedBackbone, list[Item]], tmp_path: Path
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the output head was run")

    hook = made[0].language_model.get_output_embeddings().register_forward_pre_hook(never)
    try:
        assert run(made, tmp_path / "e")[1].items == 24
    finally:
        hook.remove()


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="encoding: shard_items"):
        EncodingSettings(shard_items=0)
    gpu = torch.device("cuda")
    ours = EncodingSettings()
    assert [ours.tokens_on(CPU, width) for width in (96, 384, 4096)] == [2048, 1024, 1024]
    assert ours.tokens_on(gpu, 96) == ours.tokens_on(gpu, 4096) == 16384
    set_by_hand = EncodingSettings(batch_tokens=7)
    assert set_by_hand.tokens_on(CPU, 96) == 7
    assert ours.manner(CPU) != ours.manner(gpu)
    assert set_by_hand.manner(CPU) == set_by_hand.manner(gpu)
