"""Attaching local images: what is found, what is refused, and repeated runs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from raw_amazon import random_reviews, raw_files

from dataset_converters.amazon import convert_amazon
from dataset_converters.errors import InputError
from dataset_converters.images import ImageCounts, attach_images
from recbole_tpad.data import DatasetFolder


def encoded(kind: str, size: int = 8, colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(out, format=kind)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = raw_files(tmp_path / "raw", random_reviews(1, items=6))
    return convert_amazon("x", *files, tmp_path / "dataset").path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "pictures"
    source.mkdir()
    (source / "I0.png").write_bytes(encoded("PNG"))  # by item id
    (source / "I1.jpg").write_bytes(encoded("PNG"))  # wrong extension
    (source / "I2.jpg").write_bytes(encoded("JPEG")[:200])  # cut
    (source / "I3.jpg").write_bytes(encoded("JPEG", size=64))  # over the size cap below
    (source / "I4.png").write_text("<html>404</html>")  # a page, but a good second file:
    (source / "I4.jpg").write_bytes(encoded("JPEG"))
    return source


def records(folder: Path) -> dict[str, dict[str, str]]:
    lines = (folder / "images.jsonl").read_text().splitlines()
    return {r["item_id"]: r for r in map(json.loads, lines)}


def test_each_item_gets_a_status(folder: Path, source: Path) -> None:
    counts = attach_images(folder, source, max_pixels=1000)
    assert counts == ImageCounts(ok=3, missing=1, unreadable=2, copied=3)
    found = records(folder)
    statuses = {item: r["status"] for item, r in found.items()}
    assert [statuses[f"I{k}"] for k in range(6)] == [
        "ok",
        "ok",
        "unreadable",
        "unreadable",
        "ok",
        "missing",
    ]
    assert found["I1"]["file"] == "images/I1.png"
    items = {i.item_id: i.image for i in DatasetFolder.open(folder.parent, "x").items}
    assert items["I0"] == folder / "images" / "I0.png"
    assert items["I2"] is None
    assert items["I5"] is None


def test_a_second_run_copies_only_what_changed(folder: Path, source: Path) -> None:
    attach_images(folder, source, max_pixels=1000)
    before = (folder / "images.jsonl").read_bytes()
    assert attach_images(folder, source, max_pixels=1000).copied == 0
    assert (folder / "images.jsonl").read_bytes() == before
    (folder / "images" / "I0.png").unlink()
    (folder / "images" / "I1.png").write_bytes(b"cut")
    (source / "I4.jpg").write_bytes(encoded("JPEG", colour="blue"))
    (source / "I5.png").write_bytes(encoded("PNG"))
    assert attach_images(folder, source, max_pixels=1000).copied == 4
    assert (folder / "images" / "I1.png").read_bytes() == encoded("PNG")


def test_good_images_stay_when_the_next_source_lacks_them(
    folder: Path, source: Path, tmp_path: Path
) -> None:
    attach_images(folder, source)
    ok = attach_images(folder, source).ok
    (tmp_path / "empty").mkdir()
    assert attach_images(folder, tmp_path / "empty").ok == ok


def test_base_names_of_urls_are_found(folder: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    lines[0]["image_urls"] = ["https://x.com/I/none.jpg", "https://x.com/I/41f%2BUj.jpg?w=1"]
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "41f+Uj.jpg").write_bytes(encoded("JPEG"))
    assert attach_images(folder, tmp_path / "pictures").ok == 1
    assert records(folder)["I0"]["file"] == "images/I0.jpg"


def test_wrong_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent is not a folder"):
        attach_images(folder, tmp_path / "absent")
    with pytest.raises(InputError, match=r"not a data set folder.*items\.jsonl"):
        attach_images(tmp_path, folder)
