"""The stored core: written as it arrives, read back, and repaired when its writer died. The only
importer of zstandard."""

import os
from collections.abc import Callable, Iterator
from typing import IO

import zstandard

from crashd.base.files import write_all
from crashd.domain.elf.zstdframes import (
    EMPTY_LAST_BLOCK,
    FRAME_HEADER_MAX,
    FrameSize,
    build_hole,
    build_seek_table,
    hole_frames,
    parse_block_header,
    parse_frame_header,
)
from crashd.errors import FormatError

ZERO_BLOCK = 128 << 10
"""Zeros are detected in blocks of this size, aligned in the core."""
HOLE_MIN = 1 << 20
"""A run of zeros shorter than this stays in its frame: zstd compresses it nearly as well without a
cut.
"""
FRAME_MAX = 16 << 20
"""A frame has at most this much data. This bounds what a damaged frame costs, and how much has to
be unpacked to read one byte of it. Frames of 512 MiB would be 0.03 % smaller, and no faster to
make.
"""
CHUNK = 1 << 20
_HOLE_PART = 64 << 30
"""A hole is written in parts of this size, of 2 MiB each."""
_WINDOW_MAX = 1 << 27  # what `zstd -d` takes without being asked
_ARCHIVE_WINDOW_MAX = 8 << 20  # all levels up to 19
_ZEROS = bytes(ZERO_BLOCK)


class SpareCompressor:
    """Keeps the compressor of a finished core for the next core: its tables, of 0.8 MiB, are
    faulted in already. For one writer at a time; one with threads is not kept, because threads do
    not survive a fork.
    """

    def __init__(self) -> None:
        self._level: int | None = None
        self._kept: zstandard.ZstdCompressor | None = None
        self._is_plain = False

    def take(self, level: int, threads: int) -> zstandard.ZstdCompressor:
        """Return a compressor that nobody else has."""
        kept, self._kept = self._kept, None
        self._is_plain = threads == 0
        if kept is not None and self._is_plain and level == self._level:
            return kept
        self._level = level
        return zstandard.ZstdCompressor(
            level=level, threads=threads, write_checksum=True, write_content_size=False
        )

    def give_back(self, compressor: zstandard.ZstdCompressor) -> None:
        """Keep a compressor whose last frame is finished."""
        self._kept = compressor if self._is_plain else None


class CoreWriter:
    """Compress a core into `fd`, which stays the caller's; bytes go in in file order.

    What is written decompresses to exactly what was put in; long runs of zeros cost nothing to
    store.
    """

    def __init__(
        self, fd: int, *, level: int, threads: int, spare: SpareCompressor | None = None
    ) -> None:
        self._fd = fd
        self._spare = spare if spare is not None else SpareCompressor()
        self._level = level
        self.threads = threads
        """Threads that compress; a change has no effect once there is a byte to compress."""
        self._compressor: zstandard.ZstdCompressor | None = None
        self._frame: zstandard.ZstdCompressionObj | None = None
        self._frame_bytes = 0
        self._frame_start = 0
        self._frames: list[FrameSize] = []
        self._hole = 0
        self._tail = bytearray()
        self._resident = 0
        self.size_bytes = 0
        self.stored_bytes = 0

    @property
    def resident_bytes(self) -> int:
        """Bytes put in that are not zeros, counted in blocks of ZERO_BLOCK."""
        return self._resident + len(self._tail)

    def write(self, data: memoryview) -> None:
        """Put in the next bytes.

        Raises:
            OSError: the disk is full or broken; `repair` makes what was written readable.

        """
        self.size_bytes += len(data)
        if self._tail:
            wanted = ZERO_BLOCK - len(self._tail)
            self._tail += data[:wanted]
            data = data[wanted:]
            if len(self._tail) < ZERO_BLOCK:
                return
            tail, self._tail = self._tail, bytearray()
            self._blocks(memoryview(tail))
        whole = len(data) - len(data) % ZERO_BLOCK
        self._blocks(data[:whole])
        self._tail += data[whole:]

    def hole(self, size: int) -> None:
        """Put in `size` zeros without holding them in memory."""
        if self._tail:
            part = min(size, ZERO_BLOCK - len(self._tail))
            self.write(memoryview(bytes(part)))
            size -= part
        whole = size - size % ZERO_BLOCK
        self._hole += whole
        self.size_bytes += whole
        if size > whole:
            self.write(memoryview(bytes(size - whole)))

    def flush(self) -> None:
        """Store what is pending; this costs a frame."""
        self._end_hole()
        self._end_frame()

    def finish(self) -> None:
        """Write what is pending, end the last frame and write the seek table; the caller syncs."""
        if self._tail:
            if any(self._tail):
                self._data(memoryview(self._tail))
            else:
                self._hole += len(self._tail)
            self._tail = bytearray()
        self._end_hole()
        self._end_frame()
        if self._compressor is not None:
            self._spare.give_back(self._compressor)
            self._compressor = None
        self._put(build_seek_table(self._frames))

    def _blocks(self, data: memoryview) -> None:
        start = position = 0
        while position < len(data):
            block = data[position : position + ZERO_BLOCK]
            # bytes, because memoryviews compare item by item, a hundred times slower than memcmp(3)
            if block[0] == 0 and block.tobytes() == _ZEROS:
                if position > start:
                    self._data(data[start:position])
                self._hole += ZERO_BLOCK
                start = position + ZERO_BLOCK
            position += ZERO_BLOCK
        if position > start:
            self._data(data[start:position])

    def _data(self, data: memoryview) -> None:
        self._end_hole()
        self._resident += len(data)
        if self._frame_bytes >= FRAME_MAX:
            self._end_frame()
        if self._frame is None:
            if self._compressor is None:
                self._compressor = self._spare.take(self._level, self.threads)
            self._frame = self._compressor.compressobj()
            self._frame_start = self.stored_bytes
        self._frame_bytes += len(data)
        self._put(self._frame.compress(data))

    def _end_hole(self) -> None:
        size, self._hole = self._hole, 0
        if size >= HOLE_MIN or (size and self._frame is None):
            self._end_frame()
            for at in range(0, size, _HOLE_PART):
                part = min(_HOLE_PART, size - at)
                self._put(build_hole(part))
                self._frames += hole_frames(part)
        elif size and self._frame is not None:
            self._frame_bytes += size
            while size:
                part = min(size, ZERO_BLOCK)
                self._put(self._frame.compress(_ZEROS[:part]))
                size -= part

    def _end_frame(self) -> None:
        if self._frame is not None:
            self._put(self._frame.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH))
            stored = self.stored_bytes - self._frame_start
            self._frames.append(FrameSize(stored, self._frame_bytes))
            self._frame, self._frame_bytes = None, 0

    def _put(self, data: bytes) -> None:
        if data:
            write_all(self._fd, data)
            self.stored_bytes += len(data)


def read_core(fd: int, size_bytes: int | None = None) -> Iterator[bytes]:
    """Yield the uncompressed core in chunks of at most 1 MiB; `fd` stays the caller's.

    Raises:
        FormatError: the core is damaged, or not `size_bytes` long if that is given.

    """
    os.lseek(fd, 0, os.SEEK_SET)
    total = 0
    with os.fdopen(os.dup(fd), "rb", buffering=0) as source:
        for chunk in read_frames(source):
            total += len(chunk)
            yield chunk
    if size_bytes is not None and total != size_bytes:
        raise FormatError(f"stored core ends after {total} of {size_bytes} bytes")


def read_frames(source: IO[bytes]) -> Iterator[bytes]:
    """Yield the contents of a stored core's stream in chunks of at most 1 MiB, as it is read.

    Raises:
        FormatError: the stream is damaged.

    """
    total = 0
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
    with decompressor.stream_reader(source, read_across_frames=True, closefd=False) as reader:
        while True:
            try:
                chunk = reader.read(CHUNK)
            except zstandard.ZstdError as e:
                raise FormatError(f"stored core is damaged after {total} bytes: {e}") from e
            if not chunk:
                break
            total += len(chunk)
            yield chunk


def zstd_writer(file: IO[bytes]) -> IO[bytes]:
    """Return a stream that compresses into `file`; closing it leaves `file` open."""
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    return compressor.stream_writer(file, closefd=False)


def zstd_reader(file: IO[bytes]) -> Callable[[int], bytes]:
    """Return a function that reads up to the given number of decompressed bytes of `file`.

    It takes little memory whatever the stream asks for, and raises FormatError if the stream is
    damaged.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ARCHIVE_WINDOW_MAX)
    stream = decompressor.stream_reader(file, closefd=False)

    def read(size: int) -> bytes:
        try:
            return stream.read(size)
        except zstandard.ZstdError as e:
            raise FormatError(f"damaged zstd stream: {e}") from e

    return read


def unzstd(head: bytes, limit: int) -> bytes:
    """Decompress the start of a zstd stream, cut or whole, into at most `limit` bytes.

    Raises:
        FormatError: it is not a stored core, or is damaged.

    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
    parts, size = [], 0
    with decompressor.stream_reader(head, read_across_frames=True) as reader:
        while size < limit:
            try:
                chunk = reader.read(min(CHUNK, limit - size))
            except zstandard.ZstdError as e:
                raise FormatError(f"damaged zstd stream: {e}") from e
            if not chunk:
                break
            parts.append(chunk)
            size += len(chunk)
    return b"".join(parts)


def repair(fd: int) -> int:
    """Cut off a dead writer's core after its last whole block, and end that frame; return its new
    size.

    The result is a whole zstd stream of the first part of the core, whatever was lost after it.
    """
    end = os.lseek(fd, 0, os.SEEK_END)
    position = 0
    while header := parse_frame_header(os.pread(fd, FRAME_HEADER_MAX, position)):
        start, block = position, position + header.size_bytes
        while True:
            parsed = parse_block_header(os.pread(fd, 3, block))
            following = block + 3 + parsed[0] if parsed else end + 1
            if parsed is None or following > end:
                return _close_frame(fd, start, header.descriptor, block)
            block = following
            if parsed[1]:
                break
        if header.has_checksum and block + 4 > end:
            # the blocks are whole, only the checksum is not
            os.pwrite(fd, bytes([header.descriptor & ~4]), start + 4)
            os.ftruncate(fd, block)
            return block
        position = block + (4 if header.has_checksum else 0)
    os.ftruncate(fd, position)
    return position


def _close_frame(fd: int, start: int, descriptor: int, block: int) -> int:
    os.pwrite(fd, bytes([descriptor & ~4]), start + 4)  # its checksum can no longer be known
    os.pwrite(fd, EMPTY_LAST_BLOCK, block)
    os.ftruncate(fd, block + len(EMPTY_LAST_BLOCK))
    return block + len(EMPTY_LAST_BLOCK)
