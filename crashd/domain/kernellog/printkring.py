"""Reads the kernel's log from the memory of a dump, by VMCOREINFO; needs no vmlinux.

    since 5.10   prb ─▶ struct printk_ringbuffer
                          desc_ring ─▶ descs[]  state and id; where the text is
                                       infos[]  time, length of the text
                          text_data_ring ─▶ data: id, text; id, text … around and around
    3.5 to 5.9   log_buf ─▶ struct printk_log, text, dictionary; the next … around and around

The crashed kernel may be hostile. So each record is checked by itself, invalid ones are counted and
skipped, and the number of records and bytes is bounded.

Source: kernel/printk/printk_ringbuffer.[ch], kernel/printk/printk.c; the text has the form of
`makedumpfile --dump-dmesg`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from crashd.domain.elf.headers import Bits, ByteOrder
from crashd.errors import FormatError

RECORDS_MAX: Final = 2**16
"""The newest records that are read; a log of 2 MiB has half as many."""
TEXT_MAX: Final = 2_000_000
"""Bytes of the newest text that are read."""
_COUNT_BITS_MAX = 28
_SIZE_BITS_MAX = 32
_LINES_MAX = 4096

# kernel/printk/printk_ringbuffer.h: enum desc_state
_DESC_COMMITTED, _DESC_FINALIZED, _DESC_REUSABLE = 1, 2, 3

_KEY = re.compile(
    rb"(SYMBOL|SIZE|OFFSET|NUMBER|LENGTH)\([A-Za-z_][\w.]{0,79}\)=(-?[0-9a-fA-F]{1,20})"
)
_SPECIAL = re.compile(rb"[^\x20-\x7e\t\r\n]")

Read = Callable[[int, int], bytes]
"""Returns the bytes at a kernel address; raises LookupError if the dump lacks them."""


@dataclass(frozen=True, slots=True)
class KernelLog:
    """The log of a dump; the text is ASCII."""

    text: bytes
    records: int
    skipped: int = 0
    """Records that were just being written, are damaged, or are not in the dump."""
    cut: bool = False
    """Whether there were too many records; the oldest are missing."""
    build_id: str | None = None
    """Of the dump's vmlinux, by the VMCOREINFO that the log was found by."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The crashed kernel's memory, and the size and byte order of its words."""

    read: Read
    bits: Bits
    byteorder: ByteOrder

    def number(self, address: int, size: int) -> int:
        """Read an unsigned number; raises LookupError like `read`."""
        return int.from_bytes(self.read(address, size), self.byteorder)

    def word(self, address: int) -> int:
        """Read an unsigned long or a pointer; raises LookupError like `read`."""
        return self.number(address, self.bits // 8)


def parse_numbers(vmcoreinfo: bytes) -> dict[str, int]:
    """Parse the lines of VMCOREINFO with addresses, sizes and offsets, by their original keys."""
    found: dict[str, int] = {}
    for line in vmcoreinfo.split(b"\n", _LINES_MAX)[:_LINES_MAX]:
        match = _KEY.fullmatch(line.strip(b" \0\r"))
        if match is None:
            continue
        base = 16 if match[1] == b"SYMBOL" else 10
        try:
            found[line.partition(b"=")[0].decode("ascii").strip()] = int(match[2], base)
        except ValueError:
            continue
    return found


def read_log(memory: Memory, numbers: Mapping[str, int]) -> KernelLog:
    """Read the log of a dump; `numbers` is the result of parse_numbers().

    Raises:
        FormatError: VMCOREINFO does not locate the log, or the log's own structures are missing
            from the dump or absurd.
    """
    try:
        if "SYMBOL(prb)" in numbers:
            return _collect(_PrintkRing(memory, numbers).records())
        if "SYMBOL(log_first_idx)" in numbers:
            return _collect(_structured(memory, numbers))
    except KeyError as e:
        raise FormatError(f"VMCOREINFO has no {e.args[0]}") from e
    except LookupError as e:
        raise FormatError("the log's own structures are not in the dump") from e
    raise FormatError("VMCOREINFO does not locate the log")


_Record = tuple[int, bytes]
"""Time since boot in ns, and text."""


def _collect(records: Iterator[_Record | None]) -> KernelLog:
    """Join records that come newest first into a text that is oldest first."""
    parts: list[bytes] = []
    size = skipped = 0
    for record in records:
        if record is None:
            skipped += 1
            continue
        line = _format(*record)
        size += len(line)
        if size > TEXT_MAX or len(parts) >= RECORDS_MAX:
            return KernelLog(b"".join(reversed(parts)), len(parts), skipped, cut=True)
        parts.append(line)
    return KernelLog(b"".join(reversed(parts)), len(parts), skipped)


def _format(time_ns: int, text: bytes) -> bytes:
    seconds, rest = divmod(time_ns, 10**9)
    head = b"[%5d.%06d] " % (seconds, rest // 1000)
    text = text.replace(b"\n", b"\n" + b" " * len(head))
    return head + _SPECIAL.sub(lambda m: b"\\x%02x" % m[0][0], text) + b"\n"


class _PrintkRing:
    """A struct printk_ringbuffer."""

    def __init__(self, memory: Memory, numbers: Mapping[str, int]) -> None:
        # Every offset comes from VMCOREINFO: they differ between versions and builds.
        self._memory, self._numbers = memory, numbers
        self._word = memory.bits // 8
        address = memory.word(numbers["SYMBOL(prb)"])
        descs = address + numbers["OFFSET(printk_ringbuffer.desc_ring)"]
        data = address + numbers["OFFSET(printk_ringbuffer.text_data_ring)"]
        self._flags_shift = memory.bits - 2
        self._id_mask = (1 << self._flags_shift) - 1
        count_bits = memory.number(descs + numbers["OFFSET(prb_desc_ring.count_bits)"], 4)
        size_bits = memory.number(data + numbers["OFFSET(prb_data_ring.size_bits)"], 4)
        if not 0 < count_bits <= _COUNT_BITS_MAX or not 0 < size_bits <= _SIZE_BITS_MAX:
            raise FormatError(
                f"a log of 2^{count_bits} records in 2^{size_bits} bytes is not plausible"
            )
        self._count, self._size_bits = 1 << count_bits, size_bits
        self._descs = memory.word(descs + numbers["OFFSET(prb_desc_ring.descs)"])
        self._infos = memory.word(descs + numbers["OFFSET(prb_desc_ring.infos)"])
        self._data = memory.word(data + numbers["OFFSET(prb_data_ring.data)"])
        counter = numbers["OFFSET(atomic_long_t.counter)"]
        self._head = memory.word(descs + numbers["OFFSET(prb_desc_ring.head_id)"] + counter)
        self._tail = memory.word(descs + numbers["OFFSET(prb_desc_ring.tail_id)"] + counter)
        self._state_at = numbers["OFFSET(prb_desc.state_var)"] + counter
        self._begin_at = (
            numbers["OFFSET(prb_desc.text_blk_lpos)"] + numbers["OFFSET(prb_data_blk_lpos.begin)"]
        )
        self._next_at = (
            numbers["OFFSET(prb_desc.text_blk_lpos)"] + numbers["OFFSET(prb_data_blk_lpos.next)"]
        )
        self._desc_size, self._info_size = numbers["SIZE(prb_desc)"], numbers["SIZE(printk_info)"]
        self._time_at = numbers["OFFSET(printk_info.ts_nsec)"]
        self._length_at = numbers["OFFSET(printk_info.text_len)"]

    def records(self) -> Iterator[_Record | None]:
        """Yield the records, newest first; None for one that cannot be read."""
        number = self._head & self._id_mask
        tail = self._tail & self._id_mask
        for _ in range(min(self._count, RECORDS_MAX + 1)):
            try:
                if not self._is_free(number):
                    yield self._record(number)
            except LookupError:
                yield None
            if number == tail:
                return
            number = (number - 1) & self._id_mask

    def _is_free(self, number: int) -> bool:
        """Return whether the kernel has freed this record, as it does with the oldest ones."""
        state = self._memory.word(
            self._descs + (number % self._count) * self._desc_size + self._state_at
        )
        return state >> self._flags_shift == _DESC_REUSABLE

    def _record(self, number: int) -> _Record | None:
        """Read one record; None if it is unfinished, reused or damaged.

        The id in the descriptor, and the one before the text, must both be `number`: the kernel
        reuses both rings, and the crash may have stopped it in between.
        """
        memory = self._memory
        desc = self._descs + (number % self._count) * self._desc_size
        info = self._infos + (number % self._count) * self._info_size
        state = memory.word(desc + self._state_at)
        ready = state >> self._flags_shift in (_DESC_COMMITTED, _DESC_FINALIZED)
        if not ready or state & self._id_mask != number:
            return None
        begin, after = memory.word(desc + self._begin_at), memory.word(desc + self._next_at)
        time_ns = memory.number(info + self._time_at, 8)
        if begin & after & 1:  # BLK_DATALESS(): an empty line, or one without room
            return time_ns, b""
        size = 1 << self._size_bits
        start, last = begin % size, (after - 1) & ((1 << memory.bits) - 1)
        # A block never wraps around the end; it is placed at the start instead. A block that ends
        # exactly at the end did not wrap (6.18 and later), although its `next` belongs to the next
        # round.
        if begin >> self._size_bits != last >> self._size_bits:
            start = 0
        room = last % size + 1 - start - self._word
        if room < 0 or memory.word(self._data + start) & self._id_mask != number:
            return None
        length = min(memory.number(info + self._length_at, 2), room)
        return time_ns, memory.read(self._data + start + self._word, length)


def _structured(memory: Memory, numbers: Mapping[str, int]) -> Iterator[_Record | None]:
    """Yield the records of a log_buf, newest first; they can only be walked from the oldest."""
    # struct log until 3.11
    name = "printk_log" if "SIZE(printk_log)" in numbers else "log"
    buffer = memory.word(numbers["SYMBOL(log_buf)"])
    size = memory.number(numbers["SYMBOL(log_buf_len)"], 4)
    first = memory.number(numbers["SYMBOL(log_first_idx)"], 4)
    end = memory.number(numbers["SYMBOL(log_next_idx)"], 4)
    header = numbers[f"SIZE({name})"]
    time_at = numbers[f"OFFSET({name}.ts_nsec)"]
    len_at = numbers[f"OFFSET({name}.len)"]
    text_len_at = numbers[f"OFFSET({name}.text_len)"]
    if not header or first >= size or end > size:
        raise FormatError(f"a log from {first} to {end} of {size} bytes is not plausible")
    found: list[int] = []
    at, wrapped = first, end > first
    while at != end and len(found) <= 2 * RECORDS_MAX:
        try:
            length = memory.number(buffer + at + len_at, 2)
        except LookupError:
            length = 1  # its length says where the next one begins: stop there
        if not length and not wrapped:
            at, wrapped = 0, True  # the next record did not fit into the rest of the buffer
            continue
        found.append(at)
        if length < header or at + length >= size:
            break
        at += length
    for at in reversed(found):
        try:
            length = memory.number(buffer + at + len_at, 2)
            text = min(memory.number(buffer + at + text_len_at, 2), length - header)
            time_ns = memory.number(buffer + at + time_at, 8)
            whole = text >= 0 and at + length < size
            yield (time_ns, memory.read(buffer + at + header, text)) if whole else None
        except LookupError:
            yield None
