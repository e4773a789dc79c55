"""The table of functions and lines that a stripped Go program keeps for its stack traces. Pure.

    header    magic u32, two zeros, quantum u8, pointer size u8, then words of pointer size:
              functions, files, [text start,] offsets of: names, units, files, values, functions
    functions pairs (entry, offset of its description), sorted by entry, and an end
    describes entry, name, …, offset of the table of files, of lines, …, first file of its unit
    values    pairs of varints (zigzag difference of the value, difference of the pc / quantum)

The table comes from the crashed process's memory or its executable, so every offset and length in
it can be a lie: reads are bounded, and an entry that does not fit gives no name.

Source: Go's src/runtime/symtab.go, src/debug/gosym/pclntab.go (Go 1.16 to 1.24).
"""

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Final, Literal

NAME_MAX: Final = 4096
VALUES_MAX: Final = 64 << 10
"""Bytes of one function's table of lines that are searched."""
FUNCTIONS_MAX: Final = 1 << 22
SECTIONS: Final = (b".gopclntab", b".data.rel.ro.gopclntab")
"""Sections with the table, in a program at a fixed address and in a position-independent one."""
_GO_1_16, _GO_1_18, _GO_1_20 = 0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1
_BLOCK = 4096
_BLOCKS_MAX = 1024

Read = Callable[[int, int], bytes]
"""Takes address and size; returns fewer bytes if the memory is not there."""


@dataclass(frozen=True, slots=True)
class GoFunction:
    """The function at an address."""

    name: str
    entry: int
    file: str | None
    line: int | None


class GoTable:
    """One module's table, read as needed."""

    def __init__(self, read: Read, address: int, text: int) -> None:
        """`text` is the address of the module's code, for tables that do not contain it.

        Raises:
            ValueError: there is no known table at `address`.

        """
        self._read = read
        self._address = address
        self._blocks: dict[int, bytes] = {}
        head = self._bytes(0, 8)
        byteorder = "<" if head[:4] in _magics("little") else ">"
        if head[:4] not in _magics("little") + _magics("big") or head[4:6] != b"\0\0":
            raise ValueError("no table of Go's functions")
        self._quantum, self._pointer = head[6], head[7]
        if self._quantum not in (1, 2, 4) or self._pointer not in (4, 8):
            raise ValueError("a table of Go's functions for no known machine")
        self._u32 = Struct(byteorder + "I")
        self._word = Struct(byteorder + ("Q" if self._pointer == 8 else "I"))
        relative = self._u32.unpack(head[:4])[0] != _GO_1_16
        words = [self._word_at(8 + n * self._pointer) for n in range(8)]
        self._count = min(words[0], FUNCTIONS_MAX)
        self._text = (words[2] or text) if relative else 0
        self._names, self._units, self._files, self._values, self._functions = words[2:7]
        if relative:
            self._names, self._units, self._files, self._values, self._functions = words[3:8]
        self._entry = self._u32 if relative else self._word

    def function(self, pc: int) -> GoFunction | None:
        """Return the function that contains `pc`; None if there is none."""
        at = self._find(pc)
        if at is None:
            return None
        try:
            place = self._functions + self._offset(at)
            entry = self._entry_at(at)
            fields = place + self._entry.size
            name = self._text_at(self._names + self._u32_at(fields))
            file, line = self._line(fields, entry, pc)
        except ValueError:
            return None
        return GoFunction(name, entry, file, line) if name else None

    def _find(self, pc: int) -> int | None:
        """Search the sorted table for the last function that begins at or before `pc`."""
        low, high = 0, self._count
        try:
            if not high or not self._entry_at(0) <= pc < self._entry_at(high):
                return None
            while high - low > 1:
                middle = (low + high) // 2
                if self._entry_at(middle) <= pc:
                    low = middle
                else:
                    high = middle
        except ValueError:
            return None
        return low

    def _line(self, fields: int, entry: int, pc: int) -> tuple[str | None, int | None]:
        """Return file and line of the innermost inlined call, as in Go's own traces."""
        file = self._value(self._u32_at(fields + 16), entry, pc)
        line = self._value(self._u32_at(fields + 20), entry, pc)
        if file is None or line is None or line <= 0:
            return None, None
        offset = self._u32_at(self._units + 4 * (self._u32_at(fields + 28) + file))
        return self._text_at(self._files + offset) or None, line

    def _value(self, table: int, entry: int, pc: int) -> int | None:
        """Return the value for `pc` from a table of values by program counter (Go's pcvalue)."""
        raw = self._some(self._values + table, VALUES_MAX)
        at, value, here = 0, -1, entry
        while at < len(raw):
            first = at == 0
            step, at = _varint(raw, at)
            if not step and not first:
                return None  # the table's end
            value += ~(step >> 1) if step & 1 else step >> 1
            length, at = _varint(raw, at)
            here += length * self._quantum
            if pc < here:
                return value if 0 <= value < 1 << 31 else None
        return None

    def _entry_at(self, index: int) -> int:
        raw = self._bytes(self._functions + 2 * index * self._entry.size, self._entry.size)
        return self._text + int(self._entry.unpack(raw)[0])

    def _offset(self, index: int) -> int:
        at = self._functions + (2 * index + 1) * self._entry.size
        return int(self._entry.unpack(self._bytes(at, self._entry.size))[0])

    def _u32_at(self, offset: int) -> int:
        return int(self._u32.unpack(self._bytes(offset, 4))[0])

    def _word_at(self, offset: int) -> int:
        return int(self._word.unpack(self._bytes(offset, self._pointer))[0])

    def _text_at(self, offset: int) -> str:
        raw, end, _ = self._some(offset, NAME_MAX, stop=b"\0").partition(b"\0")
        return raw.decode("utf-8", "backslashreplace") if end else ""

    def _bytes(self, offset: int, size: int) -> bytes:
        raw = self._some(offset, size)
        if len(raw) < size:
            raise ValueError("the table is cut")
        return raw

    def _some(self, offset: int, size: int, stop: bytes | None = None) -> bytes:
        """Read at most `size` bytes, or up to a block with `stop`.

        Blocks are cached, because a search visits the same ones again.
        """
        out = b""
        while len(out) < size:
            number, at = divmod(offset + len(out), _BLOCK)
            block = self._blocks.get(number)
            if block is None:
                if len(self._blocks) >= _BLOCKS_MAX:
                    self._blocks.clear()
                block = self._read(self._address + number * _BLOCK, _BLOCK)
                self._blocks[number] = block
            part = block[at : at + size - len(out)]
            if not part:
                break
            out += part
            if stop is not None and stop in part:
                break
        return out


def _magics(byteorder: Literal["little", "big"]) -> tuple[bytes, ...]:
    return tuple(magic.to_bytes(4, byteorder) for magic in (_GO_1_16, _GO_1_18, _GO_1_20))


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Decode an unsigned LEB128 of 32 bits; return it and the offset after it."""
    value = shift = 0
    while at < len(raw) and shift < 35:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number without end")
