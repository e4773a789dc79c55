"""A kernel dump that can be read only once, from start to end, because a compressor wrapped it.

judge() (vmcore.py) reads at any offset of a plain file. Here the same facts are collected as the
data passes: the head, the size, how many pages the bitmap says were dumped and where their last
byte is, or whether the end marker of the flattened format ends it. HEAD_SIZE bounds the memory,
whatever the dump says of itself.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Final

from crashd.domain.kdump.diskdump import (
    DESC_SIZE,
    HEADER_SIZE,
    SIGNATURE,
    BitmapRange,
    DiskDump,
    find_bitmap,
    find_pages_end,
    parse_diskdump,
)
from crashd.errors import FormatError

HEAD_SIZE: Final = 2**20
FLAT_MAGIC: Final = b"makedumpfile\0"  # its error texts begin with "makedumpfile Failed."
FLAT_HEADER_SIZE: Final = 4096

_RECORD = Struct(">qq")


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A compressed dump, read to the end of what the compressor wrote."""

    cut: bool
    """The compressor's own end is missing, or its output is damaged."""
    why: str
    """What is wrong with it, in words; "" if it is not cut."""
    size_bytes: int
    """Decompressed size."""
    head: bytes
    """First decompressed bytes; of a flattened dump those of the dump itself, in order."""
    flattened: bool
    flat_ended: bool
    """The end marker of the flattened format is the last thing inside."""
    least: tuple[int, str, bool] | None
    """As diskdump.size_at_least(); None if it is not a plain kdump-compressed dump."""


class DumpMeter:
    """Takes a dump piece by piece (`feed`) and in the end reports what it was (`finish`)."""

    def __init__(self) -> None:
        self._size = 0
        self._head = bytearray()
        self._flat: _FlatWalk | None = None
        self._pages: _PageCount | None = None
        self._begun = False

    @property
    def size_bytes(self) -> int:
        """How much was fed."""
        return self._size

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        at, self._size = self._size, self._size + len(data)
        if self._begun:
            self._pass_on(at, data)
            return
        # The head shows what the dump is: nothing is passed on until it is complete.
        taken = HEAD_SIZE - len(self._head)
        self._head += data[:taken]
        if len(self._head) == HEAD_SIZE:
            self._begin()
            self._pass_on(HEAD_SIZE, data[taken:])

    def finish(self, *, cut: bool, why: str = "") -> Unpacked:
        """Return what it was; `cut` if there should have been more."""
        if not self._begun:
            self._begin()
        flat = self._flat
        return Unpacked(
            cut=cut,
            why=why,
            size_bytes=self._size,
            head=bytes(self._head if flat is None else flat.head),
            flattened=flat is not None,
            flat_ended=flat is not None and flat.ended,
            least=self._pages.least() if self._pages is not None else None,
        )

    def _begin(self) -> None:
        self._begun = True
        head = bytes(self._head)
        if head.startswith(FLAT_MAGIC):
            self._flat = _FlatWalk()
            self._head.clear()
        elif head.startswith(SIGNATURE) and len(head) >= HEADER_SIZE:
            try:
                self._pages = _PageCount(parse_diskdump(head))
            except FormatError:
                return  # the caller that parses the head again reports the reason
        self._pass_on(0, head)

    def _pass_on(self, at: int, data: bytes) -> None:
        if self._flat is not None:
            self._flat.feed(data)
        elif self._pages is not None:
            self._pages.feed(at, data)


class _FlatWalk:
    """Follows the records of a flattened dump."""

    def __init__(self) -> None:
        self.head = bytearray()
        self.ended = False
        self._broken = False
        self._skip = FLAT_HEADER_SIZE
        self._pending = b""
        self._offset = self._left = 0

    def feed(self, data: bytes) -> None:
        view = memoryview(data)
        if self._skip:
            skipped = min(self._skip, len(view))
            self._skip -= skipped
            view = view[skipped:]
        while view and not self._broken:
            if self._left:
                taken = min(self._left, len(view))
                self._take(view[:taken])
                self._left -= taken
                view = view[taken:]
                continue
            if self.ended:
                self.ended, self._broken = False, True  # something follows the end marker
                return
            wanted = _RECORD.size - len(self._pending)
            self._pending += bytes(view[:wanted])
            view = view[wanted:]
            if len(self._pending) == _RECORD.size:
                self._start_record(*_RECORD.unpack(self._pending))
                self._pending = b""

    def _start_record(self, offset: int, size: int) -> None:
        if offset == size == -1:
            self.ended = True
        elif offset < 0 or size <= 0:
            self._broken = True
        else:
            self._offset, self._left = offset, size

    def _take(self, data: memoryview) -> None:
        at, self._offset = self._offset, self._offset + len(data)
        if at >= HEAD_SIZE:
            return
        kept = bytes(data[: HEAD_SIZE - at])
        # Records come in any order: a gap between them is zeros until its own record comes.
        self.head.extend(bytes(max(0, at + len(kept) - len(self.head))))
        self.head[at : at + len(kept)] = kept


class _PageCount:
    """Counts the pages of a kdump-compressed dump, and finds the end of the last one."""

    def __init__(self, dump: DiskDump) -> None:
        self._dump = dump
        self._bitmap: BitmapRange | None = find_bitmap(dump)
        self._count = 0
        self._counted_to = self._bitmap.at if self._bitmap is not None else 0
        self._end = dump.descriptors_at
        self._described_to = dump.descriptors_at
        self._rest = b""

    def feed(self, at: int, data: bytes) -> None:
        bitmap = self._bitmap
        if bitmap is None:
            return
        if self._counted_to < bitmap.end and at + len(data) > bitmap.at:
            start = self._counted_to
            piece = data[start - at : bitmap.end - at]
            self._count += bitmap.count_pages(start, piece)
            self._counted_to = start + len(piece)
        table_end = self._table_end()
        if self._counted_to == bitmap.end and self._described_to < table_end:
            piece = data[max(0, self._described_to - at) : max(0, table_end - at)]
            self._described_to += len(piece)
            table = self._rest + piece
            whole = len(table) // DESC_SIZE * DESC_SIZE
            self._end = max(self._end, find_pages_end(table[:whole], self._dump))
            self._rest = table[whole:]

    def _table_end(self) -> int:
        return self._dump.descriptors_at + DESC_SIZE * self._count

    def least(self) -> tuple[int, str, bool]:
        """Return what diskdump.size_at_least() would."""
        at = self._dump.descriptors_at
        if self._bitmap is None or self._counted_to < self._bitmap.end:
            return at, "bitmaps", False
        table_end = self._table_end()
        told = self._described_to == table_end
        if self._end > table_end:
            return self._end, "pages", told
        return table_end, "page descriptors", told
