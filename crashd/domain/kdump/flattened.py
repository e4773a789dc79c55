"""The flattened format, which makedumpfile writes into pipes (`-F`): its one reader.

    4096 bytes that begin with "makedumpfile"
    then records in any order: be64 offset in the dump, be64 size, data
    at the end a record with offset and size -1

Source: makedumpfile's struct makedumpfile_header and makedumpfile_data_header.
"""

from struct import Struct
from typing import Final

from crashd.domain.kdump.diskdump import Read

FLAT_MAGIC: Final = b"makedumpfile\0"  # its error texts begin with "makedumpfile Failed."
FLAT_HEADER_SIZE: Final = 4096
FLAT_END: Final = b"\xff" * 16
"""The record that makedumpfile writes last."""
RECORDS_MAX: Final = 2**20
"""A record of makedumpfile has at least a page: enough for 4 GiB."""

_RECORD = Struct(">qq")


class FlatReader:
    """Takes a flattened dump from its start to its end, and keeps the first `limit` bytes of the
    dump inside, in order; zeros stand for records that have not come yet.
    """

    def __init__(self, limit: int) -> None:
        self.head = bytearray()
        self.end_at: int | None = None
        """Offset after the end marker; None before it comes."""
        self.is_broken = False
        """An absurd record came; the rest cannot be followed."""
        self.records = 0
        self.at = 0
        """Offset of the next byte to feed."""
        self._limit = limit
        self._skip = FLAT_HEADER_SIZE
        self._pending = b""
        self._offset = self._left = 0

    @property
    def ended(self) -> bool:
        """Whether the end marker came, and nothing after it."""
        return self.end_at is not None and self.at == self.end_at

    @property
    def unused(self) -> int:
        """How many of the next bytes may be passed over: their contents do not matter."""
        return self._skip or (self._left if self._offset >= self._limit else 0)

    @property
    def wanted(self) -> int:
        """How many bytes belong together next; 0 after the end."""
        if self.is_broken or self.end_at is not None:
            return 0
        used = min(self._left, self._limit - self._offset) if self._left else 0
        return self.unused or used or _RECORD.size - len(self._pending)

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        while view:
            if self.is_broken or self.end_at is not None:
                self.at += len(view)  # something follows the end
                return
            if self._skip or self._left:
                taken = min(self._skip or self._left, len(view))
                if not self._skip:
                    self._keep(view[:taken])
                self.pass_over(taken)
            else:
                taken = min(_RECORD.size - len(self._pending), len(view))
                self._pending += bytes(view[:taken])
                self.at += taken
                if len(self._pending) == _RECORD.size:
                    self._start_record(*_RECORD.unpack(self._pending))
                    self._pending = b""
            view = view[taken:]

    def pass_over(self, size: int) -> None:
        """Take the next `size` bytes without their contents."""
        self.at += size
        if self._skip:
            self._skip -= size
        else:
            self._left -= size
            self._offset += size

    def _start_record(self, offset: int, size: int) -> None:
        self.records += 1
        if offset == size == -1:
            self.end_at = self.at
        elif offset < 0 or size <= 0:
            self.is_broken = True
        else:
            self._offset, self._left = offset, size

    def _keep(self, data: memoryview) -> None:
        kept = bytes(data[: max(0, self._limit - self._offset)])
        if kept:
            self.head.extend(bytes(max(0, self._offset + len(kept) - len(self.head))))
            self.head[self._offset : self._offset + len(kept)] = kept


def read_flattened(read: Read, size: int, limit: int) -> tuple[bytes, bool | None]:
    """Return the first `limit` bytes of the dump inside a flattened file of `size` bytes, and
    whether the end marker ends it; None if there are too many records to see that.

    makedumpfile writes an ELF dump's program headers last but one, far after the end of a head.
    """
    reader = FlatReader(limit)
    while reader.records <= RECORDS_MAX:
        if reader.unused:
            reader.pass_over(reader.unused)
        wanted = reader.wanted
        data = read(reader.at, wanted) if wanted else b""
        reader.feed(data)
        if len(data) < wanted or not wanted:
            return bytes(reader.head), reader.end_at == size
    return bytes(reader.head), None
