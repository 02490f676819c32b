"""The made shop: what is planted where, and what the best possible ranking reaches."""

from __future__ import annotations

import csv
import gzip
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset_converters.amazon import convert_amazon
from dataset_converters.images import attach_images
from recbole_tpad.data import DatasetFolder
from recbole_tpad.demo.shop import ShopConfig, ShopFiles, load_truth, make_shop, oracle_scores
from recbole_tpad.demo.world import (
    BRANDS,
    COLOURS,
    DRIVERS,
    SHAPES,
    STYLES,
    VALUES,
    Truth,
    make_sessions,
    make_truth,
)
from recbole_tpad.errors import InputError

REVIEW_KEYS = {"overall", "verified", "reviewTime", "reviewerID", "asin", "reviewerName"}
REVIEW_KEYS |= {"reviewText", "summary", "unixReviewTime"}
META_KEYS = {"category", "tech1", "description", "fit", "title", "also_buy", "tech2", "brand"}
META_KEYS |= {"feature", "rank", "also_view", "details", "main_cat", "similar_item", "date"}
META_KEYS |= {"price", "asin", "imageURL", "imageURLHighRes"}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> ShopFiles:
    started = time.process_time()
    files = make_shop(tmp_path_factory.mktemp("shop") / "raw")
    assert time.process_time() - started < 10
    return files


@pytest.fixture(scope="module")
def truth(shop: ShopFiles) -> Truth:
    return load_truth(shop.truth)


@pytest.fixture(scope="module")
def folder(shop: ShopFiles) -> DatasetFolder:
    data_path = shop.folder.parent / "dataset"
    made = convert_amazon("shop", shop.reviews, shop.meta, data_path, sessions="day")
    counts = attach_images(made.path, shop.images)
    assert counts.ok == made.counts["items"]
    return DatasetFolder.open(data_path, "shop")


def words_of(records: list[dict[str, Any]]) -> Iterator[str]:
    for record in records:
        yield from re.findall(r"[a-z]+", json.dumps(record).lower())


def test_files_have_the_published_keys(shop: ShopFiles) -> None:
    assert all(r.keys() == REVIEW_KEYS for r in lines(shop.reviews))
    assert all(r.keys() == META_KEYS for r in lines(shop.meta))
    assert all(re.fullmatch(r"\$[\d,]+\.\d\d", r["price"]) for r in lines(shop.meta))


def test_each_attribute_is_in_one_modality_only(shop: ShopFiles, truth: Truth) -> None:
    metadata = lines(shop.meta)
    spoken = set(words_of(metadata)) | set(words_of(lines(shop.reviews)))
    assert spoken.isdisjoint(COLOURS + SHAPES)
    for record in metadata:
        index = truth.position[record["asin"]]
        others = {k: v for k, v in record.items() if k != "brand"}
        assert record["brand"] == truth.value(index, "brand")
        assert not set(BRANDS) & set(re.findall(r"\w+", json.dumps(others)))
        assert [s for s in STYLES if s in record["title"].lower()] == [truth.value(index, "style")]
        assert truth.value(index, "kind").capitalize() in record["title"].split()
        assert record["category"][-1] == truth.value(index, "kind").capitalize() + "s"
        assert (shop.images / record["imageURLHighRes"][0].rpartition("/")[2]).is_file()
    said = {r["item_id"]: r["keywords"].split(";") for r in csv.DictReader(shop.keywords.open())}
    values = [[truth.value(k, "colour"), truth.value(k, "shape")] for k in range(len(said))]
    assert [said[item_id] for item_id in truth.item_ids] == values


def test_colour_and_shape_can_be_seen(shop: ShopFiles, truth: Truth) -> None:
    """The paint's mean colour tells the eight colours apart, by nearest class mean."""
    names = {r["asin"]: r["imageURLHighRes"][0].rpartition("/")[2] for r in lines(shop.meta)}
    paint = []
    for item_id in truth.item_ids:
        pixels = np.asarray(Image.open(shop.images / names[item_id]), dtype=float).reshape(-1, 3)
        distance = np.abs(pixels - np.median(pixels[:64], axis=0)).sum(axis=1)
        paint.append(np.median(pixels[distance >= np.quantile(distance, 0.95)], axis=0))
    seen, colours = np.array(paint), truth.attributes["colour"]
    half = np.arange(len(seen)) % 2 == 0
    means = np.stack([np.median(seen[half & (colours == c)], axis=0) for c in range(len(COLOURS))])
    guess = np.linalg.norm(seen[:, None] - means[None], axis=2).argmin(axis=1)
    assert (guess == colours)[~half].mean() > 0.95


def test_attributes_are_independent_and_values_follow_each_other_in_pairs(truth: Truth) -> None:
    for driver in DRIVERS:
        partner, own = truth.follows[driver], np.arange(len(VALUES[driver]))
        assert (partner != own).all()
        np.testing.assert_array_equal(partner[partner], own)
    names = list(VALUES)
    for a in names:
        for b in names[names.index(a) + 1 :]:
            table = np.zeros((len(VALUES[a]), len(VALUES[b])))
            np.add.at(table, (truth.attributes[a], truth.attributes[b]), 1)
            expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
            chi2 = float(((table - expected) ** 2 / expected).sum())
            freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
            assert chi2 < freedom + 4 * (2 * freedom) ** 0.5


def test_transitions_have_the_planted_frequencies() -> None:
    """Observed share of matches per driver against its expectation, transition by transition."""
    config = ShopConfig(seed=3)
    truth = make_truth(config)
    observed, expected, variance = np.zeros(4), np.zeros(4), np.zeros(4)
    for session in make_sessions(config, truth):
        day = session.times[0] // 86_400
        assert session.times[-1] // 86_400 == day
        assert len(set(session.items)) == len(session.items)
        assert 2 <= len(session.items) <= 8
        assert (truth.launch_day[session.items] <= day).all()
        for k in range(1, len(session.items)):
            before, after = session.items[k - 1], session.items[k]
            law = truth.popularity * (truth.launch_day <= day) * np.exp(truth.affinity[before])
            law[session.items[:k]] = 0
            share = truth.matches[:, before] @ (law / law.sum())
            observed += truth.matches[:, before, after]
            expected += share
            variance += share * (1 - share)
    assert np.all(np.abs(observed - expected) < 4 * np.sqrt(variance))
    # Far from what attributes without an effect would give (1/8, 1/6, 1/6, 1/8).
    assert np.all(observed / config.sessions / 3 > [0.5, 0.5, 0.3, 0.25])


def test_many_test_targets_are_rare_or_unseen(folder: DatasetFolder) -> None:
    counts = folder.train_item_counts()
    targets = [items[-1] for _, items in folder.sessions("test")]
    unseen = np.mean([counts[t] == 0 for t in targets])
    assert unseen + np.mean([0 < counts[t] < 5 for t in targets]) >= 0.35
    assert 0.25 < unseen < 0.6
    assert sum(0 < counts[i] < 5 for i in folder.item_ids) >= 50
    split = json.loads((folder.path / "split.json").read_text())["parts"]
    assert 3.5 < split["train"]["interactions"] / split["train"]["sessions"] < 4.5


def test_the_oracle_needs_both_modalities(folder: DatasetFolder, truth: Truth) -> None:
    sessions = list(folder.sessions("test"))
    contexts = [items[:-1] for _, items in sessions]
    target = [truth.position[items[-1]] for _, items in sessions]
    days = [(date.fromisoformat(s[-10:]) - date(1970, 1, 1)).days for s, _ in sessions]

    def hit_rate(mask: tuple[int, int, int, int]) -> float:
        blinded = replace(truth, weights=truth.weights * np.array(mask))
        scores = oracle_scores(blinded, contexts, days)
        own = scores[np.arange(len(target)), target]
        return float(((scores > own[:, None]).sum(axis=1) < 10).mean())

    full, visual, textual = hit_rate((1, 1, 1, 1)), hit_rate((1, 0, 1, 0)), hit_rate((0, 1, 0, 1))
    popular = hit_rate((0, 0, 0, 0))
    assert full > 0.55
    assert max(visual, textual) < full - 0.1
    assert popular < min(visual, textual) - 0.1


def test_same_seed_same_bytes_other_seed_other_shop(tmp_path: Path) -> None:
    small = ShopConfig(items=60, users=50, sessions=100)
    folders = [make_shop(tmp_path / n, small).folder for n in "ab"]
    files = sorted(p.relative_to(folders[0]) for p in folders[0].rglob("*") if p.is_file())
    assert len(files) == 64
    assert all((folders[0] / f).read_bytes() == (folders[1] / f).read_bytes() for f in files)
    other = make_shop(tmp_path / "c", small, seed=8)
    assert other.reviews.read_bytes() != (folders[0] / "reviews.json.gz").read_bytes()


def test_bad_settings_and_contexts_are_refused(tmp_path: Path, truth: Truth) -> None:
    with pytest.raises(InputError, match="Raise users"):
        make_shop(tmp_path, users=2)
    with pytest.raises(InputError, match="unknown item 'B1'"):
        oracle_scores(truth, [["B1"]])
    with pytest.raises(InputError, match="Cannot read"):
        load_truth(tmp_path / "truth.json")


def test_a_row_of_the_affinities() -> None:
    truth = make_truth(ShopConfig(items=50, colour_weight=0.7))
    for item in (0, 17, 49):
        np.testing.assert_allclose(truth.affinity_after(item), truth.affinity[item])
