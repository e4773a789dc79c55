"""A kernel dump that can be read only once, from start to end, because a compressor wrapped it.

judge() (vmcore.py) reads at any offset of a plain file. Here the same facts are collected as the
data passes: the head, the size, how many pages the bitmap says were dumped and where their last
byte is, or whether the end marker of the flattened format ends it. HEAD_SIZE bounds the memory,
whatever the dump says of itself.
"""

from dataclasses import dataclass
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
from crashd.domain.kdump.flattened import FLAT_MAGIC, FlatReader
from crashd.errors import FormatError

HEAD_SIZE: Final = 2**20


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
        self._flat: FlatReader | None = None
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
            self._flat = FlatReader(HEAD_SIZE)
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
