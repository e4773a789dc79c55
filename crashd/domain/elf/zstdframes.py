"""The zstd format (RFC 8878) as far as a core's holes and a broken core's repair need it.

A stored core is a chain of ordinary frames: data as the library compressed it, and long runs of
zeros as frames of RLE blocks, 4 bytes for each 128 KiB, made here without touching a zero. Every
zstd reads it. A seek table follows the last frame, in the format "zstd seekable" of zstd's own
contrib/seekable_format: a skippable frame with the packed and unpacked size of each frame. It lets
a reader read a part of a large core without unpacking what is before it.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAGIC = b"\x28\xb5\x2f\xfd"
BLOCK_MAX = 128 << 10  # Block_Maximum_Size for a window of 128 KiB and more
_RLE = 1
_RESERVED = 3
_HEADER_128K = MAGIC + bytes([0x00, 7 << 3])  # no checksum, no content size; window 2**(10+7)
EMPTY_LAST_BLOCK = b"\x01\x00\x00"
FRAME_HEADER_MAX = 18
HOLE_FRAME_MAX = 1 << 30
SEEK_FOOTER_SIZE = 9
SEEK_FRAMES_MAX = 1 << 20
"""Frames that a seek table may name; a dense core of 16 TiB has this many."""
_SKIPPABLE = struct.Struct("<II")
_SKIPPABLE_MAGIC, _SEEKABLE_MAGIC = 0x184D2A5E, 0x8F92EAB1
_SEEK_ENTRY = struct.Struct("<II")
_SEEK_FOOTER = struct.Struct("<IBI")
_SEEK_CHECKSUM = 0x80


class FrameSize(NamedTuple):
    """One frame: its size in the stored file and in the core."""

    stored: int
    size: int


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What a frame's header says about the bytes that follow."""

    size_bytes: int
    descriptor: int
    has_checksum: bool


def _rle_block(size: int, *, last: bool) -> bytes:
    return ((size << 3) | (_RLE << 1) | int(last)).to_bytes(3, "little") + b"\0"


def hole_frames(size: int) -> list[FrameSize]:
    """Return the sizes of the frames of `build_hole(size)`."""
    return [
        FrameSize(len(_HEADER_128K) + 4 * -(-part // BLOCK_MAX), part)
        for part in (min(HOLE_FRAME_MAX, size - at) for at in range(0, size, HOLE_FRAME_MAX))
    ]


def build_seek_table(frames: Sequence[FrameSize]) -> bytes:
    """Build the seek table of a file with these frames; empty if a table cannot name them."""
    if not 0 < len(frames) <= SEEK_FRAMES_MAX or any(max(frame) >= 1 << 32 for frame in frames):
        return b""
    entries = b"".join(_SEEK_ENTRY.pack(*frame) for frame in frames)
    footer = _SEEK_FOOTER.pack(len(frames), 0, _SEEKABLE_MAGIC)
    return _SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(entries) + len(footer)) + entries + footer


def seek_table_size(footer: bytes) -> int | None:
    """Return the size of a file's seek table, from the file's last SEEK_FOOTER_SIZE bytes; None if
    they do not end a seek table.
    """
    if len(footer) != SEEK_FOOTER_SIZE:
        return None
    count, flags, magic = _SEEK_FOOTER.unpack(footer)
    if magic != _SEEKABLE_MAGIC or flags & ~_SEEK_CHECKSUM or count > SEEK_FRAMES_MAX:
        return None
    entry = _SEEK_ENTRY.size + (4 if flags & _SEEK_CHECKSUM else 0)
    return _SKIPPABLE.size + int(count) * entry + SEEK_FOOTER_SIZE


def parse_seek_table(table: bytes, stored_bytes: int) -> list[FrameSize] | None:
    """Parse the seek table at the end of a file of `stored_bytes`; None if it is not a seek table,
    or does not match the file's size.
    """
    if seek_table_size(table[-SEEK_FOOTER_SIZE:]) != len(table):
        return None
    if _SKIPPABLE.unpack_from(table) != (_SKIPPABLE_MAGIC, len(table) - _SKIPPABLE.size):
        return None
    count, flags, _ = _SEEK_FOOTER.unpack(table[-SEEK_FOOTER_SIZE:])
    rows = struct.Struct("<II4x" if flags & _SEEK_CHECKSUM else "<II")
    body = table[_SKIPPABLE.size : _SKIPPABLE.size + count * rows.size]
    frames = [FrameSize(stored, size) for stored, size in rows.iter_unpack(body)]
    return frames if sum(f.stored for f in frames) + len(table) == stored_bytes else None


def build_hole(size: int) -> bytes:
    """Build frames that decompress to `size` zeros."""
    out = bytearray()
    while size > 0:
        part = min(size, HOLE_FRAME_MAX)
        size -= part
        whole, rest = divmod(part, BLOCK_MAX)
        if rest == 0:
            whole, rest = whole - 1, BLOCK_MAX
        out += _HEADER_128K
        out += _rle_block(BLOCK_MAX, last=False) * whole
        out += _rle_block(rest, last=True)
    return bytes(out)


def parse_frame_header(raw: bytes) -> FrameHeader | None:
    """Parse a frame's header (RFC 8878, 3.1.1.1); None if it is not a header, or is cut."""
    if len(raw) < 6 or raw[:4] != MAGIC:
        return None
    descriptor = raw[4]
    single = descriptor >> 5 & 1
    content = (single, 2, 4, 8)[descriptor >> 6]
    size = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3] + content
    if len(raw) < size:
        return None
    return FrameHeader(size, descriptor, bool(descriptor & 4))


def parse_block_header(raw: bytes) -> tuple[int, bool] | None:
    """Parse a block's 3-byte header into (bytes that follow it, is the last); None if it is
    invalid.
    """
    if len(raw) < 3:
        return None
    value = int.from_bytes(raw[:3], "little")
    kind, size = value >> 1 & 3, value >> 3
    if kind == _RESERVED:
        return None
    return (1 if kind == _RLE else size), bool(value & 1)
