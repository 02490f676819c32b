"""Time of a DIMO training step: against the public code's dense arithmetic and against a floor.

Reads the Cellphones sessions (RecBole benchmark files with ids) and grows them to catalogues of
100k and 1M items. Batch 50, d = 100, two views, four propagation steps, CPU. Last line: JSON with

- speedup_vs_dense: a dense step (adjacency rebuilt and densified for each of the eight products,
  L_co by gathering every item's partners and strangers) over ours, same weights, same losses;
- ratio_to_floor: ours over the least this arithmetic needs with our kernels, measured beside it:
  one sparse product a layer each way, the logit product and its two gradients, L_co as one sparse
  product and sampled dot products with their gradients, Adam as one fused pass;
- step_ms_10k, step_ms_100k, step_ms_1m: our step, floor_ms_… the floor's; peak_mb_…: the process's
  peak after it, building the graph included; …_departments: 102,130 items with --stay;
- speedup_every_4: four steps over four that share a propagation (propagate_every: 4);
- trainer_over_bare: an epoch through this package's trainer over a bare loop of the same steps.

With one thread (OMP_NUM_THREADS=1) times are the process's, else the wall's. Without a million
items: --copies 10.

    python perf/dimo.py --sessions DIR/cellphones.train.inter
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from public_dimo import DenseDIMO
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_tpad.bridge.batches import trimmed as trimmed_batch
from recbole_tpad.bridge.config import SessionConfig
from recbole_tpad.bridge.dataset import load_data
from recbole_tpad.bridge.runner import build_model
from recbole_tpad.bridge.shims import numpy_names
from recbole_tpad.bridge.trainer import SessionTrainer
from recbole_tpad.presets import read_preset
from recbole_tpad.recommenders.dimo import DIMO
from recbole_tpad.recommenders.propagation import Workspace, column_blocks

BATCH, LENGTH = 50, 19
FIELDS = {
    "USER_ID_FIELD": "session_id",
    "ITEM_ID_FIELD": "item_id",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "NEG_PREFIX": "neg_",
    "MAX_ITEM_LIST_LENGTH": LENGTH,
    "device": torch.device("cpu"),
}
Sessions = list[list[int]]


def clock() -> float:
    """Seconds of this process; a busy machine disturbs them less than those on the wall.

    With several threads their times would add up: then the wall's.
    """
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- data ------------------------------------------------------------------------------------------


def read_sessions(path: Path) -> Sessions:
    """Read a RecBole benchmark file of ids: one row a session, context and target."""
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return [[*map(int, context.split()), int(target)] for _, context, target in rows]


@dataclass(frozen=True)
class Rows:
    """Sessions as RecBole holds them: padded contexts (S, LENGTH), targets (S,), lengths (S,)."""

    lists: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


def padded(sessions: Sessions) -> Rows:
    lists = np.zeros((len(sessions), LENGTH), dtype=np.int64)
    for row, session in enumerate(sessions):
        lists[row, : len(session) - 1] = session[:-1][:LENGTH]
    lengths = np.array([min(len(s) - 1, LENGTH) for s in sessions])
    return Rows(lists, np.array([s[-1] for s in sessions]), lengths)


def grown(rows: Rows, copies: int, rng: np.random.Generator) -> Rows:
    """Return `copies` times the sessions over `copies` times the items, equally dense.

    Every session is repeated with each of its items replaced by one of that item's copies, so
    lengths and popularity keep their distribution and the catalogue does not fall apart. It does
    not fall into communities either: for the cache this is a hard graph.
    """
    lists, targets = [], []
    for _ in range(copies):
        for items, found in ((rows.lists, lists), (rows.targets, targets)):
            which = rng.integers(copies, size=items.shape)
            found.append(np.where(items > 0, (items - 1) * copies + which + 1, 0))
    return Rows(np.concatenate(lists), np.concatenate(targets), np.tile(rows.lengths, copies))


def departments(rows: Rows, copies: int, rng: np.random.Generator, stay: float) -> Rows:
    """Return `copies` shops in one, a session taking an item of its own with probability `stay`.

    Otherwise of any of them. Ids go shop by shop, and one shop is the given catalogue.
    """
    n_items = max(int(rows.lists.max()), int(rows.targets.max()))
    lists, targets = [], []
    for shop in range(copies):
        for items, found in ((rows.lists, lists), (rows.targets, targets)):
            other = rng.integers(copies, size=items.shape)
            which = np.where(rng.random(items.shape) < stay, shop, other)
            found.append(np.where(items > 0, which * n_items + items, 0))
    return Rows(np.concatenate(lists), np.concatenate(targets), np.tile(rows.lengths, copies))


def data_set(rows: Rows, n_items: int) -> Any:
    """What DIMO reads from RecBole's training data set."""
    feat = {
        "session_id": torch.arange(len(rows.targets)),
        "item_id_list": torch.from_numpy(rows.lists),
        "item_id": torch.from_numpy(rows.targets),
        "item_length": torch.from_numpy(rows.lengths),
    }
    return SimpleNamespace(
        inter_feat=feat,
        uid_field="session_id",
        iid_field="item_id",
        item_list_length_field="item_length",
        config=FIELDS,
        item_num=n_items + 1,
        num=lambda field: n_items + 1,
    )


def make_model(data: Any, **keys: Any) -> DIMO:
    torch.manual_seed(0)
    preset = read_preset("model", "DIMO")
    settings = {"item_embeddings": None, "variant": "official", "seed": 0}
    return DIMO({**FIELDS, **preset, **settings, **keys}, data)


def batches(data: Any, count: int, seed: int = 1) -> list[Interaction]:
    order = torch.randperm(
        len(data.inter_feat["item_id"]), generator=torch.Generator().manual_seed(seed)
    )
    return [trimmed(data, order[k * BATCH : (k + 1) * BATCH]) for k in range(count)]


def trimmed(data: Any, rows: Tensor) -> Interaction:
    found = {name: column[rows] for name, column in data.inter_feat.items()}
    found["item_id_list"] = found["item_id_list"][:, : int(found["item_length"].max())]
    return Interaction(found)


# -- two ways to do a step; the third is in public_dimo.py -----------------------------------------


def stepper(parameters: list[Tensor], loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def floor_step(model: DIMO) -> Callable[[], None]:
    """The products nobody can leave out, without autograd, and one fused Adam pass.

    The sparse products are the model's own, a few columns at a time: the fastest we know.
    """
    n, d = model.n_items, model.item_embedding.embedding_dim
    rows, own, into_own = torch.randn(n, 2 * d), torch.randn(n, d), torch.randn(n, d)
    session = torch.randn(BATCH, 2 * d)
    logit_grad = torch.randn(BATCH, n)
    parameter = torch.nn.Parameter(torch.randn(n, 2 * d))
    parameter.grad = torch.randn(n, 2 * d)
    optimizer = torch.optim.Adam([parameter], lr=1e-3, fused=True)
    partners, strangers = model.partners, model.strangers
    entries = torch.randn(strangers.col.numel())
    blocks = [
        slice(start + part.start, start + part.stop)
        for start in (0, d)
        for part in column_blocks(n, d, rows)
    ]
    workspace = Workspace(n, blocks, rows)

    def step() -> None:
        with torch.no_grad():
            for _ in range(2):
                for part in blocks:
                    block, spare = workspace.pair(part.stop - part.start)
                    block.copy_(rows[:, part])
                    model.propagation.steps(block, model.n_layers, spare)
            session @ rows.t()
            logit_grad.t() @ session
            logit_grad @ rows
            partners.times(own, partners.values)
            partners.transposed_times(own, partners.values, add_to=into_own)
            strangers.dots(own)
            strangers.times(own, entries)
        optimizer.step()

    return step


# -- timing ----------------------------------------------------------------------------------------


def interleaved(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, taken in turns so that noise meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            start = clock()
            step()
            taken[name].append(1e3 * (clock() - start))
    return {name: statistics.median(values) for name, values in taken.items()}


def our_step(model: DIMO, data: Any, count: int) -> Callable[[], None]:
    rows = batches(data, count)
    turn = iter(range(10**9))
    model.train()
    return stepper(list(model.parameters()), lambda: model.calculate_loss(rows[next(turn) % count]))


def check_equal(model: DIMO, dense: DenseDIMO, batch: Interaction) -> None:
    model.eval()
    ours, theirs = float(model.calculate_loss(batch)), float(dense.loss(batch))
    if abs(ours - theirs) > 1e-4 * abs(theirs):
        raise SystemExit(f"The two sides compute different losses: {ours} and {theirs}.")
    say(f"loss ours {ours:.6f}, dense {theirs:.6f}")


def cellphones(sessions: Sessions, rounds: int, dense_rounds: int) -> dict[str, float]:
    n_items = max(max(s) for s in sessions)
    data = data_set(padded(sessions), n_items)
    model, other = make_model(data), make_model(data)
    dense = DenseDIMO(other)
    batch = batches(data, 1)[0]
    check_equal(model, DenseDIMO(model), batch)
    ours = our_step(model, data, 64)
    other.train()
    theirs = stepper(list(other.parameters()), lambda: dense.loss(batch))
    pair = interleaved({"ours": ours, "dense": theirs}, dense_rounds)
    say(f"dense {pair['dense']:.0f} ms, ours {pair['ours']:.0f} ms")
    least = interleaved({"ours": ours, "floor": floor_step(model)}, rounds)
    say(f"floor {least['floor']:.1f} ms, ours {least['ours']:.1f} ms")
    return {
        "speedup_vs_dense": pair["dense"] / pair["ours"],
        "ratio_to_floor": least["ours"] / least["floor"],
        "step_ms_10k": least["ours"],
        "floor_ms_10k": least["floor"],
    }


EVERY = 4


def every_speedup(data: Any, rounds: int) -> float:
    """Time of EVERY steps over that of EVERY steps with one propagation (propagate_every)."""
    sides = {"each": make_model(data), "shared": make_model(data, propagate_every=EVERY)}
    steps = {name: our_step(model, data, 8) for name, model in sides.items()}

    def group(step: Callable[[], None]) -> Callable[[], None]:
        def steps() -> None:
            for _ in range(EVERY):
                step()

        return steps

    found = interleaved({name: group(step) for name, step in steps.items()}, rounds)
    return found["each"] / found["shared"]


def synthetic(
    sessions: Sessions, copies: int, rounds: int, stay: float | None = None
) -> dict[str, float]:
    n_items, rng = copies * max(map(max, sessions)), np.random.default_rng(0)
    rows = padded(sessions)
    rows = grown(rows, copies, rng) if stay is None else departments(rows, copies, rng, stay)
    data = data_set(rows, n_items)
    start = clock()
    model = make_model(data)
    say(
        f"{n_items:,} items: model built in {clock() - start:.0f} s, "
        f"{model.propagation.col.numel():,} nonzeros"
    )
    steps = {"ours": our_step(model, data, 8)}
    found = interleaved(steps, rounds)["ours"]
    peak = peak_mb()
    least = interleaved({"floor": floor_step(model)}, 1)["floor"]
    say(f"{n_items:,} items: {found:.0f} ms a step, floor {least:.0f} ms, peak {peak:.0f} MB")
    return {"step_ms": found, "floor_ms": least, "peak_mb": peak}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def trainer_over_bare(sessions: Sessions, count: int) -> float:
    """An epoch of `count` sessions through the trainer over a bare loop on the same model."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "phones"
        target.mkdir()
        header = "session_id:token\titem_id_list:token_seq\titem_id:token\n"
        for name, part in (
            ("train", sessions[:count]),
            ("valid", sessions[:200]),
            ("test", sessions[:200]),
        ):
            rows = [f"{k}\t{' '.join(map(str, s[:-1]))}\t{s[-1]}\n" for k, s in enumerate(part)]
            (target / f"phones.{name}.inter").write_text(header + "".join(rows))
        (target / "phones.inter").write_text("session_id:token\titem_id:token\n")
        keys = {
            "data_path": folder,
            "load_col": {"inter": ["session_id", "item_id_list", "item_id"]},
            "USER_ID_FIELD": "session_id",
            "ITEM_ID_FIELD": "item_id",
            "alias_of_item_id": ["item_id_list"],
            "benchmark_filename": ["train", "valid", "test"],
            "MAX_ITEM_LIST_LENGTH": LENGTH,
            "variant": "official",
            "epochs": 1,
        }
        with numpy_names():
            config = SessionConfig("DIMO", "phones", None, keys)
            loaders = load_data(config)
            model = build_model(config, loaders.train._dataset)
        trainer = SessionTrainer(config, model)
        rows = [trimmed_batch(config, batch) for batch in loaders.train]
        times: dict[str, list[float]] = {"trainer": [], "bare": []}
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        for _ in range(3):
            start = clock()
            trainer.progress.batch = 0
            trainer._train_epoch(loaders.train, 0)
            times["trainer"].append(clock() - start)
            start = clock()
            model.train()
            for batch in rows:
                optimizer.zero_grad(set_to_none=True)
                model.calculate_loss(batch).backward()
                optimizer.step()
            times["bare"].append(clock() - start)
        medians = {name: statistics.median(values) for name, values in times.items()}
        say(f"epoch: trainer {medians['trainer']:.1f} s, bare {medians['bare']:.1f} s")
        return medians["trainer"] / medians["bare"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--dense_rounds", type=int, default=3)
    parser.add_argument("--large_rounds", type=int, default=3, help="of the grown catalogues")
    parser.add_argument("--epoch_sessions", type=int, default=5000)
    parser.add_argument("--copies", type=int, nargs="*", default=[10, 98], help="of the items")
    parser.add_argument("--stay", type=float, help="also ten departments, see departments()")
    arguments = parser.parse_args()
    say(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    sessions = read_sessions(arguments.sessions)
    found = cellphones(sessions, arguments.rounds, arguments.dense_rounds)
    data = data_set(padded(sessions), max(max(s) for s in sessions))
    found["speedup_every_4"] = every_speedup(data, max(1, arguments.rounds // 4))
    found["trainer_over_bare"] = trainer_over_bare(sessions, arguments.epoch_sessions)
    for copies, name in zip(arguments.copies, ("100k", "1m"), strict=False):
        for key, value in synthetic(sessions, copies, arguments.large_rounds).items():
            found[f"{key}_{name}"] = value
    if arguments.stay is not None:
        large = synthetic(sessions, 10, arguments.large_rounds, arguments.stay)
        found.update({f"{key}_departments": value for key, value in large.items()})
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
