"""Cleaning of product text."""

from __future__ import annotations

import pytest

from dataset_converters.amazon_records import item_content
from dataset_converters.text import clean_name, clean_text, parse_price


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Tom &amp;amp; Jerry&#39;s", "Tom & Jerry's"),
        ("<div class='x'>A<br/>mug</div>", "A mug"),
        ("I <3 tea & 2 < 3", "I <3 tea & 2 < 3"),
        ("a<script>var x = '<b>';</script>b<style>.a{b:c}", "a b"),
        (" a\tb\n\x00c\u2028d ", "a b c d"),
        ("half \ud83d pair", "half pair"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
    ],
)
def test_clean_text(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


@pytest.mark.parametrize(
    "source",
    [
        '<span class="a-size-medium a-color-secondary"',
        ".a-box-inner{background-color:#fff}#alohaBuyBoxWidget .selected{border:0;}",
        "var aPageStart = (new Date()).getTime();",
        "&lt;img src=x&gt; mug",
    ],
)
def test_page_source_is_no_name(source: str) -> None:
    assert clean_name(source) == ""


def test_a_name_with_plain_tags_stays() -> None:
    assert clean_name("<b>Mug</b> {red}, function of 2") == "Mug {red}, function of 2"


@pytest.mark.parametrize(
    ("raw", "price"),
    [
        ("$1,250.00", 1250.0),
        ("$5.99 - $12.99", 5.99),
        ("12", 12.0),
        (3, 3.0),
        ("", None),
        (".a-box-inner{color:#fff}", None),
        ("$1,2", None),
        (True, None),
        (float("nan"), None),
    ],
)
def test_price(raw: object, price: float | None) -> None:
    assert parse_price(raw) == price


def test_large_images_are_preferred_and_version_1_is_read() -> None:
    small, large = ["https://x/s.jpg"], ["https://x/l.jpg", "https://x/l.jpg"]
    both = item_content({"asin": "a", "imageURL": small, "imageURLHighRes": large})
    assert both.image_urls == ("https://x/l.jpg",)
    assert both.has_large_image
    lacking = item_content({"asin": "a", "imageURL": small, "imageURLHighRes": []})
    assert lacking.image_urls == ("https://x/s.jpg",)
    assert not lacking.has_large_image
    old = item_content({"asin": "a", "image": small})
    assert old.image_urls == ("https://x/s.jpg",)
    assert old.has_large_image


def test_smaller_images_are_kept_image_by_image() -> None:
    def images(**record: object) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
        item = item_content({"asin": "a", **record})
        return item.image_urls, item.smaller_image_urls

    # 2014 and the first metadata of 2018 name one size.
    assert images(imUrl="u") == (("u",), ())
    assert images(image=["u", "v"]) == (("u", "v"), ())
    assert images(imageURL=["s"], imageURLHighRes=[]) == (("s",), ())
    # The second metadata of 2018 have two lists, image by image; else nothing says whose is whose.
    both = images(imageURL=["s", "t", "s"], imageURLHighRes=["l", "m", "l"])
    assert both == (("l", "m"), (("s",), ("t",)))
    assert images(imageURL=["s"], imageURLHighRes=["l", "m"]) == (("l", "m"), ())
    # 2023 has an object an image, or a list a size.
    first = {"hi_res": "h", "large": "l", "thumb": "t"}
    second = {"hi_res": None, "large": "m", "thumb": "m"}
    expected = (("h", "m"), (("l", "t"), ()))
    assert images(images=[first, second]) == expected
    sizes = {"hi_res": ["h", None], "large": ["l", "m"], "thumb": ["t", "m"]}
    assert images(images=sizes) == expected
