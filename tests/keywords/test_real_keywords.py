"""The annotator `metadata` on published Amazon metadata."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_converters.amazon import convert_amazon
from recbole_tpad.data import DatasetFolder
from recbole_tpad.keywords.annotate import annotate
from recbole_tpad.keywords.metadata import MetadataAnnotator

GIFT = Path(__file__).resolve().parents[3] / "shared" / "data" / "amazon2018_gift_cards"


@pytest.mark.skipif(not GIFT.is_dir(), reason="needs the shared real data")
def test_gift_cards(tmp_path: Path) -> None:
    files = (GIFT / "Gift_Cards_5.json.gz", GIFT / "meta_Gift_Cards.json.gz")
    convert_amazon("gift", *files, tmp_path, sessions="day")
    folder = DatasetFolder.open(tmp_path, "gift")
    report = annotate(folder, MetadataAnnotator())
    assert dict(report.statuses) == {"ok": 148}
    told = report.vocabulary
    assert told.in_text > 0.9  # it repeats the text ("e-mail" as "email")
    assert "not visual" in str(report)
    # Every title says gift card: the word tells nothing apart.
    assert not {"gift", "card", "gift card"} & {word for word, _ in told.common}
    assert not told.everywhere
    assert 4 < told.per_item <= 8
