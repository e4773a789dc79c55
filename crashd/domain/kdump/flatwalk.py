"""Follow a flattened dump record by record: makedumpfile writes an ELF dump's program headers last
but one, far after the end of a head.
"""

from struct import Struct
from typing import Final

from crashd.domain.kdump.diskdump import Read

RECORDS_MAX: Final = 2**20
"""A record of makedumpfile has at least a page: enough for 4 GiB."""

_RECORD = Struct(">qq")


def walk(read: Read, first: int, size: int, limit: int) -> tuple[bytes, bool | None]:
    """Return the first `limit` bytes of the dump inside a flattened file of `size` bytes, whose
    records begin at `first`, and whether the end marker ends it; None if there are too many records
    to see that.
    """
    out = bytearray()
    at = first
    for _ in range(RECORDS_MAX):
        record = read(at, _RECORD.size)
        if len(record) < _RECORD.size:
            return bytes(out), False
        offset, length = _RECORD.unpack(record)
        at += _RECORD.size
        if offset == length == -1:
            return bytes(out), at == size
        if offset < 0 or length <= 0:
            return bytes(out), False
        data = read(at, min(length, limit - offset)) if offset < limit else b""
        out.extend(bytes(max(0, offset + len(data) - len(out))))
        out[offset : offset + len(data)] = data
        at += length
    return bytes(out), None
