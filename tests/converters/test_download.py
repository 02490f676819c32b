"""Downloading images from a server that misbehaves in every way we know of."""

from __future__ import annotations

import io
import itertools
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from downloads import data_set, one, run
from picture_server import PictureServer, picture, png_bomb, serving
from PIL import Image

from dataset_converters.files import sha256_file
from dataset_converters.images import read_records

# For servers that never answer: short, and only for them, since this machine may be busy.
HASTY = {"read_timeout": 0.3, "time_limit": 0.6}


def test_good_images_are_stored_with_their_facts(server: PictureServer, tmp_path: Path) -> None:
    server.bodies |= {"/a.png": picture("red"), "/b.jpg": picture("blue", "PNG")}
    server.bodies["/c"] = picture("green", "WEBP")
    server.bodies["/moved/there.jpg"] = server.bodies["/b"] = picture("green")
    urls = {"a": "/a.png", "b": "/b.jpg?size=2", "c": "/c", "e": "/unannounced", "f": "/chunked/x"}
    folder = data_set(tmp_path, {k: [server.url + u] for k, u in urls.items()} | {"d": []})
    summary = run(folder)
    assert summary.statuses["ok"] == summary.fetched == summary.requests == 5
    records = read_records(folder)
    assert list(records) == [*urls, "d"]
    # The type is that of the bytes.
    assert [records[k]["file"] for k in "abc"] == ["images/a.jpg", "images/b.png", "images/c.webp"]
    assert records["a"]["sha256"] == sha256_file(folder / "images" / "a.jpg")
    assert (folder / "images" / "a.jpg").read_bytes() == picture("red")
    assert (records["a"]["width"], records["a"]["height"], records["a"]["attempts"]) == (40, 30, 1)
    assert records["a"]["url"] == server.url + "/a.png"
    assert records["d"]["status"] == "missing"
    assert records["d"]["reason"] == "no image address"
    assert not list(folder.rglob("*.tmp"))
    assert not (folder / "images.journal.jsonl").exists()


def test_nothing_of_the_environment_is_used(
    server: PictureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.bodies["/a"] = picture()
    assert one(tmp_path / "x", f"{server.url}/a")["status"] == "ok"
    assert set(server.headers[0]) <= {"host", "user-agent", "accept", "accept-encoding"}


@pytest.mark.parametrize(
    ("path", "status", "reason", "requests"),
    [
        ("/absent.jpg", "missing", "HTTP 404", 1),
        ("/status/403", "missing", "HTTP 403", 1),
        ("/status/204", "missing", "HTTP 204", 1),
        ("/html/x.jpg", "unreadable", "a web page, not an image", 1),
        ("/circle/a", "missing", "more than 5 redirects", 6),
        ("/to?ftp://example.com/x", "refused", "not an http", 1),
        ("/to?file:///etc/passwd", "refused", "not an http", 1),
        ("/to?http://u:p@example.com/", "refused", "a user name", 1),
        ("/short-length", "unreadable", "damaged image", 1),
        ("/endless", "unreadable", "more than 300,000 bytes", 1),
        ("/zipped", "unreadable", "a compressed answer", 1),
        ("/bomb", "unreadable", "8,000 x 8,000 pixels", 1),
        ("/svg", "unreadable", "SVG", 1),
        ("/empty", "unreadable", "empty", 1),
        ("/dot", "placeholder", "1 x 1 pixels", 1),
        ("/cut/always", "failed", "cut after 200 of", 3),
        ("/chunked/cut", "failed", "cut after", 3),
        ("/stall", "failed", "no answer in time", 3),
        ("/drip/body", "failed", "took longer than 0.6 s", 3),
        ("/drip/header", "failed", "took longer than 0.6 s", 3),
        ("/status/500", "failed", "HTTP 500", 3),
        ("/busy/99/0/x", "failed", "HTTP 429", 3),
    ],
)
def test_what_cannot_be_had_is_a_status(
    server: PictureServer, tmp_path: Path, path: str, status: str, reason: str, requests: int
) -> None:
    server.bodies |= {"/svg": b"<?xml?><svg/>", "/empty": b""}
    if path == "/bomb":
        server.bodies[path] = png_bomb()
    server.bodies["/dot"] = picture(size=(1, 1), kind="GIF")
    limits: dict[str, Any] = HASTY if path.startswith(("/stall", "/drip")) else {}
    limits = limits | {"max_bytes": 300_000 if path == "/endless" else 10**6}
    record = one(tmp_path, server.url + path, **limits)
    assert record["status"] == status
    assert reason in record["reason"]
    assert record["attempts"] == sum(server.asked.values()) == requests
    assert record["file"] is None
    assert not list((tmp_path / "images").iterdir())


@pytest.mark.parametrize(
    ("path", "requests"),
    [("/cut/once", 2), ("/flaky/2", 3), ("/busy/1/0/x", 2), ("/moved/a.jpg", 2)],
)
def test_passing_trouble_passes(
    server: PictureServer, tmp_path: Path, path: str, requests: int
) -> None:
    server.bodies["/a.jpg"] = picture()
    record = one(tmp_path, server.url + path)
    assert (record["status"], record["attempts"]) == ("ok", requests)


def test_a_host_that_asks_to_wait_is_left_alone(server: PictureServer, tmp_path: Path) -> None:
    names = [f"/busy/1/1/{k}" for k in range(3)]
    folder = data_set(tmp_path, {str(k): [server.url + n] for k, n in enumerate(names)})
    assert run(folder, per_host=1, retries=3).statuses["ok"] == 3
    moments = sorted(m for times in server.moments.values() for m in times)
    # Each 429 keeps every request back for its second; only one request at a time asks for it.
    assert min(b - a for a, b in itertools.pairwise(moments[:4])) > 0.9


def test_a_server_that_asks_for_too_long_a_wait_is_given_up(
    server: PictureServer, tmp_path: Path
) -> None:
    urls = {str(k): [f"{server.url}/busy/9/3600/{k}"] for k in range(30)}
    folder = data_set(tmp_path, urls)
    summary = run(folder, per_host=2)
    assert summary.statuses["failed"] == 30
    assert summary.requests <= 3
    assert "asks to wait 3,600 s" in next(iter(summary.hosts_down.values()))


def test_a_dead_host_is_given_up_and_others_are_not(server: PictureServer, tmp_path: Path) -> None:
    server.bodies["/a"] = picture()
    dead = "http://127.0.0.1:9/x"
    urls = {f"d{k}": [dead] for k in range(40)} | {f"g{k}": [dead, f"{server.url}/a"] for k in "ab"}
    summary = run(data_set(tmp_path, urls), give_up_after=5, retries=0)
    assert (summary.statuses["failed"], summary.statuses["ok"]) == (40, 2)
    assert "5 requests in a row got no answer" in next(iter(summary.hosts_down.values()))
    assert summary.requests < 15


def test_one_slow_host_does_not_keep_another_back(server: PictureServer, tmp_path: Path) -> None:
    with serving() as other:
        other.bodies["/a"] = picture()
        urls = {f"s{k}": [f"{server.url}/stall"] for k in range(3)}
        folder = data_set(tmp_path, urls | {f"f{k}": [f"{other.url}/a"] for k in range(8)})
        run(folder, workers=4, per_host=2, retries=0, read_timeout=1.5, time_limit=3)
        # All of the other's are asked before the first of the slow one's have timed out.
        assert max(other.moments["/a"]) < max(server.moments["/stall"])


def test_no_more_than_the_limit_at_a_time(server: PictureServer, tmp_path: Path) -> None:
    server.slow = 0.02
    server.bodies["/a"] = picture()
    urls = {str(k): [f"{server.url}/a?{k}"] for k in range(30)}
    run(data_set(tmp_path, urls), per_host=3, workers=12)
    assert server.most_at_a_time == 3
    assert server.asked["/a"] == 30


def test_fallbacks_in_order(server: PictureServer, tmp_path: Path) -> None:
    server.bodies["/second.jpg"] = picture()
    large, small, second = (f"{server.url}/{n}.jpg" for n in ("large", "small", "second"))
    folder = data_set(tmp_path, {"i": [large, second]}, smaller_image_urls=[[small], []])
    assert run(folder).statuses["ok"] == 1
    assert list(server.asked) == ["/large.jpg", "/small.jpg", "/second.jpg"]
    record = read_records(folder)["i"]
    assert record["url"] == second
    assert record["failures"] == {large: "missing: HTTP 404", small: "missing: HTTP 404"}


def test_the_most_hopeful_failure_is_the_status(server: PictureServer, tmp_path: Path) -> None:
    paths = ("/absent", "/html/x", "/status/500", "/absent2")
    record = one(tmp_path, *(server.url + p for p in paths), retries=0)
    assert (record["status"], record["reason"]) == ("failed", "HTTP 500")


ENDS = {
    "/good": "ok",
    "/moved/good": "ok",
    "/flaky/2/{}": "ok",
    "/busy/1/0/{}": "ok",
    "/cut/once/{}": "ok",
    "/absent/{}": "missing",
    "/circle/a": "missing",
    "/html/{}": "unreadable",
    "/short-length/{}": "unreadable",
    "/dot": "placeholder",
    "/to?ftp://x": "refused",
    "/status/503/{}": "failed",
    "/cut/always/{}": "failed",
    "/drip/body/{}": "failed",
}


@pytest.mark.parametrize("seed", [1, 2])
def test_any_mixture_ends_as_its_parts_do(server: PictureServer, tmp_path: Path, seed: int) -> None:
    """The first good address counts; without one, the most hopeful failure."""
    draw = random.Random(seed)
    server.slow = 0.003
    server.bodies |= {"/good": picture(), "/dot": picture(size=(2, 2))}
    urls, expected = {}, {}
    rare = ["/drip/body/{}"]
    for k in range(120):
        kinds = [p for p in ENDS if p not in rare or k % 60 == 0]
        chosen = draw.sample(kinds, draw.randint(0, 4))
        urls[f"i{k}"] = [server.url + path.format(f"{k}-{n}") for n, path in enumerate(chosen)]
        found = {ENDS[path] for path in chosen}
        hopeful = ("ok", "failed", "unreadable", "placeholder", "refused", "missing")
        expected[f"i{k}"] = next((end for end in hopeful if end in found), "missing")
    folder = data_set(tmp_path, urls)
    summary = run(folder, per_host=5, time_limit=1.5)
    records = read_records(folder)
    assert {item: record["status"] for item, record in records.items()} == expected
    assert server.most_at_a_time <= 5
    assert summary.requests == sum(server.asked.values())
    assert sum(record["attempts"] for record in records.values()) == summary.requests
    stored = sorted(path.name for path in (folder / "images").iterdir())
    assert stored == sorted(f"{item}.jpg" for item, end in expected.items() if end == "ok")


def test_images_are_turned_reduced_and_made_rgb(server: PictureServer, tmp_path: Path) -> None:
    def stored(name: str, image: Image.Image, kind: str, **save: Any) -> Image.Image:
        out = io.BytesIO()
        image.save(out, format=kind, **save)
        server.bodies[f"/{name}"] = out.getvalue()
        record = one(tmp_path / name, f"{server.url}/{name}", size=64)
        made = Image.open(tmp_path / name / record["file"])
        assert (record["width"], record["height"]) == made.size
        assert made.mode == "RGB"
        return made

    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (0, 0, 150, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the left side comes up
    turned = stored("turned", wide, "JPEG", exif=exif, quality=95)
    assert turned.size == (21, 64)
    assert turned.getpixel((10, 5))[2] > 200
    assert turned.getpixel((10, 60))[0] > 200
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    assert stored("clear", clear, "PNG").getpixel((3, 3)) == (255, 255, 255)
    assert stored("grey", Image.new("L", (20, 20), 77), "PNG").getpixel((3, 3)) == (77, 77, 77)
    deep = Image.new("I;16", (20, 20), 0x8000)
    assert stored("deep", deep, "PNG").getpixel((3, 3)) == (128, 128, 128)
    cmyk = Image.new("CMYK", (200, 20), (0, 255, 255, 0))
    assert stored("cmyk", cmyk, "JPEG").size == (64, 6)
    frames = [Image.new("RGB", (20, 20), c) for c in ("red", "blue")]
    film = stored("film", frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert film.getpixel((3, 3)) == (255, 0, 0)
    assert stored("kept", wide, "WEBP").size == (64, 21)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]"])
def test_this_machine_is_not_asked(server: PictureServer, tmp_path: Path, host: str) -> None:
    server.bodies["/a"] = picture()
    port = server.url.rpartition(":")[2]
    record = one(tmp_path, f"http://{host}:{port}/a", allow_private=False)
    assert record["status"] == "refused"
    assert "no public address" in record["reason"]
    assert not server.asked


def test_redirects_and_names_that_change_are_checked(
    server: PictureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`public.test` is this server, taken for a public address; `rebound.test` turns private."""
    import socket

    from dataset_converters import download_address

    port = int(server.url.rpartition(":")[2])
    real, is_public = socket.getaddrinfo, download_address.is_public
    looked_up: list[str] = []

    def resolve(host: str, *rest: Any, **more: Any) -> Any:
        looked_up.append(host)
        if host == "public.test":
            return real("127.0.0.1", port, type=socket.SOCK_STREAM)
        if host == "rebound.test":
            address = "127.0.0.1" if looked_up.count(host) == 1 else "127.0.0.2"
            return real(address, port, type=socket.SOCK_STREAM)
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(
        download_address, "is_public", lambda text: text == "127.0.0.1" or is_public(text)
    )
    server.bodies["/a"] = picture()
    good = one(tmp_path / "a", f"http://public.test:{port}/a", allow_private=False)
    assert good["status"] == "ok"
    hop = f"http://public.test:{port}/to?http://169.254.169.254/latest"
    refused = one(tmp_path / "b", hop, allow_private=False)
    assert (refused["status"], refused["attempts"]) == ("refused", 2)
    assert "169.254.169.254" in refused["reason"]
    # One look-up a connection: what was checked is what is connected to.
    bound = one(tmp_path / "c", f"http://rebound.test:{port}/a", allow_private=False)
    assert bound["status"] == "ok"
    assert looked_up.count("rebound.test") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="every 127.x address is this machine's")
def test_many_hosts_do_not_use_up_the_connections(tmp_path: Path) -> None:
    with serving("") as server:
        server.bodies["/a"] = picture()
        port = server.server.server_address[1]
        hosts = [f"127.0.{k // 200}.{k % 200 + 1}" for k in range(400)]
        folder = data_set(tmp_path, {h: [f"http://{h}:{port}/a"] for h in hosts})
        assert run(folder).statuses["ok"] == 400
        assert server.most_open_files < 400


def test_what_a_server_says_is_shown_as_plain_text(server: PictureServer, tmp_path: Path) -> None:
    record = one(tmp_path, f"{server.url}/garbage", retries=0)
    assert record["status"] == "failed"
    assert record["reason"].isprintable()


def test_long_ids_and_odd_characters_are_file_names(server: PictureServer, tmp_path: Path) -> None:
    server.bodies["/a"] = picture()
    ids = ["x" * 300, "é" * 100, "a/../b", "..", "%2e", "A:B"]
    folder = data_set(tmp_path / "x", {i: [f"{server.url}/a"] for i in ids})
    assert run(folder).statuses["ok"] == len(ids)
    files = {folder / record["file"] for record in read_records(folder).values()}
    assert files == set((folder / "images").iterdir())
