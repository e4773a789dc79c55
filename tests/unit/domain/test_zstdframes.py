"""Holes as frames: small, standard, exact."""

import pytest
import zstandard

from crashd.domain.zstdframes import (
    BLOCK_MAX,
    HOLE_FRAME_MAX,
    build_hole,
    parse_block_header,
    parse_frame_header,
)


@pytest.mark.parametrize(
    "size", [1, 5, BLOCK_MAX - 1, BLOCK_MAX, BLOCK_MAX + 1, 10 * BLOCK_MAX, 3_000_001]
)
def test_build_hole_decompresses_to_that_many_zeros(size: int) -> None:
    raw = build_hole(size)
    assert zstandard.ZstdDecompressor().decompressobj().decompress(raw) == bytes(size)
    assert len(raw) <= 6 + 4 * (size // BLOCK_MAX + 1)


def test_build_hole_of_nothing_is_nothing() -> None:
    assert build_hole(0) == b""


def test_build_hole_larger_than_a_frame_costs_four_bytes_a_block() -> None:
    size = HOLE_FRAME_MAX * 2 + 5
    assert len(build_hole(size)) == 3 * 6 + 4 * (2 * HOLE_FRAME_MAX // BLOCK_MAX + 1)


def test_parse_frame_header_reads_what_the_library_writes() -> None:
    for checksum in (False, True):
        compressor = zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=True)
        raw = compressor.compress(b"abc" * 1000)
        header = parse_frame_header(raw)
        assert header is not None
        assert header.has_checksum is checksum
        block = parse_block_header(raw[header.size_bytes :])
        assert block is not None
        assert block[1]
        assert header.size_bytes + 3 + block[0] + 4 * checksum == len(raw)


def test_parse_frame_header_cut_or_foreign_is_none() -> None:
    raw = build_hole(5)
    assert all(parse_frame_header(raw[:n]) is None for n in range(6))
    assert parse_frame_header(b"\x50\x2a\x4d\x18" + bytes(20)) is None


def test_parse_block_header_reserved_type_is_none() -> None:
    assert parse_block_header(b"\x07\x00\x00") is None
    assert parse_block_header(b"\x01\x00") is None
