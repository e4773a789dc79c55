"""A kernel dump that was compressed as a whole, read to its end to see whether it is complete.

Little is kept: each decompressed piece goes to the DumpMeter, and into an unnamed file if its pages
are wanted, and is forgotten. Memory is that of the decompressor (at most XZ_MEMORY_MAX, or a zstd
window) and one piece; the parent process limits CPU time. If a dump needs more, the result is
`failed`: a dump that cannot be decompressed here is not judged.
"""

import base64
import bz2
import ctypes
import errno
import lzma
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from crashd.domain.elf.zstdframes import FRAME_HEADER_MAX, parse_block_header, parse_frame_header
from crashd.domain.kdump.compressed import Wrapper, find_wrapper
from crashd.domain.kdump.stream import DumpMeter, Unpacked
from crashd.errors import FormatError, reason_of
from crashd.store.coreread import unpack_zstd

VERSION: Final = 1
XZ_MEMORY_MAX: Final = 18 << 20
"""Bytes; `xz -7` needs 17 MiB, `xz -6`, the default, 9."""
ZSTD_WINDOW_MAX: Final = 16 << 20
_PIECE = 1 << 20
_INPUT = 256 << 10
_BLOCK = 64 << 10
_HEAD = 64
_ZSTD_SKIPPABLE = 0x184D2A50  # and the 15 numbers after it
_LZ4_LIBRARY = "liblz4.so.1"
_LZ4F_VERSION = 100


class _Damaged(Exception):
    """The compressed data is not valid."""


class _Cut(Exception):
    """The file ends before the compressed data does."""


class _Decompressor(Protocol):
    """The common interface of bz2's and lzma's decompressors."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def load_lz4() -> ctypes.CDLL | None:
    """Load liblz4, which comes with systemd on Debian; None if it is missing."""
    try:
        return ctypes.CDLL(_LZ4_LIBRARY)
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class Target:
    """An empty file for what is in a compressed dump."""

    fd: int
    room_bytes: int
    """It must not become larger, holes included."""

    def write(self, data: bytes, at: int) -> None:
        """Write, but leave a hole for each block of zeros, because most of a dump may be zeros.

        Raises:
            OSError: there is no room for it.

        """
        if at + len(data) > self.room_bytes:
            raise OSError(errno.EFBIG, f"it has more than {self.room_bytes} bytes")
        os.ftruncate(self.fd, at + len(data))
        for start in range(0, len(data), _BLOCK):
            block = data[start : start + _BLOCK]
            if block.count(0) < len(block):
                self._write_block(block, at + start)

    def _write_block(self, block: bytes, at: int) -> None:
        view = memoryview(block)
        while view:
            done = os.pwrite(self.fd, view, at)
            at, view = at + done, view[done:]


def analyse(fd: int, lz4: ctypes.CDLL | None, target: Target | None = None) -> dict[str, Any]:
    """Read the compressed dump at a descriptor, which stays the caller's, to its end, and write
    what is in it to `target`.
    """
    wrapper = find_wrapper(os.pread(fd, _HEAD, 0))
    if wrapper is None:
        return {"failed": "no compressor known here wrote it"}
    meter = DumpMeter()
    try:
        for piece in _pieces(fd, wrapper, lz4):
            if target is not None:
                target.write(piece, meter.size_bytes)
            meter.feed(piece)
        found = meter.finish(cut=False)
    except _Cut:
        found = meter.finish(cut=True, why=f"cut inside what {wrapper} wrote")
    except _Damaged as e:
        found = meter.finish(cut=True, why=f"damaged inside what {wrapper} wrote: {e}")
    except FormatError as e:
        return {"failed": str(e)}
    except OSError as e:  # a full disk, or the limit of the file's size
        return {"failed": reason_of(e)}
    return _document(found)


def _document(found: Unpacked) -> dict[str, Any]:
    return {
        "version": VERSION,
        "cut": found.cut,
        "why": found.why,
        "size": found.size_bytes,
        "head": base64.b64encode(zlib.compress(found.head, 1)).decode("ascii"),
        "flattened": found.flattened,
        "flat_ended": found.flat_ended,
        "least": found.least,
    }


def _pieces(fd: int, wrapper: Wrapper, lz4: ctypes.CDLL | None) -> Iterator[bytes]:
    if wrapper is Wrapper.ZSTD:
        return _unzstd(fd)
    if wrapper is Wrapper.LZ4:
        return _unlz4(fd, lz4)
    if wrapper is Wrapper.GZIP:
        return _gunzip(fd)
    return _decompress(fd, wrapper)


class _Input:
    """The file, read from its start to its end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0

    def read(self) -> bytes:
        """Read the next bytes; b"" at the end."""
        data = os.pread(self._fd, _INPUT, self._at)
        self._at += len(data)
        return data

    def rest(self, pending: bytes) -> bytes:
        """Skip zeros, which tar and tapes append, and return what follows; b"" at the end."""
        while not (pending := pending.lstrip(b"\0")):
            pending = self.read()
            if not pending:
                return b""
        return pending + self.read() if len(pending) < _HEAD else pending


def _gunzip(fd: int) -> Iterator[bytes]:
    source = _Input(fd)
    data = source.read()
    while data:
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        while not member.eof:
            if not data:
                raise _Cut
            try:
                yield member.decompress(data, _PIECE)
            except zlib.error as e:
                raise _Damaged(str(e)) from e
            data = member.unconsumed_tail or (b"" if member.eof else source.read())
        data = source.rest(member.unused_data)
        if data and find_wrapper(data) is not Wrapper.GZIP:
            raise _Damaged("something else follows it")


def _decompress(fd: int, wrapper: Wrapper) -> Iterator[bytes]:
    """Decompress bzip2 and xz, which may consist of several streams in sequence (pbzip2)."""
    source = _Input(fd)
    data = source.read()
    while data:
        stream: _Decompressor = (
            bz2.BZ2Decompressor()
            if wrapper is Wrapper.BZIP2
            else lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY_MAX)
        )
        while not stream.eof:
            if stream.needs_input and not data:
                raise _Cut
            try:
                piece = stream.decompress(data if stream.needs_input else b"", _PIECE)
            except lzma.LZMAError as e:
                if "emory" in str(e):
                    raise FormatError(f"xz wants more memory than {XZ_MEMORY_MAX} bytes") from e
                raise _Damaged(str(e)) from e
            except (OSError, ValueError, EOFError) as e:
                raise _Damaged(str(e)) from e
            yield piece
            if not stream.eof and stream.needs_input:
                data = source.read()
        data = source.rest(stream.unused_data)
        if data and find_wrapper(data) is not wrapper:
            raise _Damaged("something else follows it")


def _unzstd(fd: int) -> Iterator[bytes]:
    """Decompress zstd. The library does not report a cut stream, so check the frames afterwards."""
    try:
        yield from unpack_zstd(fd, ZSTD_WINDOW_MAX, _PIECE)
    except FormatError as e:
        if "emory" in str(e):
            raise FormatError(f"zstd wants a window of more than {ZSTD_WINDOW_MAX} bytes") from e
        raise _Damaged(str(e)) from e
    if not _is_zstd_whole(fd):
        raise _Cut


def _is_zstd_whole(fd: int) -> bool:
    """Return whether the file ends where a frame ends, by reading the headers of all blocks."""
    size, at = os.fstat(fd).st_size, 0
    while at < size:
        raw = os.pread(fd, FRAME_HEADER_MAX, at)
        magic = int.from_bytes(raw[:4], "little")
        if magic & ~15 == _ZSTD_SKIPPABLE:
            at += 8 + int.from_bytes(raw[4:8], "little")
            if len(raw) < 8:
                return False
            continue
        header = parse_frame_header(raw)
        if header is None:
            return False
        at += header.size_bytes
        last = False
        while not last:
            block = parse_block_header(os.pread(fd, 3, at))
            if block is None:
                return False
            at, last = at + 3 + block[0], block[1]
        at += 4 if header.has_checksum else 0
    return at == size


def _unlz4(fd: int, lz4: ctypes.CDLL | None) -> Iterator[bytes]:
    """Decompress lz4 by the library, which reports the end of a frame reliably.

    Source: lz4frame.h. LZ4F_decompress() returns 0 at the end of a frame, and otherwise a hint for
    the size of the next input.
    """
    if lz4 is None:
        raise FormatError("there is no liblz4 on this host")
    lz4.LZ4F_decompress.restype = ctypes.c_size_t
    lz4.LZ4F_isError.restype = ctypes.c_uint
    lz4.LZ4F_isError.argtypes = [ctypes.c_size_t]
    context = ctypes.c_void_p()
    if lz4.LZ4F_isError(lz4.LZ4F_createDecompressionContext(ctypes.byref(context), _LZ4F_VERSION)):
        raise FormatError("liblz4 is of another version")
    source = _Input(fd)
    out = ctypes.create_string_buffer(_PIECE)
    data, hope, is_full = b"", 1, False
    while True:
        if not data and not is_full and not (data := source.read()):
            break
        taken, made = ctypes.c_size_t(len(data)), ctypes.c_size_t(_PIECE)
        hope = lz4.LZ4F_decompress(
            context, out, ctypes.byref(made), data, ctypes.byref(taken), None
        )
        if lz4.LZ4F_isError(hope) or (data and not taken.value and not made.value):
            raise _Damaged("liblz4 refuses it")
        yield ctypes.string_at(out, made.value)
        data = data[taken.value :]
        is_full = made.value == _PIECE and hope != 0  # the library may hold more output
        if hope == 0:
            data = source.rest(data)
            if data and find_wrapper(data) is not Wrapper.LZ4:
                raise _Damaged("something else follows it")
    if hope:
        raise _Cut
