"""The zstd format (RFC 8878) as far as a core's holes and a broken core's repair need it.

A stored core is a chain of ordinary frames: data as the library compressed it, and long runs of
zeros as frames of RLE blocks, 4 bytes for each 128 KiB, made here without touching a zero. Every
zstd reads it.
"""

from dataclasses import dataclass

MAGIC = b"\x28\xb5\x2f\xfd"
BLOCK_MAX = 128 << 10  # Block_Maximum_Size for a window of 128 KiB and more
_RLE = 1
_RESERVED = 3
_HEADER_128K = MAGIC + bytes([0x00, 7 << 3])  # no checksum, no content size; window 2**(10+7)
EMPTY_LAST_BLOCK = b"\x01\x00\x00"
FRAME_HEADER_MAX = 18
HOLE_FRAME_MAX = 1 << 30


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What a frame's header says of what follows it."""

    size_bytes: int
    descriptor: int
    has_checksum: bool


def _rle_block(size: int, *, last: bool) -> bytes:
    return ((size << 3) | (_RLE << 1) | int(last)).to_bytes(3, "little") + b"\0"


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
    """Parse a frame's header (RFC 8878, 3.1.1.1); None when it is none, or is cut."""
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
    """Parse a block's 3-byte header into (bytes that follow it, is the last); None when
    impossible.
    """
    if len(raw) < 3:
        return None
    value = int.from_bytes(raw[:3], "little")
    kind, size = value >> 1 & 3, value >> 3
    if kind == _RESERVED:
        return None
    return (1 if kind == _RLE else size), bool(value & 1)
