"""Reduce the memory of a real dump to what makedumpfile needs to make dumps of it in all forms, and
to what log and symbols take.

python -m tests.builders.reducevmcore DUMP PANIC_ELF VMCORE

DUMP is flattened and kdump-compressed, PANIC_ELF what tests.builders.reducekernel made of it. The
result looks like /proc/vmcore: all of the memory, with holes for pages that nobody reads.
`zstd -19 --long=27` makes 400 KB of it. Needs makedumpfile and strace.
"""

import os
import re
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from struct import pack, unpack, unpack_from

from crashd.domain.kdump.diskdump import DiskDump, parse_diskdump

PAGE = 4096
HEAD = 1 << 20
OTHERS = 1000
"""Every so many of the other pages is kept, too: something that nobody looks into."""


def build_elf(raw: bytes, dump: DiskDump, path: Path) -> int:
    """Write the memory of a kdump-compressed dump as /proc/vmcore has it; return where it begins;
    what the dump left out are holes.
    """
    notes = raw[dump.notes[0] : sum(dump.notes)]
    size = dump.bitmap_blocks // 2 * PAGE
    bits = int.from_bytes(raw[dump.descriptors_at - size : dump.descriptors_at], "little")
    first = 64 + 2 * 56
    start = -(-(first + len(notes)) // PAGE) * PAGE
    memory = dump.max_mapnr * PAGE
    at = dump.descriptors_at
    with path.open("wb") as file:
        ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
        file.write(ident + pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0))
        file.write(pack("<IIQQQQQQ", 4, 0, first, 0, 0, len(notes), len(notes), 0))
        file.write(pack("<IIQQQQQQ", 1, 7, start, 0, 0, memory, memory, 0))
        file.write(notes)
        file.truncate(start + memory)
        for frame in range(dump.max_mapnr):
            if not bits >> frame & 1:
                continue
            offset, length, flags, _ = unpack("<QIIQ", raw[at : at + 24])
            at += 24
            data = raw[offset : offset + length]
            file.seek(start + frame * PAGE)
            file.write(zlib.decompress(data) if flags & 1 else data)
    return start


def frames_looked_at(elf: Path, start: int) -> set[int]:
    """Return the page frames that makedumpfile reads before it begins to write the dump: page
    tables and the array of struct page.
    """
    with tempfile.TemporaryDirectory(dir=elf.parent) as directory:
        trace, out = Path(directory, "trace"), Path(directory, "out")
        command = ["makedumpfile", "--non-mmap", "-c", "-d", "31", str(elf), str(out)]
        calls = ["strace", "-f", "-o", str(trace), "-e", "trace=read,lseek,openat"]
        subprocess.run([*calls, *command], check=True, stdout=subprocess.DEVNULL)
        frames, at = set[int](), 0
        for line in trace.read_text(errors="replace").splitlines():
            if f'"{out}"' in line:
                return frames
            if found := re.search(r"lseek\(3, (\d+), SEEK_SET", line):
                at = int(found[1])
            elif found := re.search(r" read\(3, .* = (\d+)$", line):
                if at >= start:
                    frames.add((at - start) // PAGE)
                at += int(found[1])
    raise RuntimeError("makedumpfile did not begin to write")


def frames_of_elf(raw: bytes) -> set[int]:
    """Return the page frames that an ELF dump has."""
    (count,) = unpack_from("<H", raw, 56)
    rows = [unpack_from("<IIQQQQQQ", raw, 64 + 56 * n) for n in range(count)]
    loads = [(row[4] // PAGE, (row[4] + row[5]) // PAGE) for row in rows if row[0] == 1]
    return {frame for first, end in loads for frame in range(first, end)}


def main(source: Path, panic: Path, target: Path) -> None:
    """Reduce it."""
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        vmcore, elf = Path(directory, "vmcore"), Path(directory, "elf")
        with source.open("rb") as file:
            subprocess.run(["makedumpfile", "-R", str(vmcore)], stdin=file, check=True)
        raw = vmcore.read_bytes()
        start = build_elf(raw, parse_diskdump(raw[:HEAD]), elf)
        size = elf.stat().st_size
        wanted = frames_looked_at(elf, start) | frames_of_elf(panic.read_bytes())
        wanted |= set(range(0, (size - start) // PAGE, OTHERS))
        with elf.open("rb") as whole, target.open("wb") as out:
            out.write(os.pread(whole.fileno(), start, 0))
            out.truncate(size)
            for frame in sorted(wanted):
                page = os.pread(whole.fileno(), PAGE, start + frame * PAGE)
                if page.strip(b"\0"):
                    os.pwrite(out.fileno(), page, start + frame * PAGE)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
