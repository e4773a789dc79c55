"""Reduce dumps of an x86-64 kernel, and its vmlinux, to what their logs and symbols take.

python -m tests.builders.reducekernel VMLINUX REDUCED_VMLINUX {DUMP REDUCED_DUMP}...

A dump becomes an ELF dump of the pages that were read. The vmlinux keeps its layout, so that no
reference in it has to be changed: relocations are not needed, other units than those of UNITS
become empty, and pages that nobody read are holes. `zstd -19` makes 3 MB of it.
"""

import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import drgn

from crashd.analyzers import kernel_core, kernel_log
from crashd.domain.elf.headers import split_notes
from crashd.domain.kdump.vmcoreinfo import parse_elf_dump

PAGE = 4096
UNITS = frozenset(
    {"kernel/panic.c", "kernel/kexec_core.c", "drivers/tty/sysrq.c", "fs/proc/inode.c"}
    | {"fs/read_write.c", "arch/x86/entry/common.c", "kernel/sched/core.c", "kernel/pid.c"}
    | {"kernel/module/sysfs.c", "kernel/module/kallsyms.c", "kernel/params.c"}
    | {"mm/init-mm.c", "kernel/cpu.c", "arch/x86/kernel/setup_percpu.c", "kernel/module/main.c"}
    | {
        "arch/x86/entry/entry_64.S",
        "arch/x86/kernel/paravirt.c",
        "init/init_task.c",
        "kernel/smp.c",
        "arch/x86/kernel/process.c",
    }
)
"""Of the functions on the stack, and of the types and variables that drgn looks for."""
_SECTION = struct.Struct("<IIQQQQIIQQ")
_UNIT = struct.Struct("<IHBBI")
_SYMBOL = struct.Struct("<IBBHQQ")
_EMPTY_ABBREV = b"\1\x11\0\0\0\0\0"  # code 1: DW_TAG_compile_unit, no children, no attributes
_NOT_NEEDED = (".rela*", ".BTF", ".BTF_ids")
_LOADS = ((0, 0xA0000), (0x100000, None))  # as QEMU has them


class Section(NamedTuple):
    """Where a section's bytes are."""

    offset: int
    size: int


def sections_of(raw: bytes | bytearray) -> dict[str, Section]:
    """Map the sections of an ELF file by name."""
    (start,) = struct.unpack_from("<Q", raw, 40)
    count, names = struct.unpack_from("<HH", raw, 60)
    rows = [_SECTION.unpack_from(raw, start + _SECTION.size * n) for n in range(count)]
    found = {}
    for row in rows:
        at = rows[names][4] + row[0]
        name = raw[at : raw.index(b"\0", at)].decode()
        found[name] = Section(row[4], 0 if row[1] == 8 else row[5])
    return found


def unit_names(path: Path) -> dict[int, str]:
    """Name the compilation units by their offsets."""
    command = ["readelf", "--debug-dump=info", "--dwarf-depth=1", "-W", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")
    names, unit = {}, 0
    for line in text.stdout.splitlines():
        if found := re.match(r" *Compilation Unit @ offset (0x[0-9a-f]+|0):", line):
            unit = int(found[1], 16)
        elif "DW_AT_name " in line:
            names[unit] = re.sub(r"^/.*/linux-[\d.]+/", "", line.rpartition(": ")[2].strip())
    return names


def empty_units(raw: bytearray, names: dict[int, str]) -> None:
    """Make empty units of all that are not wanted."""
    found = sections_of(raw)
    info, abbrev = found[".debug_info"], found[".debug_abbrev"]
    units = []
    at = 0
    while at < info.size:
        length, _, _, _, tables = _UNIT.unpack_from(raw, info.offset + at)
        units.append((at, at + 4 + length, tables, names.get(at) in UNITS))
        at += 4 + length
    tables_of = sorted({tables for _, _, tables, _ in units})
    ends = dict(zip(tables_of, [*tables_of[1:], abbrev.size], strict=True))
    wanted = {tables for _, _, tables, kept in units if kept}
    for at, end, tables, kept in units:
        if kept:
            continue
        body = info.offset + at + _UNIT.size
        raw[body : info.offset + end] = b"\1" + bytes(info.offset + end - body - 1)
        if tables not in wanted:
            start, stop = abbrev.offset + tables, abbrev.offset + ends[tables]
            raw[start:stop] = _EMPTY_ABBREV.ljust(stop - start, b"\0")[: stop - start]


def empty_symbols(raw: bytearray, names: frozenset[bytes]) -> None:
    """Leave only the symbols of these names."""
    found = sections_of(raw)
    table, strings = found[".symtab"], found[".strtab"]
    kept = {0: b""}
    for at in range(table.offset, table.offset + table.size, _SYMBOL.size):
        name_at = _SYMBOL.unpack_from(raw, at)[0]
        start = strings.offset + name_at
        name = bytes(raw[start : raw.index(b"\0", start)])
        if name in names:
            kept[name_at] = name
        else:
            raw[at : at + _SYMBOL.size] = bytes(_SYMBOL.size)
    raw[strings.offset : strings.offset + strings.size] = bytes(strings.size)
    for name_at, name in kept.items():
        raw[strings.offset + name_at : strings.offset + name_at + len(name)] = name


def touched_pages(path: Path) -> Iterator[int]:
    """List the pages of a file that this process has mapped and read."""
    with open("/proc/self/pagemap", "rb") as pagemap:
        for line in Path("/proc/self/maps").read_text().splitlines():
            fields = line.split()
            if fields[-1] != str(path):
                continue
            start, end = (int(text, 16) for text in fields[0].split("-"))
            pagemap.seek(start // PAGE * 8)
            entries = pagemap.read((end - start) // PAGE * 8)
            for number, (entry,) in enumerate(struct.iter_unpack("<Q", entries)):
                if entry >> 63:
                    yield int(fields[2], 16) // PAGE + number


def elf_dump(info: bytes, pages: dict[int, bytes], registers: Iterable[bytes] = ()) -> bytes:
    """Build an ELF dump of these page frames, with VMCOREINFO, and with the CPUs' registers."""
    note = b""
    for name, kind, desc in [(b"CORE", 1, raw) for raw in registers] + [(b"VMCOREINFO", 0, info)]:
        note += struct.pack("<III", len(name) + 1, len(desc), kind)
        note += (name + b"\0").ljust(-(-(len(name) + 1) // 4) * 4, b"\0")
        note += desc + bytes(-len(desc) % 4)
    runs: list[tuple[int, int]] = []
    for frame in sorted(pages):
        if runs and runs[-1][0] + runs[-1][1] == frame:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((frame, 1))
    head = 64 + 56 * (len(runs) + 1)
    at = -(-(head + len(note)) // PAGE) * PAGE
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    out = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 4, 62, 1, 0, 64, 0, 0, 64, 56, len(runs) + 1, 0, 0, 0
    )
    out += struct.pack("<IIQQQQQQ", 4, 0, head, 0, 0, len(note), len(note), 4)
    data = b""
    for frame, count in runs:
        size = count * PAGE
        out += struct.pack("<IIQQQQQQ", 1, 7, at + len(data), 0, frame * PAGE, size, size, PAGE)
        data += b"".join(pages[number] for number in range(frame, frame + count))
    return (out + note).ljust(at, b"\0") + data


def registers_of(path: Path) -> Iterator[bytes]:
    """Return the registers in the notes of an ELF dump, by which a hypervisor tells them."""
    with path.open("rb") as file:
        dump = parse_elf_dump(lambda at, size: os.pread(file.fileno(), size, at))
        if dump is None:
            return
        for at, size in dump.notes:
            notes = split_notes(os.pread(file.fileno(), size, at), dump.layout)
            yield from (desc for name, kind, desc, _ in notes if (name, kind) == (b"CORE", 1))


class Recorder:
    """Gives a program the memory of a dump, and remembers which pages it read."""

    def __init__(self, dump: Path) -> None:
        self.source = drgn.Program()
        self.source.set_core_dump(str(dump))
        self.info: bytes = self.source["VMCOREINFO"].string_()
        self.pages: dict[int, bytes] = {}
        self.registers = tuple(registers_of(dump))

    def open(self) -> drgn.Program:
        """Open an empty dump of all of this memory."""
        ranges = [(at, (end or (1 << 40)) - at) for at, end in _LOADS]
        with tempfile.TemporaryFile() as file:
            file.write(elf_dump(self.info, {0x100: bytes(PAGE)}))
            file.flush()
            program = drgn.Program()
            program.set_enabled_debug_info_finders([])
            program.set_core_dump(file.fileno())
        for start, size in ranges:
            program.add_memory_segment(start, size, self._read, True)
        return program

    def _read(self, address: int, size: int, offset: int, physical: bool) -> bytes:
        del offset, physical
        out = b""
        for frame in range(address // PAGE, (address + size - 1) // PAGE + 1):
            if frame not in self.pages:
                self.pages[frame] = self.source.read(frame * PAGE, PAGE, True)
            out += self.pages[frame]
        start = address % PAGE
        return out[start : start + size]


def _core(recorder: Recorder, vmlinux: int) -> kernel_core._KernelCore:
    return kernel_core._KernelCore(
        kernel_log.OpenedDump(recorder.open(), recorder.registers), vmlinux, {}
    )


def find_info(source: drgn.Program, frames: int = 1 << 18) -> int:
    """Find the page that VMCOREINFO is in, for dumps without the note."""
    for frame in range(frames):
        try:
            if source.read(frame * PAGE, PAGE, True).startswith(b"OSRELEASE="):
                return frame
        except drgn.FaultError:
            continue
    raise LookupError("VMCOREINFO")


def main(vmlinux: Path, reduced: Path, *dumps: Path) -> None:
    """Reduce the vmlinux, and each dump to the file named after it."""
    pairs = zip(dumps[::2], dumps[1::2], strict=True)
    recorders = {target: Recorder(dump) for dump, target in pairs}
    told = []
    for target, recorder in recorders.items():
        kernel_log._read(recorder.open())
        with vmlinux.open("rb") as file:
            told.append(_core(recorder, file.fileno()).describe())
        frame = find_info(recorder.source)
        recorder.pages[frame] = recorder.source.read(frame * PAGE, PAGE, True)
        target.write_bytes(elf_dump(recorder.info, recorder.pages, recorder.registers))
    words = re.findall(rb"[\w.]+", repr(told).encode())
    words += [word + b".cold" for word in words]
    with tempfile.TemporaryDirectory(dir=reduced.parent) as directory:
        plain, small = Path(directory, "plain"), Path(directory, "small")
        drop = [word for name in _NOT_NEEDED for word in ("--remove-section", name)]
        subprocess.run(["objcopy", *drop, str(vmlinux), str(plain)], check=True)
        raw = bytearray(plain.read_bytes())
        empty_units(raw, unit_names(plain))
        empty_symbols(raw, frozenset([b"_stext", b"_etext", b"_end", *words]))
        small.write_bytes(raw)
        with small.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            cores = [_core(recorder, file.fileno()) for recorder in recorders.values()]
            again = [core.describe() for core in cores]
            touched = sorted(set(touched_pages(small)))
        for before, after in zip(told, again, strict=True):
            print(len(before["frames"]), len(after["frames"]), after["problems"])
        with reduced.open("wb") as out:
            out.truncate(len(raw))
            for number in touched:
                page = bytes(raw[number * PAGE : (number + 1) * PAGE])
                if page.strip(b"\0"):
                    out.seek(number * PAGE)
                    out.write(page)
    print(f"{reduced.stat().st_blocks * 512} bytes of vmlinux")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
