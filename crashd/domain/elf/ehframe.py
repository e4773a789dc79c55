"""Which addresses of a module have unwind information: the sorted table of .eh_frame_hdr. Pure.

Source: Linux Standard Base, "Exception Frames"; only the encodings that GNU ld, gold, lld and mold
write are read.
"""

from collections.abc import Callable
from struct import Struct
from typing import Final

PT_GNU_EH_FRAME: Final = 0x6474E550
_PREFIX = bytes((1, 0x1B, 0x03, 0x3B))
"""Version; pcrel sdata4, udata4, datarel sdata4."""
_HEAD = Struct("<4siI")
_ROW = Struct("<ii")
_FDE = Struct("<IIiI")
_ROWS_MAX = 1 << 22

ReadAt = Callable[[int, int], bytes]


class UnwindTable:
    """The table at an address; `read` reads the process's memory."""

    def __init__(self, read: ReadAt, address: int) -> None:
        self._read = read
        self._address = address
        head = read(address, _HEAD.size)
        self._count = 0
        """Number of functions; 0 if there is no readable table."""
        if len(head) == _HEAD.size:
            prefix, _, count = _HEAD.unpack(head)
            self._count = min(count, _ROWS_MAX) if prefix == _PREFIX else 0

    def function(self, pc: int) -> tuple[int, int] | None:
        """Return start and end of the function at an address; None if it is not in the table."""
        found = self._find(pc)
        return None if found is None else found[:2]

    def entry(self, pc: int) -> int | None:
        """Return the address of the frame description entry of the function at an address."""
        found = self._find(pc)
        return None if found is None else found[2]

    def _find(self, pc: int) -> tuple[int, int, int] | None:
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            row = self._row(middle)
            if row is None:
                return None
            low, high = (middle + 1, high) if row[0] <= pc else (low, middle)
        row = self._row(low - 1) if low else None
        raw = self._read(row[1], _FDE.size) if row is not None else b""
        if row is None or len(raw) < _FDE.size:
            return None
        _, _, begin, size = _FDE.unpack(raw)
        if row[1] + 8 + begin != row[0]:
            return None  # another encoding
        return (row[0], row[0] + size, row[1]) if pc < row[0] + size else None

    def _row(self, index: int) -> tuple[int, int] | None:
        raw = self._read(self._address + _HEAD.size + index * _ROW.size, _ROW.size)
        if len(raw) < _ROW.size:
            return None
        start, fde = _ROW.unpack(raw)
        return self._address + start, self._address + fde
