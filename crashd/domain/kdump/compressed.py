"""A dump that was piped through a compressor (`KDUMP_COMPRESSION` of kdump-tools): which one, its
first bytes decompressed, and whether its end is there.

Source: RFC 1952 (gzip), the .xz file format 1.1, lz4_Frame_format.md, RFC 8878 (zstd), and
decompress.c for bzip2, which has no specification. Every byte may be hostile, so output and memory
are bounded. Only the store may import zstandard, so its decompressor is passed in.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, NamedTuple

from crashd.errors import FormatError

TAIL_MIN: Final = 16
"""This many bytes of a file's end are enough for is_ended()."""

XZ_MEMORY_MAX: Final = 80 * 2**20
"""Bytes; `xz -9` needs 65 MiB to decompress, and nothing needs more."""

Unzstd = Callable[[bytes, int], bytes]
"""Decompresses the start of a zstd stream, cut or whole, into at most that many bytes. It raises
only FormatError.
"""

_WANTS_MEMORY = "emory"  # in the error texts of both liblzma and zstd
_BZIP2_BLOCK = 0x314159265359
_BZIP2_END = 0x177245385090
_LZ4_MIN_MATCH = 4
_LZ4_HEADER_MIN = 7


class MemoryWantedError(FormatError):
    """A stream that may be sound, but needs more memory to decompress than it may have."""


class Wrapper(StrEnum):
    """The program that compressed the whole file."""

    GZIP = "gzip"
    XZ = "xz"
    BZIP2 = "bzip2"
    LZ4 = "lz4"
    ZSTD = "zstd"


_MAGICS = (
    (b"\x1f\x8b\x08", Wrapper.GZIP),
    (b"\xfd7zXZ\0", Wrapper.XZ),
    (b"\x04\x22\x4d\x18", Wrapper.LZ4),
    (b"\x28\xb5\x2f\xfd", Wrapper.ZSTD),
)


class Unwrapped(NamedTuple):
    """The decompressed start of a file."""

    data: bytes
    whole: bool
    """The stream ended inside the given bytes, and `data` has everything in it."""


def find_wrapper(head: bytes) -> Wrapper | None:
    """Recognise a compressed file by its first bytes."""
    for magic, wrapper in _MAGICS:
        if head.startswith(magic):
            return wrapper
    is_bzip2 = head[:3] == b"BZh" and head[3:4] in b"123456789"
    block = int.from_bytes(head[4:10], "big")
    return Wrapper.BZIP2 if is_bzip2 and block in (_BZIP2_BLOCK, _BZIP2_END) else None


def unwrap(head: bytes, wrapper: Wrapper, limit: int, unzstd: Unzstd) -> Unwrapped:
    """Decompress up to `limit` bytes from the start of a compressed file.

    Raises:
        FormatError: nothing can be decompressed.
        MemoryWantedError: it needs more memory than it may have.

    """
    if wrapper is Wrapper.LZ4:
        return _unwrap_lz4(head, limit)
    if wrapper is Wrapper.ZSTD:
        # The end cannot be seen here: less than the limit may only mean that `head` ends.
        try:
            return Unwrapped(unzstd(head, limit)[:limit], False)
        except FormatError as e:
            if _WANTS_MEMORY in str(e):
                raise MemoryWantedError(f"zstd wants too large a window: {e}") from e
            raise
    try:
        if wrapper is Wrapper.GZIP:
            gunzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
            return Unwrapped(gunzip.decompress(head, limit), _is_last(gunzip))
        if wrapper is Wrapper.BZIP2:
            bunzip2 = bz2.BZ2Decompressor()
            return Unwrapped(bunzip2.decompress(head, limit), _is_last(bunzip2))
        unxz = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY_MAX)
        return Unwrapped(unxz.decompress(head, limit), _is_last(unxz))
    except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as e:
        if _WANTS_MEMORY in str(e):
            what = f"{wrapper} stream is damaged, or wants more than {XZ_MEMORY_MAX} bytes"
            raise MemoryWantedError(what) from e
        raise FormatError(f"{wrapper} stream is damaged at its start: {e}") from e


def _is_last(stream: Any) -> bool:
    """Return whether a stream has ended and no other follows it (pbzip2 writes many)."""
    return bool(stream.eof and not stream.unused_data.strip(b"\0"))


def is_ended(wrapper: Wrapper, head: bytes, tail: bytes) -> bool | None:
    """Return whether a compressed file was written to its end, judged by its last bytes.

    None for gzip and zstd: neither marks its end in a way that the end alone shows.
    """
    if wrapper is Wrapper.XZ:
        footer = tail.rstrip(b"\0")[-12:]  # padding is allowed
        checksum = int.from_bytes(footer[:4], "little")
        return footer.endswith(b"YZ") and zlib.crc32(footer[4:10]) == checksum
    if wrapper is Wrapper.BZIP2:
        # The end is at any bit position: 48 bits, a checksum of 32, and padding to a byte.
        bits = int.from_bytes(tail[-11:], "big")
        return any(bits >> (32 + pad) & (2**48 - 1) == _BZIP2_END for pad in range(8))
    if wrapper is Wrapper.LZ4:
        has_checksum = bool(head[4:5] and head[4] & 0x04)
        return tail[-8:-4] == bytes(4) if has_checksum else tail[-4:] == bytes(4)
    return None


def _unwrap_lz4(head: bytes, limit: int) -> Unwrapped:
    """Decompress the blocks of an lz4 frame, which the standard library cannot do."""
    if len(head) < _LZ4_HEADER_MIN:
        raise FormatError("lz4 frame is cut inside its header")
    flags = head[4]
    if flags >> 6 != 1:
        raise FormatError(f"lz4 frame is of version {flags >> 6}, not 1")
    block_checksum = 4 if flags & 0x10 else 0
    at = _LZ4_HEADER_MIN + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0)
    out = bytearray()
    while len(out) < limit and at + 4 <= len(head):
        word = int.from_bytes(head[at : at + 4], "little")
        at += 4
        if not word:
            return Unwrapped(bytes(out[:limit]), len(out) <= limit)
        size = word & 0x7FFFFFFF
        block = head[at : at + size]
        at += size + block_checksum
        if word >> 31:
            out += block
        elif not unlz4_block(block, out, limit):
            break
    return Unwrapped(bytes(out[:limit]), False)


def unlz4_block(block: bytes, out: bytearray, limit: int) -> bool:
    """Append one decompressed lz4 block to `out`; return False if the block is cut or damaged, or
    the limit is reached.

    Source: lz4_Block_format.md. What was decompressed is kept: a head mostly ends inside a block.
    """
    at, end = 0, len(block)
    while at < end and len(out) < limit:
        token = block[at]
        at, size = _lz4_length(block, at + 1, token >> 4)
        out += block[at : at + size]
        at += size
        if at == end:
            return True  # the last sequence has no match
        distance = int.from_bytes(block[at : at + 2], "little")
        at, size = _lz4_length(block, at + 2, token & 15)
        if at > end or not 0 < distance <= len(out):
            return False
        _copy_match(out, distance, min(size + _LZ4_MIN_MATCH, limit))
    return False


def _lz4_length(block: bytes, at: int, nibble: int) -> tuple[int, int]:
    size = nibble
    if nibble == 15:
        while at < len(block):
            size += block[at]
            at += 1
            if block[at - 1] != 255:
                break
    return at, size


def _copy_match(out: bytearray, distance: int, size: int) -> None:
    """Append `size` bytes from `distance` back; source and result may overlap."""
    pattern = bytes(out[-distance:][:size])
    repeats, rest = divmod(size, len(pattern))
    out += pattern * repeats + pattern[:rest]
