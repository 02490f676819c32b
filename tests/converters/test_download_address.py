"""Which addresses are public, how long a server asks to wait, and encrypted connections."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import shutil
import ssl
import subprocess
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_server import picture, serving

from dataset_converters.download import DownloadOptions, download_images
from dataset_converters.download_address import is_public
from dataset_converters.download_fetch import parse_target, retry_after
from dataset_converters.download_urls import candidates
from dataset_converters.images import read_records

# RFC 6890 and its registry's later entries, multicast and class E.
NOT_PUBLIC = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
    *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
]
NOT_PUBLIC_6 = ["::/127", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "2001:db8::/32"]


@pytest.mark.parametrize("network", [*NOT_PUBLIC, *NOT_PUBLIC_6])
@settings(deadline=None)  # a busy machine is no failure
@given(st.data())
def test_special_networks_are_not_public(network: str, data: st.DataObject) -> None:
    inside = ipaddress.ip_network(network)
    first, last = int(inside[0]), int(inside[-1])
    address = type(inside[0])(data.draw(st.integers(first, last)))
    assert not is_public(str(address))


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 2**32 - 1))
def test_ipv4_inside_ipv6_is_judged_by_what_it_carries(number: int) -> None:
    plain = ipaddress.IPv4Address(number)
    expected = is_public(str(plain))
    assert is_public(str(ipaddress.IPv6Address((0xFFFF << 32) | number))) == expected
    assert is_public(str(ipaddress.IPv6Address((0x0064FF9B << 96) | number))) == expected
    assert is_public(str(ipaddress.IPv6Address((0x2002 << 112) | (number << 80) | 1))) == expected


@pytest.mark.parametrize("address", ["8.8.8.8", "151.101.1.16", "2606:4700::1111"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)
    assert not is_public("fe80::1%eth0")


def test_waits() -> None:
    assert retry_after("7", 0.0) == 7
    assert retry_after(formatdate(1_000_030, usegmt=True), 1_000_000.0) == 30
    assert retry_after(formatdate(999, usegmt=True), 1_000_000.0) == 0
    for nothing in (None, "", "soon", "-3", "²"):
        assert retry_after(nothing, 0.0) is None


@settings(deadline=None)  # a busy machine is no failure
@given(st.text())
def test_any_text_is_an_address_or_a_reason(text: str) -> None:
    for url in (text, f"http://{text}", f"https://example.com/{text}"):
        target = parse_target(url)
        assert isinstance(target, str) or target.scheme in ("http", "https")


def test_smaller_sizes_come_before_the_next_image() -> None:
    amazon = "https://m.media-amazon.com/images/I/"
    plain = "https://example.com/images/I/"
    item = {"image_urls": [f"{amazon}41ab._SL1500_.jpg", f"{plain}b._SX1_.jpg", f"{amazon}c.png"]}
    assert candidates(item) == [
        *(
            f"{amazon}41ab{end}"
            for end in ("._SL1500_.jpg", ".jpg", "._SL500_.jpg", "._SL160_.jpg")
        ),
        f"{plain}b._SX1_.jpg",
        *(f"{amazon}c{end}" for end in (".png", "._SL500_.png", "._SL160_.png")),
    ]
    thumbnail = f"{amazon}d._SR80,60_.jpg"
    sizes = (f"{amazon}d.jpg", f"{amazon}d._SL500_.jpg", thumbnail, f"{amazon}d._SL160_.jpg")
    assert candidates({"image_urls": [thumbnail]}) == list(sizes)
    item["smaller_image_urls"] = [["l", "s"], ["s"]]
    first, second, third = item["image_urls"]
    resized = [f"{amazon}41ab{end}" for end in (".jpg", "._SL500_.jpg", "._SL160_.jpg")]
    assert candidates(item)[:8] == [first, "l", *resized, "s", second, third]
    assert candidates({"image_urls": [f"u{k}" for k in range(50)]}) == [f"u{k}" for k in range(12)]
    for nothing in ({}, {"image_urls": None}, {"image_urls": []}):
        assert candidates(nothing) == []
    for odd in ("https://m.media-amazon.com.evil.example/images/I/a.jpg", "https://[::1", "x"):
        assert candidates({"image_urls": [odd]}) == [odd]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key)]
    subprocess.run([*command, "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    options = dataclasses.replace(DownloadOptions(), allow_private=True, retries=0)
    with serving() as server:
        server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
        server.bodies["/a"] = picture()
        port = server.url.rpartition(":")[2]
        for host in ("localhost", "127.0.0.1"):
            urls = [f"https://{host}:{port}/a"]
            (tmp_path / host).mkdir()
            (tmp_path / host / "items.jsonl").write_text(
                json.dumps({"item_id": "i", "image_urls": urls}) + "\n"
            )
        download_images(tmp_path / "localhost", options)
        record = read_records(tmp_path / "localhost")["i"]
        assert (record["status"], record["attempts"]) == ("failed", 1)
        assert record["reason"].startswith("certificate refused")
        assert not server.asked
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert download_images(tmp_path / "localhost", options).statuses["ok"] == 1
        # A good certificate of another name.
        assert download_images(tmp_path / "127.0.0.1", options).statuses["failed"] == 1
