"""Gzip files in pieces: whole, of several members, cut at every byte, damaged."""

from __future__ import annotations

import gzip
import io
import random
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_converters import gzip_stream
from dataset_converters.gzip_stream import GzipStream

GIVEN = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
TEXT = b" ".join(random.Random(3).choice([b"tea", b"mug", b"pot", b"x" * 40]) for _ in range(900))


def read(path: Path, data: bytes, at_once: int) -> tuple[bytes, GzipStream]:
    path.write_bytes(data)
    handle = io.BytesIO(data)
    stream = GzipStream(path, lambda: handle.read(at_once))
    return b"".join(stream), stream


def zlib_prefix(data: bytes) -> tuple[bytes, int]:
    """What zlib makes of the first member, a byte at a time, and how many bytes it took."""
    decoder = zlib.decompressobj(31)
    out = b""
    for position, byte in enumerate(data):
        try:
            out += decoder.decompress(bytes([byte]))
        except zlib.error:
            return out, position
    return out, len(data)


@GIVEN
@given(
    st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 9)), min_size=1, max_size=4),
    st.integers(0, 9),
    st.sampled_from([1, 5, 64, 1 << 16]),
    st.sampled_from([3, 100, 1 << 16]),
)
def test_members_and_padding(
    tmp_path_factory: pytest.TempPathFactory,
    members: list[tuple[int, int]],
    padding: int,
    at_once: int,
    piece: int,
) -> None:
    data = b"".join(gzip.compress(TEXT[:n], k) + b"\0" * padding for n, k in members)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gzip_stream, "_PIECE", piece)
        found, stream = read(tmp_path_factory.getbasetemp() / "m.gz", data, at_once)
    assert found == b"".join(TEXT[:n] for n, _ in members)
    assert (stream.broken, stream.position) == ("", len(data))


@GIVEN
@given(st.integers(1, 2000), st.integers(0, 9), st.sampled_from([1, 7, 1 << 16]), st.booleans())
def test_a_cut_stream_is_read_as_far_as_zlib_reads_it(
    tmp_path_factory: pytest.TempPathFactory, cut: int, level: int, at_once: int, second: bool
) -> None:
    first = gzip.compress(TEXT, level)
    member = first[: cut % (len(first) - 1) + 1]
    data = first + member if second else member
    found, stream = read(tmp_path_factory.getbasetemp() / "c.gz", data, at_once)
    assert found == (TEXT if second else b"") + zlib_prefix(member)[0]
    assert stream.broken == "the stream ends before its end mark"
    assert stream.position == len(data)


@GIVEN
@given(st.integers(0, 10_000), st.integers(0, 7), st.sampled_from([16, 1 << 16]))
def test_a_damaged_stream_is_told_or_whole(
    tmp_path_factory: pytest.TempPathFactory, byte: int, bit: int, at_once: int
) -> None:
    data = bytearray(gzip.compress(TEXT))
    data[byte % len(data)] ^= 1 << bit
    if data[:2] != gzip_stream.MAGIC:
        return
    found, stream = read(tmp_path_factory.getbasetemp() / "d.gz", bytes(data), at_once)
    if stream.broken:
        expected, position = zlib_prefix(bytes(data))
        assert found[: len(expected)] == expected
        assert stream.position == position
    else:
        assert found == TEXT


def test_bytes_after_the_last_member_are_told(tmp_path: Path) -> None:
    data = gzip.compress(TEXT)
    found, stream = read(tmp_path / "t.gz", data + b"tail", 50)
    assert found == TEXT
    assert len(data) <= stream.position <= len(data) + 2  # of the two bytes a member starts with
    assert "header" in stream.broken
