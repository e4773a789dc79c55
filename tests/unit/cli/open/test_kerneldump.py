"""A kernel's dump as `dump`, `debug` and `bundle` read it."""

import bz2
import functools
import gzip
import lzma
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from crashd.cli.open.kerneldump import find_dump, read_unwrapped, wrapper_of
from crashd.errors import FormatError, NotFoundError

# runs, repeats and noise, of more than one piece
DATA = b"KDUMP   " + bytes(1 << 20) + random.Random(1).randbytes(1 << 17) + b"abc" * 100_000


def lz4(data: bytes, block: int = 1 << 16) -> bytes:
    """Compress as lz4 frames go: literals alone, and blocks that are stored."""
    out = b"\x04\x22\x4d\x18\x60\x40\x82"
    for number, at in enumerate(range(0, len(data), block)):
        piece = data[at : at + block]
        if number % 2:
            out += struct.pack("<I", len(piece) | 1 << 31) + piece
            continue
        length = len(piece) - 15
        literals = b"\xf0" + b"\xff" * (length // 255) + bytes([length % 255]) + piece
        out += struct.pack("<I", len(literals)) + literals
    return out + bytes(4)


WRAPPERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "lz4": lz4,
}


@functools.cache
def wrapped(name: str) -> bytes:
    return WRAPPERS[name](DATA)


def opened(path: Path, data: bytes) -> int:
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


def test_plain_dump_is_read_as_it_is(tmp_path: Path) -> None:
    fd = opened(tmp_path / "dump", DATA)
    assert wrapper_of(fd) is None
    assert b"".join(read_unwrapped(fd)) == DATA
    os.close(fd)


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_dump_is_unpacked_in_small_pieces(tmp_path: Path, name: str) -> None:
    fd = opened(tmp_path / "dump", wrapped(name))
    assert wrapper_of(fd) == name
    pieces = list(read_unwrapped(fd))
    assert b"".join(pieces) == DATA
    assert max(map(len, pieces)) <= 4 << 20
    os.close(fd)


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_streams_one_behind_the_other_are_one_dump(tmp_path: Path, name: str) -> None:
    wrap = WRAPPERS[name]
    fd = opened(tmp_path / "dump", wrap(DATA[:100]) + wrap(DATA[100:]))
    assert b"".join(read_unwrapped(fd)) == DATA
    os.close(fd)


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "lz4"])
@pytest.mark.parametrize("tenth", range(1, 10))
def test_cut_dump_is_an_error_and_not_a_shorter_dump(tmp_path: Path, name: str, tenth: int) -> None:
    raw = wrapped(name)
    fd = opened(tmp_path / "dump", raw[: len(raw) * tenth // 10])
    with pytest.raises(FormatError, match=r"cut|damaged"):
        list(read_unwrapped(fd))
    os.close(fd)


def test_dump_that_is_not_there_is_told_with_what_there_is() -> None:
    doc = {"id": "x", "state": "metadata-only", "kernel": {"source": "kmsg"}}
    with pytest.raises(NotFoundError, match="the log of the running kernel"):
        find_dump(doc)
    kernel = {"path": "/var/crash/1", "log_file": "dmesg.1"}
    doc = {"id": "x", "state": "incomplete", "kernel": kernel}
    with pytest.raises(NotFoundError, match=r"its log is /var/crash/1/dmesg\.1"):
        find_dump(doc)


def test_all_parts_of_a_split_dump_are_named() -> None:
    kernel = {"path": "/var/crash/1", "dump": "b", "dump_parts": ["a", "b"], "inode": 5}
    dump = find_dump({"id": "x", "state": "complete", "kernel": kernel})
    assert dump.paths == (Path("/var/crash/1/a"), Path("/var/crash/1/b"))
