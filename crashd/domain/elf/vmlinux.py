"""Which kernel a vmlinux is, by its ELF headers and its notes: of either word size and byte order.

Its notes lie far behind its first bytes, in its read-only data; so do its section names, which tell
whether it has debug information. So the file is asked piece by piece.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from crashd.domain.elf.headers import (
    ET_DYN,
    ET_EXEC,
    HEADER_MAX,
    MAGIC,
    PHDR_SIZE,
    PT_LOAD,
    PT_NOTE,
    SHDR_SIZE,
    Header,
    find_build_id,
    parse_header,
    parse_phdrs,
    parse_shdrs,
)
from crashd.domain.text import printable
from crashd.errors import FormatError

NOTES_MAX: Final = 2**20
SECTIONS_MAX: Final = 4096
NAMES_MAX: Final = 2**18
PHDRS_MAX: Final = 128
BANNER: Final = re.compile(rb"Linux version ([\x21-\x7e]{1,64}) \(")
"""linux_banner of init/version.c; the group is what uname -r says."""

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
        FormatError: it is not an executable ELF file.

    """
    head = read(0, HEADER_MAX)
    if len(head) < HEADER_MAX or not head.startswith(MAGIC):
        raise FormatError("is no ELF file: neither vmlinux nor its debug information")
    header = parse_header(head)
    if header is None:
        raise FormatError("has an absurd ELF header")
    layout = header.layout
    if header.type not in (ET_EXEC, ET_DYN) or max(header.phoff, header.shoff) > _OFFSET_MAX:
        raise FormatError("is no program, so no vmlinux")
    build_id, loaded = None, []
    phdrs = _rows(
        read, header.phoff, header.phentsize, min(header.phnum, PHDRS_MAX), PHDR_SIZE[layout.bits]
    )
    for kind, _, offset, _, _, size, _, _ in parse_phdrs(phdrs, layout):
        if offset > _OFFSET_MAX:
            continue
        if kind == PT_LOAD and size:
            loaded.append((offset, min(size, _LOADED_MAX)))
        elif kind == PT_NOTE and build_id is None:
            build_id = find_build_id(read(offset, min(size, NOTES_MAX)), layout)
    sections = _section_names(read, header)
    debug = b".debug_info" in sections or b".zdebug_info" in sections
    return Vmlinux(build_id, debug, tuple(loaded))


def find_release(image: bytes) -> str | None:
    """Find what uname -r said, in what a vmlinux loads; None without a banner."""
    found = BANNER.search(image)
    return printable(found[1]) if found else None


def _rows(read: ReadAt, offset: int, size: int, count: int, least: int) -> bytes:
    """Read a table of rows of `size` bytes; return the first `least` bytes of each."""
    if size < least or not count:
        return b""
    table = read(offset, size * count)
    return b"".join(table[at : at + least] for at in range(0, len(table) - size + 1, size))


def _section_names(read: ReadAt, header: Header) -> frozenset[bytes]:
    layout, count = header.layout, min(header.shnum, SECTIONS_MAX)
    table = _rows(read, header.shoff, header.shentsize, count, SHDR_SIZE[layout.bits])
    sections = list(parse_shdrs(table, layout))
    if header.shstrndx >= len(sections) or sections[header.shstrndx].offset > _OFFSET_MAX:
        return frozenset()
    names = sections[header.shstrndx]
    strings = read(names.offset, min(names.size, NAMES_MAX))
    ends = ((section.name, strings.find(b"\0", section.name)) for section in sections)
    return frozenset(strings[start:end] for start, end in ends if end > start)
