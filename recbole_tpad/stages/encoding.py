"""Encoding a catalogue: shards of items, each a fixed set of batches, resumable and shared out.

A shard's items, the order within it and the cut into batches depend on the items alone. What is
computed does not change with the number of processes, with a restart, or with the memory that
happens to be free.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from recbole_tpad.backbones.base import Backbone, Inputs
from recbole_tpad.data import Item
from recbole_tpad.errors import InputError
from recbole_tpad.host_memory import keep_freed_memory
from recbole_tpad.progress import progress
from recbole_tpad.settings import at_least
from recbole_tpad.stages.processes import processes
from recbole_tpad.store.shards import SHARD_ITEMS, ShardFolder

# Padded tokens a batch: enough to keep a GPU's matrix units busy; on a CPU as many as its cache
# holds the states of, measured at widths of 96 and 384, and enough for weights to be read seldom.
_GPU_TOKENS = 16384
_CPU_TOKENS = 1024
_CPU_STATES = 2048 * 96


@dataclass(frozen=True, slots=True)
class EncodingSettings:
    """The section `encoding` of a generator's YAML.

    Attributes:
        batch_tokens: items side by side times the longest of them; 0: 16384 on a GPU; on a CPU
            1024, or more for a model that is less than 192 wide (tpad-tiny: 2048). Moves results by
            less than fp16's rounding.
        shard_items: items a file, and what a kill costs at most.
    """

    batch_tokens: int = 0
    shard_items: int = SHARD_ITEMS

    def __post_init__(self) -> None:
        at_least("encoding", 0, batch_tokens=self.batch_tokens)
        at_least("encoding", 1, shard_items=self.shard_items)

    def tokens_on(self, device: torch.device, width: int) -> int:
        """The budget on a device for a model of some width."""
        if self.batch_tokens or device.type != "cpu":
            return self.batch_tokens or _GPU_TOKENS
        return max(_CPU_TOKENS, _CPU_STATES // width)

    def manner(self, device: torch.device) -> dict[str, Any]:
        """What decides how a catalogue is cut into shards and, for a given model, batches."""
        rule = [_CPU_TOKENS, _CPU_STATES] if device.type == "cpu" else _GPU_TOKENS
        return {"shard_items": self.shard_items, "batch_tokens": self.batch_tokens or rule}


@dataclass(slots=True)
class EncodingRecord:
    """What this process did.

    Attributes:
        items, tokens, padded_tokens, shards: encoded here; shards that were there are not counted.
        seconds: wall clock, waiting for others not included.
        waited: of these, seconds in which nothing was computed because nothing was prepared.
        smaller_batches: how often a batch was halved for want of memory.
        unreadable: item id → why its image could not be read; it counted as absent.
    """

    items: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    shards: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    smaller_batches: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Prepared:
    """A shard that is ready to be computed."""

    number: int
    inputs: Inputs
    lengths: torch.Tensor


def token_batches(lengths: torch.Tensor, tokens: int) -> list[torch.Tensor]:
    """Cut rows into batches of similar length.

    Args:
        lengths: (N,) int64.
        tokens: rows of a batch times its longest row stay within; a longer row is alone.

    Returns:
        Rows of each batch, from short to long; equal lengths in their own order.
    """
    order = torch.argsort(lengths, stable=True)
    batches, start = [], 0
    for end, length in enumerate(lengths[order].tolist()):
        if end > start and (end + 1 - start) * length > tokens:
            batches.append(order[start:end])
            start = end
    return [*batches, order[start:]] if len(order) else []


def encode_shards(
    backbone: Backbone,
    items: Sequence[Item],
    folder: ShardFolder,
    settings: EncodingSettings,
    device: torch.device,
    tower: str = "knowledge",
) -> EncodingRecord:
    """Encode what is missing in a folder of shards; return when all of it is there.

    While one shard is computed the next one is read and tokenised and the one before is written.
    Of several processes each takes every n-th missing shard. Where they divide the base's layers,
    one that has finished goes on computing until all have, for their sake.

    Args:
        backbone: with its weights.
        items: all of the folder's items, in its order.
        folder: filled.
        settings: see `EncodingSettings`.
        device: of the backbone.
        tower: which one encodes.

    Raises:
        InputError: states that are NaN or beyond fp16, one item that does not fit into memory, a
            full or read-only disk. Finished shards stay and are not computed again.
    """
    keep_freed_memory(device.type)
    team = processes()
    missing = folder.missing()
    team.wait()  # nobody writes before everyone has looked
    own = missing[team.rank :: team.count]
    record = EncodingRecord()
    started = time.perf_counter()
    batches = _Batches(backbone, settings.tokens_on(device, max(backbone.widths.values())), record)
    with (
        backbone.encoding(tower),
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(1) as writer,
    ):
        written: Future[None] | None = None
        for shard in _prepared(reader, backbone, items, folder, own, device, record):
            rows = batches.encode(shard)
            if written is not None:
                written.result()  # its error, before more is computed
            written = writer.submit(_write, folder, shard.number, rows)
            record.items += len(shard.lengths)
            record.shards += 1
            record.unreadable |= shard.inputs.unreadable
        if written is not None:
            written.result()
        if backbone.divided and missing:
            batches.go_along(backbone.inputs(items[:1], device))
    record.seconds = time.perf_counter() - started
    team.wait()
    return record


def _prepared(
    reader: ThreadPoolExecutor,
    backbone: Backbone,
    items: Sequence[Item],
    folder: ShardFolder,
    numbers: Sequence[int],
    device: torch.device,
    record: EncodingRecord,
) -> Iterator[_Prepared]:
    """The shards, one after the other; the next one is prepared meanwhile."""

    @torch.no_grad()
    def prepare(number: int) -> _Prepared:
        inputs = backbone.inputs(items[folder.slices[number]], device)
        inputs.read_images()
        return _Prepared(number, inputs, inputs.lengths())

    ahead: Future[_Prepared] | None = None
    bar = progress(total=len(numbers), desc="encoding", unit="shard")
    for place, number in enumerate(numbers):
        waiting = time.perf_counter()
        shard = (ahead or reader.submit(prepare, number)).result()
        record.waited += time.perf_counter() - waiting
        if place + 1 < len(numbers):
            ahead = reader.submit(prepare, numbers[place + 1])
        yield shard
        bar.update()
    bar.close()


def _write(folder: ShardFolder, number: int, rows: dict[str, torch.Tensor]) -> None:
    folder.write(number, {name: values.cpu().numpy() for name, values in rows.items()})


class _Batches:
    """Computes shards, in smaller batches where memory does not suffice."""

    def __init__(self, backbone: Backbone, tokens: int, record: EncodingRecord) -> None:
        self._backbone = backbone
        self._tokens = tokens
        self._record = record
        self._limit: int | None = None  # padded tokens that did not fit

    def encode(self, shard: _Prepared) -> dict[str, torch.Tensor]:
        """Modality → (items of the shard, width), fp16, on the device."""
        batches = token_batches(shard.lengths, self._tokens)
        parts = [part for rows in batches for part in self._parts(shard, rows)]
        back = torch.argsort(torch.cat(batches))
        self._record.tokens += int(shard.lengths.sum())
        self._record.padded_tokens += sum(len(r) * int(shard.lengths[r[-1]]) for r in batches)
        return {
            name: torch.cat([part[name] for part in parts])[back.to(parts[0][name].device)]
            for name in self._backbone.widths
        }

    def go_along(self, inputs: Inputs) -> None:
        """Make the passes that other processes still need, on any items."""
        batch = inputs.batch(torch.arange(len(inputs.items)))
        while self._backbone.passes(0):
            self._backbone.encode(batch)

    def _parts(self, shard: _Prepared, rows: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        size = len(rows) * int(shard.lengths[rows[-1]])
        if self._limit is None or size < self._limit or len(rows) == 1:
            try:
                self._backbone.passes(1)  # says to the others that there is one more
                with torch.inference_mode(not self._backbone.divided):  # not tried with FSDP
                    states = self._backbone.encode(shard.inputs.batch(rows)).summaries
                    return [{name: values.half() for name, values in states.items()}]
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                if self._backbone.divided:
                    raise InputError(
                        f"A batch of {size:,} padded tokens does not fit into memory, and with a "
                        "divided base no process can halve its own. Take a smaller "
                        "encoding.batch_tokens; finished shards are kept."
                    ) from error
                if len(rows) == 1:
                    raise InputError(
                        f"Item '{shard.inputs.items[int(rows[0])].item_id}' alone, "
                        f"{int(shard.lengths[rows[0]])} tokens, does not fit into memory. Take a "
                        "smaller max_text_tokens, another dtype or a larger machine; finished "
                        "shards are kept."
                    ) from error
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._limit = size
        self._record.smaller_batches += 1
        middle = len(rows) // 2
        return self._parts(shard, rows[:middle]) + self._parts(shard, rows[middle:])


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
