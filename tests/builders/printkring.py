"""Lay a kernel's log out in memory as printk does, with the VMCOREINFO that tells of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

BASE = 0x1000
DESCS, INFOS, DATA = 0x10000, 0x20000, 0x40000

FINALIZED, REUSABLE = 2, 3


@dataclass(slots=True)
class Image:
    """Memory, byte by byte; what was not written is not there."""

    bits: Literal[32, 64] = 64
    byteorder: Literal["little", "big"] = "little"
    bytes_at: dict[int, int] = field(default_factory=dict)

    def put(self, address: int, data: bytes) -> None:
        """Write bytes."""
        self.bytes_at.update(enumerate(data, address))

    def number(self, address: int, value: int, size: int) -> None:
        """Write a number."""
        self.put(address, value.to_bytes(size, self.byteorder))

    def word(self, address: int, value: int) -> None:
        """Write an unsigned long."""
        self.number(address, value % (1 << self.bits), self.bits // 8)

    def read(self, address: int, size: int) -> bytes:
        """Read bytes, as crashd.domain.kernellog.printkring wants it."""
        try:
            return bytes(self.bytes_at[at] for at in range(address, address + size))
        except KeyError as e:
            raise LookupError(hex(address)) from e


def ring_numbers(bits: int) -> dict[str, int]:
    """Tell where a printk_ringbuffer's members are."""
    word = bits // 8
    return {
        "SYMBOL(prb)": BASE,
        "OFFSET(printk_ringbuffer.desc_ring)": 0,
        "OFFSET(printk_ringbuffer.text_data_ring)": 6 * word,
        "OFFSET(prb_desc_ring.count_bits)": 0,
        "OFFSET(prb_desc_ring.descs)": word,
        "OFFSET(prb_desc_ring.infos)": 2 * word,
        "OFFSET(prb_desc_ring.head_id)": 3 * word,
        "OFFSET(prb_desc_ring.tail_id)": 4 * word,
        "OFFSET(prb_data_ring.size_bits)": 0,
        "OFFSET(prb_data_ring.data)": word,
        "OFFSET(atomic_long_t.counter)": 0,
        "OFFSET(prb_desc.state_var)": 0,
        "OFFSET(prb_desc.text_blk_lpos)": word,
        "OFFSET(prb_data_blk_lpos.begin)": 0,
        "OFFSET(prb_data_blk_lpos.next)": word,
        "SIZE(prb_desc)": 3 * word,
        "SIZE(printk_info)": 88,
        "OFFSET(printk_info.ts_nsec)": 8,
        "OFFSET(printk_info.text_len)": 16,
    }


@dataclass(slots=True)
class Ring:
    """A printk_ringbuffer of 2^`count_bits` records in 2^`size_bits` bytes, filled as the kernel
    fills it: the oldest records go when there is no room.
    """

    image: Image
    count_bits: int = 3
    size_bits: int = 8
    first_id: int = 0
    exact_fit: bool = False
    """A block may end just where the buffer does (6.18)."""
    address: int = 0x2000

    def write(self, texts: Sequence[bytes]) -> None:
        """Write the records, one each second, and the structures around them."""
        image, word = self.image, self.image.bits // 8
        mask = (1 << (image.bits - 2)) - 1
        size = 1 << self.size_bits
        lpos = -size % (1 << image.bits)  # BLK0_LPOS: it overflows early
        blocks: list[tuple[int, int]] = []
        for number, text in enumerate(texts):
            identity = (self.first_id + number) & mask
            begin, after, lpos = self._place(lpos, -(-(word + len(text)) // word) * word)
            start = 0 if self._wraps(begin, after) else begin % size
            image.word(DATA + start, identity)
            image.put(DATA + start + word, text)
            blocks.append((begin, after))
            slot = identity % (1 << self.count_bits)
            desc, info = DESCS + slot * 3 * word, INFOS + slot * 88
            image.word(desc, FINALIZED << (image.bits - 2) | identity)
            image.word(desc + word, begin)
            image.word(desc + 2 * word, after)
            image.number(info + 8, number * 10**9 + 1000 * number, 8)
            image.number(info + 16, len(text), 2)
        self._finish(len(texts), blocks)

    def _wraps(self, begin: int, after: int) -> bool:
        last = after - 1 if self.exact_fit else after
        return begin >> self.size_bits != last >> self.size_bits

    def _place(self, begin: int, length: int) -> tuple[int, int, int]:
        after = begin + length
        if self._wraps(begin, after):
            after = (after >> self.size_bits << self.size_bits) + length
        return begin, after, after

    def _finish(self, count: int, blocks: list[tuple[int, int]]) -> None:
        image, word = self.image, self.image.bits // 8
        slots = min(count, 1 << self.count_bits)
        mask = (1 << (image.bits - 2)) - 1
        room = 1 << self.size_bits
        kept = [n for n in range(count - slots, count) if blocks[-1][1] - blocks[n][0] <= room]
        image.number(self.address, self.count_bits, 4)
        image.word(self.address + word, DESCS)
        image.word(self.address + 2 * word, INFOS)
        image.word(self.address + 3 * word, (self.first_id + count - 1) & mask)
        image.word(self.address + 4 * word, (self.first_id + min(kept)) & mask)
        image.number(self.address + 6 * word, self.size_bits, 4)
        image.word(self.address + 7 * word, DATA)
        image.word(BASE, self.address)


STRUCTURED = {
    "SYMBOL(log_buf)": BASE,
    "SYMBOL(log_buf_len)": BASE + 8,
    "SYMBOL(log_first_idx)": BASE + 16,
    "SYMBOL(log_next_idx)": BASE + 24,
    "SIZE(printk_log)": 16,
    "OFFSET(printk_log.ts_nsec)": 0,
    "OFFSET(printk_log.len)": 8,
    "OFFSET(printk_log.text_len)": 10,
}


def write_structured(image: Image, texts: Sequence[bytes], size: int) -> None:
    """Lay a log of 3.5 to 5.9 out in a log_buf of `size` bytes, as its log_store() does."""
    at, first, records = 0, 0, list[tuple[int, int]]()
    for number, text in enumerate(texts):
        length = -(-(16 + len(text)) // 8) * 8
        if at + length + 16 > size:
            image.put(DATA + at, bytes(16))
            records = [record for record in records if record[0] < at]
            at = 0
        records = [r for r in records if r[0] + r[1] <= at or r[0] >= at + length + 16]
        image.put(DATA + at, bytes(length))
        image.number(DATA + at, number * 10**9, 8)
        image.number(DATA + at + 8, length, 2)
        image.number(DATA + at + 10, len(text), 2)
        image.put(DATA + at + 16, text)
        records.append((at, length))
        at += length
        first = records[0][0]
    image.word(BASE, DATA)
    image.number(BASE + 8, size, 4)
    image.number(BASE + 16, first, 4)
    image.number(BASE + 24, at, 4)
