"""Shuffled histories as a control, the fused optimiser, rows without a context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_tpad.bridge.batches import shuffled
from recbole_tpad.bridge.runner import run
from recbole_tpad.errors import InputError

KEYS = {"ITEM_ID_FIELD": "item_id", "LIST_SUFFIX": "_list"}


def test_contexts_are_permuted_and_features_go_along() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (500,), generator=generator)
    items = torch.randint(1, 99, (500, 8), generator=generator)
    items[torch.arange(8) >= lengths[:, None]] = 0
    batch = Interaction(
        {"item_id_list": items, "brand_list": items * 7, "vector_list": items[..., None] * 3.0}
        | {"item_id": torch.arange(500)}
    )
    found = shuffled(KEYS, batch, generator)
    changed = found["item_id_list"]
    assert torch.equal(changed.sort(1).values, items.sort(1).values)
    assert torch.equal(changed == 0, items == 0)
    assert torch.equal(found["brand_list"], changed * 7)
    assert torch.equal(found["vector_list"][..., 0], changed * 3.0)
    assert torch.equal(found["item_id"], batch["item_id"])
    # Every place is as likely to come last: the last item stays last in one of `length` rows.
    long = lengths == 8
    kept = float((changed[long, 7] == items[long, 7]).float().mean())
    assert 0.02 < kept < 0.3


def test_a_model_of_order_loses_and_a_counting_one_does_not(quick: dict[str, Any]) -> None:
    keys = {**quick, "model": "SASRec", "epochs": 15, "hidden_size": 32, "inner_size": 64}
    straight, mixed = run(keys), run({**keys, "shuffle_history": True})
    # The planted rule: item k is followed by k + 1.
    assert straight.ndcg > mixed.ndcg + 0.1
    counting = [
        run({**quick, "model": "CoOccurrence", "shuffle_history": on}) for on in (False, True)
    ]
    np.testing.assert_array_equal(counting[0].ranks, counting[1].ranks)
    again = run({**quick, "model": "RepeatLast", "shuffle_history": True})
    once = run({**quick, "model": "RepeatLast", "shuffle_history": True})
    np.testing.assert_array_equal(again.ranks, once.ranks)


def test_the_fused_optimiser_trains_the_same_model(quick: dict[str, Any]) -> None:
    keys = {**quick, "model": "GRU4Rec", "epochs": 4}
    fused, plain = (run({**keys, "fused_optimizer": on}) for on in (True, False))
    losses = [[entry["train_loss"] for entry in r.curve] for r in (fused, plain)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_rows_without_a_context_are_named(quick: dict[str, Any], shop: Path) -> None:
    file = shop / "shop" / "shop.valid.inter"
    lines = file.read_text().splitlines()
    session, _, target = lines[1].split("\t")
    file.write_text("\n".join([lines[0], f"{session}\t\t{target}", *lines[2:]]) + "\n")
    with pytest.raises(InputError, match=rf"valid part.*{session}"):
        run({**quick, "model": "Popularity"})
