"""Images as people have them: odd modes and sizes are shown, damaged ones are named and counted."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_catalogue import load_backbone

from recbole_tpad.backbones.images import UnreadableImage, read_image
from recbole_tpad.data import Item
from recbole_tpad.stages.inputs import encode_states


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def near(image: Image.Image, colour: tuple[int, int, int], tolerance: int = 3) -> bool:
    found = np.asarray(image).reshape(-1, 3).astype(int)
    return bool((abs(found - np.array(colour)) <= tolerance).all())


def test_cmyk(tmp_path: Path) -> None:
    path = saved(Image.new("CMYK", (20, 10), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=95)
    assert near(read_image(path), (255, 0, 0), 8)


def test_sixteen_bits_keep_their_shades(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    path = saved(Image.fromarray(ramp), tmp_path / "a.png")
    found = np.asarray(read_image(path))[..., 0].astype(int)
    assert abs(found - ramp // 256).max() <= 1


def test_transparency_is_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
    assert near(read_image(saved(clear, tmp_path / "a.png")), (255, 255, 255), 0)
    palette = Image.new("P", (9, 9), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    assert near(read_image(saved(palette, tmp_path / "b.gif", transparency=0)), (255, 255, 255), 0)
    assert near(read_image(saved(palette, tmp_path / "c.png")), (10, 20, 30), 0)


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (12, 12), c) for c in ("red", "blue", "lime")]
    for name in ("a.gif", "a.webp", "a.png"):
        path = tmp_path / name
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, lossless=True)
        assert near(read_image(path), (255, 0, 0)), name


def test_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 10), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert read_image(saved(image, tmp_path / "a.jpg", exif=exif)).size == (10, 30)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (1, 2000), (3000, 2)])
def test_hardly_any_extent(
    size: tuple[int, int], tmp_path: Path, checkpoint: Path, items: list[Item]
) -> None:
    path = saved(Image.new("RGB", size, (200, 30, 30)), tmp_path / "a.png")
    image = read_image(path)
    assert min(image.size) >= 4
    assert max(image.size) <= 100 * min(image.size)
    backbone = load_backbone(checkpoint)
    inputs = backbone.inputs([replace(items[0], image=path)], torch.device("cpu"))
    assert all(
        torch.isfinite(s).all() for s in encode_states(backbone, inputs, "knowledge").values()
    )
    assert not inputs.unreadable


def huge_png(path: Path, edge: int) -> Path:
    """A valid PNG of one colour with a small file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    packer = zlib.compressobj(9)
    row = bytes(1 + edge // 8)
    data = b"".join(packer.compress(row) for _ in range(edge)) + packer.flush()
    header = struct.pack(">IIBBBBB", edge, edge, 1, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def test_too_large_to_decode(tmp_path: Path) -> None:
    assert read_image(huge_png(tmp_path / "fine.png", 800)).size == (800, 800)
    for edge in (8_000, 30_000):
        with pytest.raises(UnreadableImage, match=r"huge\.png: .*pixels"):
            read_image(huge_png(tmp_path / "huge.png", edge))


def damaged(folder: Path) -> list[Path]:
    """Files that are no images, or not any more."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    found = []
    for kind in ("png", "jpg", "webp", "gif", "bmp"):
        whole = saved(noise, folder / f"whole.{kind}").read_bytes()
        cut = folder / f"cut.{kind}"
        cut.write_bytes(whole[: len(whole) // 2])
        found.append(cut)
    for name, content in (
        ("empty.jpg", b""),
        ("page.png", b"<!doctype html><html>"),
        ("zeros.png", bytes(5000)),
        ("head.png", b"\x89PNG\r\n\x1a\n" + bytes(40)),
        ("vector.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
    ):
        (folder / name).write_bytes(content)
        found.append(folder / name)
    return [*found, folder / "absent.jpg"]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for path in damaged(tmp_path):
        with pytest.raises(UnreadableImage, match=path.name.replace(".", r"\.")):
            read_image(path)


@pytest.mark.parametrize("trained", [False, True], ids=["features", "pixels"])
def test_an_unreadable_image_counts_as_none(
    trained: bool, tmp_path: Path, checkpoint: Path, items: list[Item]
) -> None:
    backbone = load_backbone(checkpoint)
    bad = damaged(tmp_path)[:-1]  # a file that is gone has no bytes to be known by
    shown = [i for i in items if i.image][: len(bad)]
    mixed = [replace(i, image=p) for i, p in zip(shown, bad, strict=True)] + items
    device = torch.device("cpu")
    inputs = backbone.inputs(mixed, device)
    inputs.prepare(train_base=trained)
    inputs.freeze()
    assert set(inputs.unreadable) == {i.item_id for i in shown}
    assert all(inputs.unreadable.values())
    found = encode_states(backbone, inputs, "knowledge")
    bare = [replace(i, image=None) for i in shown] + items
    wanted = encode_states(backbone, backbone.inputs(bare, device), "knowledge")
    assert all(torch.allclose(found[n], wanted[n], atol=2e-2) for n in found)
    live = backbone.inputs(mixed, device)
    batch = live.batch(torch.arange(len(mixed)))
    assert batch.has_image.tolist() == [False] * len(shown) + [i.image is not None for i in items]
