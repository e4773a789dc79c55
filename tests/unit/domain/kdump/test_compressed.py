import bz2
import gzip
import lzma
from struct import pack

import pytest

from crashd.domain.kdump.compressed import (
    TAIL_MIN,
    Unwrapped,
    Wrapper,
    find_wrapper,
    is_ended,
    unwrap,
)
from crashd.errors import FormatError
from tests.builders.kdumpdir import WRAPPERS, lz4_frame

TEXT = bytes(range(256)) * 40
LZ4_HEAD = b"\x04\x22\x4d\x18\x40\x70\x00"


def no_zstd(head: bytes, limit: int) -> bytes:
    raise FormatError(f"no zstd for {len(head)} bytes, {limit} at most")


def lz4_block(block: bytes) -> bytes:
    return LZ4_HEAD + pack("<I", len(block)) + block + bytes(4)


@pytest.mark.parametrize("name", WRAPPERS)
def test_unwrap_whole_stream_is_all_there(name: str) -> None:
    raw = WRAPPERS[name](TEXT)
    wrapper = find_wrapper(raw)
    assert wrapper == name
    assert unwrap(raw, Wrapper(name), 2**20, no_zstd) == Unwrapped(TEXT, True)
    assert unwrap(raw, Wrapper(name), 100, no_zstd) == Unwrapped(TEXT[:100], False)


@pytest.mark.parametrize("name", WRAPPERS)
def test_unwrap_stream_cut_at_every_length_gives_a_start(name: str) -> None:
    raw = WRAPPERS[name](TEXT)
    for size in range(20, len(raw), 7):
        data, whole = unwrap(raw[:size], Wrapper(name), 2**20, no_zstd)
        assert TEXT.startswith(data)
        # bzip2 and xz know that all is there before they have read their own last bytes.
        assert not whole or data == TEXT


@pytest.mark.parametrize("name", ["xz", "bzip2", "lz4"])
def test_is_ended_cut_anywhere_is_false(name: str) -> None:
    raw = WRAPPERS[name](TEXT)
    assert is_ended(Wrapper(name), raw, raw[-TAIL_MIN:]) is True
    for cut in range(1, 12):
        assert is_ended(Wrapper(name), raw, raw[-TAIL_MIN - cut : -cut]) is False, cut


def test_is_ended_bzip2_end_at_every_bit_is_found() -> None:
    shifts = {bz2.compress(bytes([i]) * i)[-11:] for i in range(60)}
    assert all(is_ended(Wrapper.BZIP2, b"", tail) for tail in shifts)


def test_is_ended_padded_xz_is_true() -> None:
    raw = lzma.compress(TEXT) + bytes(8)
    assert is_ended(Wrapper.XZ, raw, raw[-40:]) is True


@pytest.mark.parametrize("wrapper", [Wrapper.GZIP, Wrapper.ZSTD])
def test_is_ended_not_to_be_told_is_none(wrapper: Wrapper) -> None:
    assert is_ended(wrapper, b"", gzip.compress(TEXT)[-16:]) is None


def test_is_ended_lz4_without_checksum_ends_in_its_mark() -> None:
    raw = lz4_block(b"\x10x")
    assert is_ended(Wrapper.LZ4, raw, raw[-16:]) is True


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (b"\x30abc", b"abc"),
        (b"\x35abc\3\0\x10x", b"abcabcabcabcx"),
        (b"\x1fa\1\0\xff\x01\x10x", b"a" * (1 + 4 + 15 + 256) + b"x"),
        (b"\xf0\x05" + b"y" * 20, b"y" * 20),
    ],
)
def test_unwrap_lz4_block_is_decompressed(block: bytes, text: bytes) -> None:
    assert unwrap(lz4_block(block), Wrapper.LZ4, 2**20, no_zstd) == Unwrapped(text, True)


@pytest.mark.parametrize("block", [b"\x35abc\0\0\x10x", b"\x35abc\4\0\x10x", b"\x35abc\3", b"\xff"])
def test_unwrap_lz4_damaged_block_gives_what_came_before(block: bytes) -> None:
    data, whole = unwrap(lz4_block(block), Wrapper.LZ4, 2**20, no_zstd)
    assert not whole
    assert data in (b"abc", b"")


def test_unwrap_lz4_bomb_stops_at_the_limit() -> None:
    bomb = b"\x1fa\1\0" + b"\xff" * 500_000
    assert len(unwrap(lz4_block(bomb * 2), Wrapper.LZ4, 5000, no_zstd).data) == 5000


@pytest.mark.parametrize("raw", [b"\x04\x22\x4d\x18", b"\x04\x22\x4d\x18\xc0\0\0\0\0\0\0"])
def test_unwrap_lz4_no_frame_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        unwrap(raw, Wrapper.LZ4, 100, no_zstd)


def test_unwrap_xz_wanting_too_much_memory_is_refused() -> None:
    raw = lzma.compress(TEXT, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**28}])
    with pytest.raises(FormatError, match="xz stream is damaged"):
        unwrap(raw, Wrapper.XZ, 100, no_zstd)


def test_unwrap_zstd_asks_the_one_handed_in() -> None:
    with pytest.raises(FormatError, match="no zstd for 4 bytes, 100 at most"):
        unwrap(b"\x28\xb5\x2f\xfd", Wrapper.ZSTD, 100, no_zstd)


@pytest.mark.parametrize("head", [b"", b"BZh9", b"BZh0" + bytes(6), b"\x1f\x8b", b"KDUMP   "])
def test_find_wrapper_other_is_none(head: bytes) -> None:
    assert find_wrapper(head) is None


def test_lz4_frame_of_the_builder_is_a_frame() -> None:
    assert unwrap(lz4_frame(b""), Wrapper.LZ4, 100, no_zstd) == Unwrapped(b"", True)
