"""Reduce a flattened kdump-compressed dump of x86-64 to the pages that its log is read from.

python -m tests.builders.reducedump DUMP REDUCED
"""

import struct
import sys
from pathlib import Path

import drgn

from crashd.domain.kernellog.printkring import Memory, parse_numbers, read_log
from tests.builders.kdumpdir import BLOCK, flatten

_START_KERNEL_MAP = 0xFFFFFFFF80000000
_FRAME = 0x000F_FFFF_FFFF_F000
_PRESENT, _LARGE = 1, 1 << 7
_DESC = struct.Struct("<QIIQ")


def unflatten(raw: bytes) -> bytes:
    """Put the records of a flattened dump in order."""
    out, at = bytearray(), 4096
    while True:
        offset, size = struct.unpack_from(">qq", raw, at)
        if offset < 0:
            return bytes(out)
        out.extend(bytes(max(0, offset + size - len(out))))
        out[offset : offset + size] = raw[at + 16 : at + 16 + size]
        at += 16 + size


def needed_frames(path: Path) -> set[int]:
    """Tell which page frames reading the log takes: its own, and the page tables to them."""
    program = drgn.Program()
    program.set_core_dump(str(path))
    info: bytes = program["VMCOREINFO"].string_()
    numbers = parse_numbers(info)
    top = numbers["SYMBOL(swapper_pg_dir)"] - _START_KERNEL_MAP + numbers["NUMBER(phys_base)"]
    levels = 5 if numbers.get("NUMBER(pgtable_l5_enabled)") else 4
    frames: set[int] = set()

    def walk(address: int) -> None:
        table = top
        for level in range(levels - 1, -1, -1):
            frames.add(table // BLOCK)
            index = address >> (12 + 9 * level) & 511
            entry = program.read_u64(table + 8 * index, True)
            if not entry & _PRESENT:
                raise LookupError(hex(address))
            table = entry & _FRAME
            if level and entry & _LARGE:
                table = (table & -(1 << (12 + 9 * level))) | address & ((1 << (12 + 9 * level)) - 1)
                break
        frames.add(table // BLOCK)

    def read(address: int, size: int) -> bytes:
        for page in range(address // BLOCK, (address + max(size, 1) - 1) // BLOCK + 1):
            walk(page * BLOCK)
        data: bytes = program.read(address, size)
        return data

    read_log(Memory(read, 64, "little"), numbers)
    return frames


def reduce(dump: bytes, frames: set[int]) -> bytes:
    """Drop all pages but those of `frames`; the header says nothing of it."""
    block, sub_blocks, bitmap_blocks = struct.unpack_from("<iII", dump, 428)
    bitmap_at = (1 + sub_blocks) * block
    half = bitmap_blocks * block // 2
    second = bytearray(dump[bitmap_at + half : bitmap_at + 2 * half])
    descs_at = bitmap_at + 2 * half
    kept: list[tuple[int, int, int, int]] = []
    number = 0
    for frame in range(8 * half):
        if not second[frame // 8] >> frame % 8 & 1:
            continue
        if frame in frames:
            kept.append(_DESC.unpack_from(dump, descs_at + number * _DESC.size))
        else:
            second[frame // 8] &= ~(1 << frame % 8)
        number += 1
    head = dump[: bitmap_at + half] + second
    at = len(head) + _DESC.size * len(kept)
    table = data = b""
    for offset, size, flags, page_flags in kept:
        table += _DESC.pack(at + len(data), size, flags, page_flags)
        data += dump[offset : offset + size]
    return head + table + data


def main() -> None:
    """Reduce the dump that the first argument names into the second."""
    source, target = (Path(name) for name in sys.argv[1:3])
    dump = unflatten(source.read_bytes())
    target.write_bytes(flatten(reduce(dump, needed_frames(source)), 1 << 16))


if __name__ == "__main__":
    main()
