"""What a download leaves behind: runs that follow it, are killed, or come at the same time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from downloads import QUICK, data_set, one, run
from picture_server import PictureServer, picture

from dataset_converters.download import DownloadOptions, download_images, read_placeholders
from dataset_converters.errors import InputError
from dataset_converters.images import attach_images, read_records

ROOT = Path(__file__).resolve().parents[2]


def test_a_second_run_redoes_what_failed_or_is_gone(server: PictureServer, tmp_path: Path) -> None:
    server.bodies |= {f"/{n}": picture(n) for n in ("red", "blue", "green")}
    names = ("red", "blue", "green", "absent", "flaky/3", "html/x")
    folder = data_set(tmp_path, {n.replace("/", ""): [f"{server.url}/{n}"] for n in names})
    summary = run(folder)
    found = {status: count for status, count in summary.statuses.items() if count}
    assert found == {"ok": 3, "missing": 1, "unreadable": 1, "failed": 1}
    (folder / "images" / "red.jpg").unlink()
    (folder / "images" / "blue.jpg").write_bytes(b"overwritten")
    before = server.asked.copy()
    summary = run(folder)
    assert summary.statuses["ok"] == 4
    assert set(server.asked - before) == {"/red", "/blue", "/flaky/3"}
    assert read_records(folder)["flaky3"]["attempts"] == 4
    written = (folder / "images.jsonl").read_bytes()
    assert run(folder).requests == 0
    assert (folder / "images.jsonl").read_bytes() == written
    server.bodies["/absent"] = picture()
    server.asked.clear()
    assert run(folder, retry_dead=True).statuses["ok"] == 5
    assert set(server.asked) == {"/absent", "/html/x"}


def test_new_addresses_are_tried(server: PictureServer, tmp_path: Path) -> None:
    server.bodies["/b"] = picture()
    assert one(tmp_path, f"{server.url}/a")["status"] == "missing"
    assert one(tmp_path, f"{server.url}/a", f"{server.url}/b")["status"] == "ok"


def test_known_placeholders_are_no_images(server: PictureServer, tmp_path: Path) -> None:
    sorry = picture("grey")
    urls = {str(k): [f"{server.url}/{k}.jpg"] for k in range(6)}
    urls["0"].append(f"{server.url}/good.jpg")
    server.bodies |= {f"/{k}.jpg": sorry for k in range(6)} | {"/good.jpg": picture("red")}
    folder = data_set(tmp_path / "x", urls)
    summary = run(folder)
    assert summary.statuses["ok"] == 6
    (repeated,) = summary.repeated
    assert (repeated.items, repeated.example) == (6, "0")
    listed = tmp_path / "placeholders.txt"
    listed.write_text(f"# no image\n\n{repeated.sha256.upper()}  grey\n")
    summary = download_images(folder, QUICK, placeholders=read_placeholders(listed))
    assert (summary.statuses["ok"], summary.statuses["placeholder"]) == (1, 5)
    assert [p.name for p in (folder / "images").iterdir()] == ["0.jpg"]
    listed.write_text("c0ffee\n")
    with pytest.raises(InputError, match="line 1: 'c0ffee' is no SHA-256"):
        read_placeholders(listed)


def test_a_refusal_is_taken_up_once_it_is_allowed(server: PictureServer, tmp_path: Path) -> None:
    server.bodies["/a"] = picture()
    assert one(tmp_path, f"{server.url}/a", allow_private=False)["status"] == "refused"
    assert one(tmp_path, f"{server.url}/a")["status"] == "ok"


def test_two_processes_do_not_meet(tmp_path: Path) -> None:
    folder = data_set(tmp_path, {"i": []})
    code = "import sys; from pathlib import Path; from dataset_converters.images import images_lock"
    code += "\nwith images_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        for change in (run, lambda f: attach_images(f, f)):
            with pytest.raises(InputError, match="Another process is changing the images"):
                change(folder)
        other.kill()
    run(folder)


def test_local_files_and_downloads_go_together(server: PictureServer, tmp_path: Path) -> None:
    server.bodies["/a"] = picture()
    folder = data_set(tmp_path / "x", {"a": [f"{server.url}/a"], "b": [], "c": ["http://[::1"]})
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "b.png").write_bytes(picture("blue", "PNG"))
    attach_images(folder, tmp_path / "local")
    assert run(folder).statuses["ok"] == 2
    assert attach_images(folder, tmp_path / "local").ok == 2
    assert read_records(folder)["c"]["reason"].startswith("not a")
    assert run(folder).requests == 0


def test_bad_options_and_folders_are_named(tmp_path: Path) -> None:
    for urls in (["a", 3], "https://x/1.jpg"):
        with pytest.raises(InputError, match="item 'i': image addresses must be lists"):
            run(data_set(tmp_path / "x", {"i": urls}))  # type: ignore[dict-item]
    with pytest.raises(InputError, match="workers=0 is too small"):
        DownloadOptions(workers=0)
    with pytest.raises(InputError, match="read_timeout=0"):
        DownloadOptions(read_timeout=0)
    with pytest.raises(InputError, match="not a data set folder"):
        download_images(tmp_path)


def test_a_journal_that_was_cut_counts_up_to_the_cut(tmp_path: Path) -> None:
    folder = data_set(tmp_path, {"a": [], "b": []})
    row = {"item_id": "a", "status": "ok", "file": "images/a.jpg", "sha256": "0"}
    journal = folder / "images.journal.jsonl"
    journal.write_text(json.dumps(row) + '\n{"item_id": "b", "sta')
    assert read_records(folder) == {"a": row}
    journal.write_text("[\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=r"images\.journal\.jsonl, line 1: not JSON"):
        read_records(folder)


@pytest.mark.slow
def test_killed_at_any_moment(server: PictureServer, tmp_path: Path) -> None:
    """Again and again; nothing that was recorded is asked for twice, and the end is the same."""
    server.slow = 0.01
    urls = {}
    for k in range(120):
        server.bodies[f"/{k}"] = picture("red", size=(20 + k, 20))
        urls[f"i{k:03d}"] = [f"{server.url}/{k}", f"{server.url}/absent"]
    folder = data_set(tmp_path / "killed", urls)
    code = (
        "import sys; from pathlib import Path; "
        "from dataset_converters.download import DownloadOptions, download_images; "
        "download_images(Path(sys.argv[1]), DownloadOptions(allow_private=True, per_host=2))"
    )
    kills = 0
    for _ in range(40):
        before = {i: r for i, r in read_records(folder).items() if r["status"] == "ok"}
        asked = sum(server.asked.values())
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and sum(server.asked.values()) < asked + 12:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        ended = process.wait(30)
        after = read_records(folder)
        assert before.items() <= after.items()
        assert all((folder / r["file"]).is_file() for r in after.values() if r["status"] == "ok")
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        kills += 1
    assert kills >= 3
    run(folder)
    whole = data_set(tmp_path / "whole", urls)
    run(whole)

    def content(path: Path) -> dict[str, Any]:
        found = read_records(path)
        return {i: (r["status"], r["sha256"], r["url"]) for i, r in found.items()}

    assert content(folder) == content(whole)
    assert len(os.listdir(folder / "images")) >= 120
    # At most the requests under way at a kill are repeated: two images and their answers.
    assert sum(server.asked.values()) <= 240 + 6 * (kills + 1)
