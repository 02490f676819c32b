"""A small data set folder with two item-embedding stores."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from dataset_converters.sequences import convert_sequences
from recbole_tpad.data import DatasetFolder
from recbole_tpad.store import write_store

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    """Data set 'shop' in tmp_path, with the stores 'tiny' and 'other'."""
    rng = random.Random(1)
    kinds = ["Mugs", "Plates", "Forks"]
    records = {
        f"I{k:02d}": {"title": f"{kinds[k % 3]} no. {k}", "categories": f"Home,{kinds[k % 3]}"}
        for k in range(24)
    }
    sequences = {f"U{k}": rng.choices(list(records), k=rng.randint(3, 9)) for k in range(80)}
    (tmp_path / "items.json").write_text(json.dumps(records))
    (tmp_path / "sequences.json").write_text(json.dumps(sequences))
    convert_sequences("shop", tmp_path / "sequences.json", tmp_path / "items.json", tmp_path)
    found = DatasetFolder.open(tmp_path, "shop")
    vectors = np.random.default_rng(0).normal(size=(len(found.items), 6))
    for name in ("tiny", "other"):
        write_store(
            found.path / "embeddings" / name,
            found.item_ids,
            {"text": vectors},
            role="other",
            generator="random",
            dataset="shop",
            split_fingerprint=None,
            inputs={"seed": name},
        )
    return found
