"""Which kernel a vmlinux is, by its ELF headers and its notes: of either word size and byte order.

Its notes lie far behind its first bytes, in its read-only data; so do its section names, which tell
whether it has debug information. So the file is asked piece by piece.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from crashd.domain.elf.elfnotes import Bits, ByteOrder, Layout, split_notes
from crashd.domain.text import printable
from crashd.errors import FormatError

NOTES_MAX: Final = 2**20
SECTIONS_MAX: Final = 4096
NAMES_MAX: Final = 2**18
PHDRS_MAX: Final = 128
BUILD_ID_MAX: Final = 64
BANNER: Final = re.compile(rb"Linux version ([\x21-\x7e]{1,64}) \(")
"""linux_banner of init/version.c; the group is what uname -r says."""

# include/uapi/linux/elf.h
_HEADER_SIZE = 64
_ET_EXEC, _ET_DYN = 2, 3
_PT_LOAD, _PT_NOTE = 1, 4
_NT_GNU_BUILD_ID = 3
_OFFSET_MAX = 2**62
_LOADED_MAX = 2**28

ReadAt = Callable[[int, int], bytes]
"""From offset and size in the file; short at its end."""


@dataclass(frozen=True, slots=True)
class Vmlinux:
    """What a vmlinux tells."""

    build_id: str | None
    """Hex."""
    has_debug_info: bool
    loaded: tuple[tuple[int, int], ...]
    """Offset and size of what of the file goes to the kernel's memory; the banner is in there."""


def parse_vmlinux(read: ReadAt) -> Vmlinux:
    """Parse a vmlinux.

    Raises:
        FormatError: it is no ELF file that is executed.

    """
    head = read(0, _HEADER_SIZE)
    if len(head) < _HEADER_SIZE or not head.startswith(b"\x7fELF"):
        raise FormatError("is no ELF file: neither vmlinux nor its debug information")
    if head[4:6] not in (b"\1\1", b"\1\2", b"\2\1", b"\2\2"):
        raise FormatError("has an absurd ELF header")
    bits: Bits = 64 if head[4] == 2 else 32
    byteorder: ByteOrder = "little" if head[5] == 1 else "big"
    layout = Layout(int.from_bytes(head[18:20], byteorder), bits, byteorder)
    values = layout.struct("16sHHILLLIHHHHHH").unpack_from(head)
    _, kind, _, _, _, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, names = values
    if kind not in (_ET_EXEC, _ET_DYN) or max(phoff, shoff) > _OFFSET_MAX:
        raise FormatError("is no program, so no vmlinux")
    build_id, loaded = None, []
    phdr = layout.struct("IIQQQQQQ" if bits == 64 else "IIIIIIII")
    for row in _rows(read, phoff, phentsize, min(phnum, PHDRS_MAX), phdr.size):
        fields = phdr.unpack_from(row)
        offset, size = (fields[2], fields[5]) if bits == 64 else (fields[1], fields[4])
        if offset > _OFFSET_MAX:
            continue
        if fields[0] == _PT_LOAD and size:
            loaded.append((offset, min(size, _LOADED_MAX)))
        elif fields[0] == _PT_NOTE and build_id is None:
            build_id = _find_build_id(read(offset, min(size, NOTES_MAX)), layout)
    sections = _section_names(read, layout, (shoff, shentsize, min(shnum, SECTIONS_MAX), names))
    debug = b".debug_info" in sections or b".zdebug_info" in sections
    return Vmlinux(build_id, debug, tuple(loaded))


def find_release(image: bytes) -> str | None:
    """Find what uname -r said, in what a vmlinux loads; None where there is no banner."""
    found = BANNER.search(image)
    return printable(found[1]) if found else None


def _rows(read: ReadAt, offset: int, size: int, count: int, least: int) -> list[bytes]:
    if size < least or not count:
        return []
    table = read(offset, size * count)
    return [table[at : at + size] for at in range(0, len(table) - size + 1, size)]


def _find_build_id(notes: bytes, layout: Layout) -> str | None:
    for name, kind, desc, whole in split_notes(notes, layout):
        if (name, kind) == (b"GNU", _NT_GNU_BUILD_ID) and whole and len(desc) <= BUILD_ID_MAX:
            return desc.hex() or None
    return None


def _section_names(
    read: ReadAt, layout: Layout, table: tuple[int, int, int, int]
) -> frozenset[bytes]:
    offset, size, count, names = table
    shdr = layout.struct("IILLLLIILL")
    rows = [shdr.unpack_from(row) for row in _rows(read, offset, size, count, shdr.size)]
    if names >= len(rows) or rows[names][4] > _OFFSET_MAX:
        return frozenset()
    strings = read(rows[names][4], min(rows[names][5], NAMES_MAX))
    ends = ((row[0], strings.find(b"\0", row[0])) for row in rows)
    return frozenset(strings[start:end] for start, end in ends if end > start)
