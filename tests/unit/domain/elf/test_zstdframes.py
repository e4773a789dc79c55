"""Holes as frames: small, standard, exact."""

import pytest
import zstandard

from crashd.domain.elf.zstdframes import (
    BLOCK_MAX,
    HOLE_FRAME_MAX,
    SEEK_FOOTER_SIZE,
    FrameSize,
    build_hole,
    build_seek_table,
    hole_frames,
    parse_block_header,
    parse_frame_header,
    parse_seek_table,
    seek_table_size,
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


FRAMES = [FrameSize(100, 5000), FrameSize(6 + 4 * 8192, 1 << 30), FrameSize(7, 1)]


def test_seek_table_reads_back() -> None:
    table = build_seek_table(FRAMES)
    assert seek_table_size(table[-SEEK_FOOTER_SIZE:]) == len(table)
    stored = sum(frame.stored for frame in FRAMES) + len(table)
    assert parse_seek_table(table, stored) == FRAMES


def test_seek_table_is_skipped_by_any_zstd() -> None:
    data = zstandard.ZstdCompressor().compress(b"core")
    raw = data + build_seek_table([FrameSize(len(data), 4)])
    with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as reader:
        assert reader.read() == b"core"


def test_seek_table_of_nothing_is_nothing() -> None:
    assert build_seek_table([]) == b""
    assert build_seek_table([FrameSize(1, 1 << 32)]) == b""


@pytest.mark.parametrize("at", range(len(build_seek_table(FRAMES))))
def test_parse_seek_table_damaged_or_cut_is_none_or_fits_the_file(at: int) -> None:
    table = bytearray(build_seek_table(FRAMES))
    stored = sum(frame.stored for frame in FRAMES) + len(table)
    assert parse_seek_table(bytes(table[at + 1 :]), stored) is None
    table[at] ^= 0x40
    found = parse_seek_table(bytes(table), stored)
    assert found is None or sum(frame.stored for frame in found) + len(table) == stored


def test_hole_frames_are_those_of_build_hole() -> None:
    for size in (1, BLOCK_MAX, BLOCK_MAX + 1, (1 << 30) + 5):
        frames = hole_frames(size)
        assert sum(frame.size for frame in frames) == size
        assert sum(frame.stored for frame in frames) == len(build_hole(size))
