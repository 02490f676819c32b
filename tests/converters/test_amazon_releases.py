"""The releases of 2014, 2018 and 2023: recognition, reading, item content."""

from __future__ import annotations

import ast
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_amazon import SHARED, START, random_reviews, raw_files, rows, write_lines

from dataset_converters.amazon import convert_amazon
from dataset_converters.amazon_records import RELEASES, item_content
from dataset_converters.download_urls import candidates
from dataset_converters.errors import InputError
from dataset_converters.json_records import parse_literal
from recbole_tpad.data import DatasetFolder

REVIEWS = random_reviews(20, n=300)
ITEMS = sorted({item for _, item, _ in REVIEWS})


def release_of(path: Path) -> str:
    return str(json.loads((path / "dataset.json").read_text())["source"]["release"])


def files_2014(folder: Path, **more: Any) -> tuple[Path, Path]:
    reviews = [
        {"reviewerID": u, "asin": i, "helpful": [0, 1], "overall": 5.0, "unixReviewTime": t}
        for u, i, t in REVIEWS
    ]
    records = [
        {
            "asin": i,
            "title": f'Don\'t "Mug" {i}',
            "price": 9.49,
            "imUrl": f"http://example.com/{i}.jpg",
            "brand": "Ac\\me\n",
            "related": {"also_bought": ["A", "B"]},
            "categories": [["Home", "Mugs"], ["Other"]],
            **more,
        }
        for i in ITEMS
    ]
    folder.mkdir()
    return (
        write_lines(folder / "r.json.gz", reviews),
        write_lines(folder / "m.json.gz", (repr(r) + "\n" for r in records)),
    )


def files_2023(folder: Path, *, array: bool = False) -> tuple[Path, Path]:
    reviews = [
        {"user_id": u, "asin": "variant", "parent_asin": i, "timestamp": 1000 * t + k % 7}
        for k, (u, i, t) in enumerate(REVIEWS)
    ]
    url = "https://example.com/"
    images = [
        {"thumb": url + "t", "large": url + "l", "hi_res": url + "h"},
        {"thumb": url + "t2", "large": url + "l2", "hi_res": None},
    ]
    records = [
        {
            "main_category": "Home",
            "title": f"Mug {i}",
            "store": "Acme",
            "features": ["a", "b &amp; c"],
            "price": "None",
            "images": images,
            "categories": ["Home", "Mugs"],
            "parent_asin": i,
        }
        for i in ITEMS
    ]
    folder.mkdir()
    if array:
        (folder / "r.json").write_text(json.dumps(reviews, indent=1))
        (folder / "m.json").write_bytes(gzip.compress(json.dumps(records).encode()))
        return folder / "r.json", folder / "m.json"
    return write_lines(folder / "r", reviews), write_lines(folder / "m", records, gz=False)


def test_2014(tmp_path: Path) -> None:
    made = convert_amazon("x", *files_2014(tmp_path / "raw"), tmp_path)
    assert release_of(made.path) == "2014"
    item = json.loads((made.path / "items.jsonl").read_text().splitlines()[0])
    assert item["title"] == f'Don\'t "Mug" {item["item_id"]}'
    assert (item["brand"], item["price"]) == ("Ac\\me", 9.49)
    assert "smaller_image_urls" not in item
    assert item["category_path"] == ["Home", "Mugs"]
    assert item["image_urls"] == [f"http://example.com/{item['item_id']}.jpg"]
    other = convert_amazon("x", *raw_files(tmp_path / "new", REVIEWS), tmp_path / "other")
    for name in ("x.inter", "x.train.inter", "x.test.inter"):
        assert (made.path / name).read_bytes() == (other.path / name).read_bytes()


@pytest.mark.parametrize("array", [False, True])
def test_2023(tmp_path: Path, array: bool) -> None:
    made = convert_amazon("x", *files_2023(tmp_path / "raw", array=array), tmp_path)
    assert release_of(made.path) == "2023"
    item = json.loads((made.path / "items.jsonl").read_text().splitlines()[0])
    url = "https://example.com/"
    assert item["image_urls"] == [url + "h", url + "l2"]
    assert item["smaller_image_urls"] == [[url + "l", url + "t"], [url + "t2"]]
    assert (item["brand"], item["price"], item["category"]) == ("Acme", None, "Mugs")
    assert item["features"] == ["a", "b & c"]
    # Whole seconds are written, the order is that of the milliseconds.
    found: dict[str, list[tuple[int, str]]] = {}
    for session, name, time in rows(made.path / "x.inter"):
        found.setdefault(session, []).append((int(time), name))
    by_user: dict[str, list[tuple[int, int, str]]] = {}
    for k, (user, name, time) in enumerate(REVIEWS):
        by_user.setdefault(user, []).append((1000 * time + k % 7, k, name))
    for user, mine in found.items():
        first = min(by_user[user])[0]
        day = [row for row in sorted(by_user[user]) if row[0] < first + 86_400_000]
        assert [(ms // 1000, name) for ms, _, name in day] == mine


@pytest.mark.parametrize("exact", [False, True])
def test_images_of_2018_in_both_variants(tmp_path: Path, exact: bool) -> None:
    """What the metadata say of an image is what the downloader tries, size by size."""
    url = "https://example.com/"
    second = {"imageURL": [url + "s", url + "t"], "imageURLHighRes": [url + "l", url + "m"]}
    first = {"image": [url + "s", url + "t"], "imageURL": None, "imageURLHighRes": None}
    found = {}
    for name, images in (("second", second), ("first", first)):
        files = raw_files(tmp_path / name, REVIEWS, **images)
        made = convert_amazon("x", *files, tmp_path / f"{name}-data", exact=exact)
        found[name] = json.loads((made.path / "items.jsonl").read_text().splitlines()[0])
    assert found["second"]["image_urls"] == second["imageURLHighRes"]
    assert found["second"]["smaller_image_urls"] == [[url + "s"], [url + "t"]]
    assert candidates(found["second"]) == [url + name for name in "lsmt"]
    assert "smaller_image_urls" not in found["first"]
    assert candidates(found["first"]) == [url + name for name in "st"]


def test_a_release_can_be_forced_where_it_fits(tmp_path: Path) -> None:
    files = files_2014(tmp_path / "raw")
    assert release_of(convert_amazon("x", *files, tmp_path, release="2018").path) == "2018"
    with pytest.raises(InputError, match=r"not reviews of Amazon's 2023.*looks like the 2014"):
        convert_amazon("y", *files, tmp_path, release="2023")
    mixed = files[0], raw_files(tmp_path / "new", REVIEWS)[1]
    with pytest.raises(InputError, match=r"different releases.*2014.*2018.*--release"):
        convert_amazon("y", *mixed, tmp_path)
    assert convert_amazon("y", *mixed, tmp_path, release="2018").counts["items_with_title"]


def test_a_time_stamp_in_the_wrong_unit_is_no_review(tmp_path: Path) -> None:
    records = [{"user_id": u, "parent_asin": i, "timestamp": t} for u, i, t in REVIEWS]
    _, metadata = files_2023(tmp_path / "raw")
    with pytest.raises(InputError, match=r"'timestamp' \d+ is not in milliseconds"):
        convert_amazon("x", write_lines(tmp_path / "r", records), metadata, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"user_id": "u", "parent_asin": "i"}, {"a": tru}]', "Expecting"),
        ('[{"user_id": "u", "parent_asin": "i"} {"a": 1}]', "comma"),
        ('[{"user_id": "u", "parent_asin": "i"}', "no end"),
        ('[{"user_id": "u", "parent_asin": "i"}] x', "after the"),
    ],
)
def test_a_broken_array_is_named(tmp_path: Path, text: str, message: str) -> None:
    _, metadata = files_2023(tmp_path / "raw")
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=rf"r.json, element [12] .*{message}"):
        convert_amazon("x", tmp_path / "r.json", metadata, tmp_path)


def test_a_cut_array_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    reviews, metadata = files_2023(tmp_path / "raw", array=True)
    whole = gzip.compress(reviews.read_bytes())
    reviews.write_bytes(whole[: len(whole) * 4 // 5])
    with pytest.raises(InputError, match=r"truncated.*elements of its array"):
        convert_amazon("x", reviews, metadata, tmp_path)
    made = convert_amazon("x", reviews, metadata, tmp_path, allow_truncated=True)
    assert 100 < made.counts["reviews_read"] < len(REVIEWS)
    assert made.truncated[0].truncated_after == made.counts["reviews_read"]


def test_item_content_of_2018_versions_and_nulls() -> None:
    old = item_content({"asin": "a", "image": ["s"], "title": None, "category": None})
    assert (old.image_urls, old.has_large_image, old.title) == (("s",), True, "")
    new = {"asin": "a", "imageURL": ["s"], "imageURLHighRes": None}
    assert item_content(new).has_large_image
    assert not item_content({**new, "imageURLHighRes": []}).has_large_image
    lists = {"parent_asin": "a", "images": {"hi_res": [None, "h"], "large": ["l", "m"]}}
    assert item_content(lists, RELEASES["2023"]).image_urls == ("l", "h")


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), LITERALS, max_size=4))
def test_python_literals_are_read_as_python_reads_them(record: dict[str, Any]) -> None:
    text = repr(record).replace("inf", "1e999")
    assert parse_literal(text) == ast.literal_eval(text)


@pytest.mark.parametrize(
    "text",
    ["{'a': ('x', 'y')}", "{'a': u'x'}", "{'a': 'x' 'y'}", "{'a': '''x'''}", "{'a': 1,}", "{1: 2}"],
)
def test_rarer_literals_are_read(text: str) -> None:
    assert parse_literal(text) == ast.literal_eval(text)


@pytest.mark.parametrize(
    "text",
    [
        "{'a': __import__('os')}",
        "{'a': open('x')}",
        "{'a': nan}",
        "{'a': '\\x'}",
        "{'a'",
        "{'a': x}",
    ],
)
def test_a_literal_is_never_evaluated(text: str) -> None:
    with pytest.raises(ValueError):
        parse_literal(text)


def test_literal_lines_that_are_none_are_rejected(tmp_path: Path) -> None:
    reviews, metadata = files_2014(tmp_path / "raw")
    good = gzip.decompress(metadata.read_bytes())
    bad = b"{'asin': __import__('os').getcwd()}\n"
    metadata.write_bytes(gzip.compress(good + bad))
    made = convert_amazon("x", reviews, metadata, tmp_path, max_rejected=0.1)
    rejected = json.loads((made.path / "rejected.jsonl").read_text())
    assert (rejected["line"], rejected["file"]) == (len(ITEMS) + 1, "m.json.gz")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared real data")
def test_published_samples_of_2023(tmp_path: Path) -> None:
    folder = SHARED / "amazon2023_samples"
    made = convert_amazon(
        "x", folder / "amazon_fashion_sample_5000.json", folder / "meta_sample.jsonl", tmp_path
    )
    counts = made.counts
    assert (counts["reviews_read"], counts["users_read"]) == (5000, 1873)
    assert (counts["items_read"], counts["metadata_records"]) == (4459, 2)
    with pytest.raises(InputError, match="No interaction is left"):
        convert_amazon("y", folder / "reviews_sample.jsonl", folder / "meta_sample.jsonl", tmp_path)
    # The two metadata records belong to other products: give them reviews.
    lines = (folder / "meta_sample.jsonl").read_text().splitlines()
    ids = [json.loads(line)["parent_asin"] for line in lines]
    records = [
        {"user_id": f"U{k}", "parent_asin": item, "timestamp": 1000 * (START + k)}
        for k in range(20)
        for item in ids
    ]
    source = write_lines(tmp_path / "r", records)
    convert_amazon("z", source, folder / "meta_sample.jsonl", tmp_path)
    items = {item.item_id: item for item in DatasetFolder.open(tmp_path, "z").items}
    earrings = items["B01HYNE114"]
    assert earrings.brand == "Zoë Noelle Designs"
    assert earrings.category == "Drop & Dangle"
