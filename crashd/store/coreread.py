"""Reading a stored core: any byte of it, without unpacking what comes before.

The seek table at the file's end (crashd.domain.elf.zstdframes) says where each frame is. A core
whose writer died has no table; its frames are unpacked one by one to find out how long they are.
"""

import io
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import zstandard

from crashd.domain.elf.elfcore import HEAD_MAX, CoreHead, head_size, move_notes, parse_head
from crashd.domain.elf.zstdframes import (
    FRAME_HEADER_MAX,
    SEEK_FOOTER_SIZE,
    FrameSize,
    parse_block_header,
    parse_frame_header,
    parse_seek_table,
    seek_table_size,
)
from crashd.errors import FormatError

_HEAD_FIRST = 64 << 10
CACHED_FRAMES = 3
CHUNK = 1 << 20
WINDOW_BYTES = 128 << 10
_WINDOW_MAX = 1 << 27
_FRAME_MAX = 512 << 20
"""Frames stored before seek tables existed have this size."""


Fetch = Callable[[int, int], None]
"""Puts a part of the stored core, by its position and size, into the file before it is read."""


class StoredCore:
    """A core in a stored file, whose descriptor stays the caller's.

    It holds the unpacked start of the last CACHED_FRAMES frames, as far as they were read. With
    `fetch`, the file has the size of the stored core, and its parts come when they are needed.
    """

    def __init__(self, fd: int, fetch: Fetch | None = None) -> None:
        self._fd = fd
        self._fetch = fetch
        self._cache: OrderedDict[int, _Frame] = OrderedDict()
        stored = os.fstat(fd).st_size
        frames = _read_table(fd, stored, fetch)
        self.indexed = frames is not None
        """Whether the file has a seek table."""
        if frames is None:
            if fetch is not None:
                fetch(0, stored)
            frames = list(_measure(fd, stored))
        # where each frame starts in the core, and in the file
        self._sizes = frames
        self._starts: list[int] = []
        self._positions: list[int] = []
        start = position = 0
        for frame in frames:
            self._starts.append(start)
            self._positions.append(position)
            start += frame.size
            position += frame.stored
        self.size_bytes = start
        self.unpacked_bytes = 0
        """Bytes unpacked so far."""

    def read(self, offset: int, size: int) -> bytes:
        """Read from the core; short at its end, or where it is damaged."""
        parts: list[bytes] = []
        end = min(offset + size, self.size_bytes)
        while offset < end:
            index = bisect_right(self._starts, offset) - 1
            inside = offset - self._starts[index]
            part = self._frame(index).read(inside, min(end - offset, self._sizes[index].size))
            if not part:
                break
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield offset and size of each part that is not a hole, ascending."""
        for start, position, frame in zip(self._starts, self._positions, self._sizes, strict=True):
            if not _is_hole(self._fd, position, frame):
                yield start, frame.size

    def _frame(self, index: int) -> "_Frame":
        frame = self._cache.get(index)
        if frame is None:
            if self._fetch is not None:
                self._fetch(self._positions[index], self._sizes[index].stored)
            frame = _Frame(self, self._fd, self._positions[index], self._sizes[index])
            self._cache[index] = frame
            if len(self._cache) > CACHED_FRAMES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(index)
        return frame


def read_head(core: StoredCore) -> tuple[bytes, CoreHead]:
    """Read and parse the head of a core. Notes behind the memory are moved into the bytes returned.

    Raises:
        FormatError: it is not an ELF core.

    """
    raw = core.read(0, _HEAD_FIRST)
    while (wanted := head_size(raw)) > len(raw):
        more = core.read(0, min(wanted, HEAD_MAX))
        if len(more) <= len(raw):
            break
        raw = more
    if not raw:
        raise FormatError("core is empty")
    raw = raw[: head_size(raw)]
    joined = move_notes(raw, core.read)
    head = parse_head(joined)
    if joined is not raw:
        head = replace(head, expected_size=parse_head(raw).expected_size)
    return joined, head


class _Frame:
    """One frame, unpacked as far as it was read."""

    def __init__(self, core: StoredCore, fd: int, position: int, size: FrameSize) -> None:
        self._core = core
        self._size = size
        self._data = bytearray()
        self._hole = _is_hole(fd, position, size)
        source = _open_window(fd, position, size.stored)
        self._reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX).stream_reader(source)

    def read(self, offset: int, size: int) -> bytes:
        """Read; short at the frame's end, or where it is damaged."""
        end = min(offset + size, self._size.size, _FRAME_MAX if not self._hole else 1 << 62)
        if self._hole:
            return bytes(min(end - offset, CHUNK))
        while len(self._data) < end:
            try:
                chunk = self._reader.read(min(CHUNK, self._size.size - len(self._data)))
            except zstandard.ZstdError:
                break
            if not chunk:
                break
            self._data += chunk
            self._core.unpacked_bytes += len(chunk)
        return bytes(memoryview(self._data)[offset:end])


class _Window(io.RawIOBase):
    """A part of a file, as a stream."""

    def __init__(self, fd: int, position: int, size: int) -> None:
        super().__init__()
        self._fd, self._position, self._end = fd, position, position + size

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._end - self._position)
        size = os.preadv(self._fd, [view[:wanted]], self._position) if wanted > 0 else 0
        self._position += size
        return size


def _open_window(fd: int, position: int, size: int) -> io.BufferedReader:
    return io.BufferedReader(_Window(fd, position, size), WINDOW_BYTES)


def _read_table(fd: int, stored: int, fetch: Fetch | None) -> list[FrameSize] | None:
    position = max(0, stored - SEEK_FOOTER_SIZE)
    if fetch is not None:
        fetch(position, stored - position)
    size = seek_table_size(os.pread(fd, SEEK_FOOTER_SIZE, position))
    if size is None or size > stored:
        return None
    if fetch is not None:
        fetch(stored - size, size)
    return parse_seek_table(os.pread(fd, size, stored - size), stored)


def _is_hole(fd: int, position: int, frame: FrameSize) -> bool:
    """Return whether a frame is all zeros, judged by its size: 4 bytes for 128 KiB."""
    blocks = -(-frame.size // (128 << 10))
    return frame.stored == 6 + 4 * blocks and os.pread(fd, 5, position)[4:5] == b"\0"


def _measure(fd: int, stored: int) -> Iterator[FrameSize]:
    """Find the frames of a file without a table, by unpacking everything except holes."""
    position = 0
    while header := parse_frame_header(os.pread(fd, FRAME_HEADER_MAX, position)):
        end = _frame_end(fd, position + header.size_bytes, stored, has_checksum=header.has_checksum)
        size = 0
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
        with decompressor.stream_reader(_open_window(fd, position, end - position)) as reader:
            try:
                while chunk := reader.read(CHUNK):
                    size += len(chunk)
            except zstandard.ZstdError:
                pass  # what came before the damage counts
        if size:
            yield FrameSize(end - position, size)
        position = end


def _frame_end(fd: int, position: int, stored: int, *, has_checksum: bool) -> int:
    window, at = b"", position
    while True:
        if position - at + 3 > len(window):
            window, at = os.pread(fd, 64 << 10, position), position
        parsed = parse_block_header(window[position - at : position - at + 3])
        if parsed is None:
            return stored
        position += 3 + parsed[0]
        if position >= stored:
            return stored
        if parsed[1]:
            return min(stored, position + (4 if has_checksum else 0))


def unpack_zstd(fd: int, window_max: int, piece: int) -> Iterator[bytes]:
    """Unpack all frames of any zstd file, in pieces of at most this size. A file that was cut ends
    early without an error; zstdframes detects that.

    Raises:
        FormatError: it is damaged, or needs a larger window.

    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=window_max)
    source = _open_window(fd, 0, os.fstat(fd).st_size)
    with decompressor.stream_reader(source, read_across_frames=True) as reader:
        while True:
            try:
                data = reader.read(piece)
            except zstandard.ZstdError as e:
                raise FormatError(str(e)) from e
            if not data:
                return
            yield data
