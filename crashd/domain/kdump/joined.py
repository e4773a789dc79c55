"""The parts of a split dump, put together into one dump, as `makedumpfile --reassemble` does.

Each part has the same headers, both bitmaps, and descriptors and data of its own range of pages. So
the whole dump is: the headers without the mark of a part, the bitmap with the pages of all parts,
all descriptors, moved to where their data come, and all data.

Source: makedumpfile reassemble_kdump_header() and reassemble_kdump_pages().
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from crashd.domain.kdump.diskdump import (
    DESC_SIZE,
    BitmapRange,
    DiskDump,
    Read,
    count_dumped,
    find_bitmap,
    parse_diskdump,
)
from crashd.errors import FormatError

_CHUNK: Final = 1 << 20
_HEAD: Final = 1 << 20
_END_MAX: Final = 1 << 62
_TABLE: Final = _CHUNK // DESC_SIZE * DESC_SIZE
_SPLIT_AT: Final = {64: 12, 32: 8}
"""Offset of `split` in the sub-header, by word size."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part."""

    read: Read
    dump: DiskDump
    bitmap: BitmapRange
    count: int
    """Pages in it."""
    data: tuple[int, int]
    """Where its pages' data begin and end; makedumpfile leaves room for more descriptors."""

    @property
    def table_end(self) -> int:
        """Offset after the last descriptor."""
        return self.dump.descriptors_at + DESC_SIZE * self.count


def parse_part(read: Read) -> Part:
    """Read a part's headers and descriptors.

    Raises:
        FormatError: it is not a part of a split dump, or cut.

    """
    dump = parse_diskdump(read(0, _HEAD))
    bitmap, count = find_bitmap(dump), count_dumped(read, dump)
    if dump.split is None or bitmap is None or count is None:
        raise FormatError("a part of the dump is none, or is cut")
    start, end = 1 << 63, 0
    table_end = dump.descriptors_at + DESC_SIZE * count
    for at in range(dump.descriptors_at, table_end, _TABLE):
        size = min(_TABLE, table_end - at)
        table = read(at, size)
        if len(table) < size:
            raise FormatError("a part of the dump is cut")
        for offset, length, _, _ in _rows(dump).iter_unpack(table):
            start, end = min(start, offset), max(end, offset + length)
    if end > _END_MAX:
        raise FormatError("a part of the dump has absurd page descriptors")
    return Part(read, dump, bitmap, count, (start, end) if start < end else (0, 0))


def _rows(dump: DiskDump) -> Struct:
    return Struct(("<" if dump.byteorder == "little" else ">") + "QIIQ")


def join(parts: Sequence[Part]) -> Iterator[bytes]:
    """Yield the bytes of the whole dump, in pieces of bounded size.

    Raises:
        FormatError: the parts are of different dumps, or a part is cut.

    """
    parts = sorted(parts, key=lambda part: part.dump.split or (0, 0))
    first = parts[0].dump
    for part in parts[1:]:
        same = (part.dump.utsname, part.dump.descriptors_at, part.dump.max_mapnr)
        if same != (first.utsname, first.descriptors_at, first.max_mapnr):
            raise FormatError("the parts are of different dumps")
    bitmap_at = first.descriptors_at - first.bitmap_blocks // 2 * first.block_size_bytes
    yield _headers(parts[0])
    head_size = (1 + first.sub_header_blocks) * first.block_size_bytes
    yield from _copy(parts[0], head_size, bitmap_at)
    for at in range(bitmap_at, first.descriptors_at, _CHUNK):
        yield _bitmap(parts, at, min(_CHUNK, first.descriptors_at - at))
    base = first.descriptors_at + DESC_SIZE * sum(part.count for part in parts)
    for part in parts:
        start, end = part.data
        yield from _descriptors(part, base - start)
        base += end - start
    for part in parts:
        yield from _copy(part, *part.data)


def _headers(part: Part) -> bytes:
    dump = part.dump
    size = (1 + dump.sub_header_blocks) * dump.block_size_bytes
    head = bytearray(part.read(0, size))
    if len(head) < size:
        raise FormatError("a part of the dump is cut")
    at = dump.block_size_bytes + _SPLIT_AT[dump.bits]
    head[at : at + 4] = bytes(4)
    return bytes(head)


def _bitmap(parts: Sequence[Part], at: int, size: int) -> bytes:
    """Build a piece of the bitmap of pages dumped; each part's bits count in its own range."""
    bits = 0
    for part in parts:
        start, end = max(at, part.bitmap.at), min(at + size, part.bitmap.end)
        if start < end:
            own = part.bitmap.own_bits(start, part.read(start, end - start))
            bits |= int.from_bytes(own, "little") << 8 * (start - at)
    return bits.to_bytes(size, "little")


def _descriptors(part: Part, moved: int) -> Iterator[bytes]:
    struct = _rows(part.dump)
    for at in range(part.dump.descriptors_at, part.table_end, _TABLE):
        table = part.read(at, min(_TABLE, part.table_end - at))
        yield b"".join(
            struct.pack(offset + moved, *rest) for offset, *rest in struct.iter_unpack(table)
        )


def _copy(part: Part, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, _CHUNK):
        data = part.read(at, min(_CHUNK, end - at))
        if len(data) < min(_CHUNK, end - at):
            raise FormatError("a part of the dump is cut")
        yield data
