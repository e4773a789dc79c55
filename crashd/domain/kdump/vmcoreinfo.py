"""VMCOREINFO found in memory, because the dumps of QEMU and virsh have no such note.

The kernel keeps the text in a page of its own (kernel/crash_core.c), which begins with OSRELEASE=.
Any process can make a page that begins so. Therefore every page that could be it is found, and a
build-id chooses among them.
"""

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from crashd.domain.elf.headers import (
    HEADER_MAX,
    HEADER_SIZE,
    PHDR_SIZE,
    PT_LOAD,
    PT_NOTE,
    Layout,
    build_phdrs,
    parse_header,
    parse_phdrs,
)
from crashd.errors import FormatError

FOUND_MAX: Final = 16
PAGE: Final = 4096
_CHUNK = 4 << 20
_LOADS_MAX = 4096
_PHDRS_BYTES_MAX = 1 << 20
_ET_CORE = 4
_START = b"OSRELEASE="
_TEXT = re.compile(
    rb"OSRELEASE=[\x21-\x7e]{1,65}\n(?:[A-Za-z_][\x21-\x7e]{0,200}=[\x20-\x7e]{0,100}\n)+"
)
_BUILD_ID = re.compile(rb"^BUILD-ID=([0-9a-f]{8,128})$", re.MULTILINE)
_NAME = b"VMCOREINFO\0"
_OFFSET_MAX = 1 << 62

ReadAt = Callable[[int, int], bytes]
"""Takes offset and size in the file; the result is short at its end."""


@dataclass(frozen=True, slots=True)
class ElfHead:
    """The program headers of an ELF dump, and the memory that they place."""

    layout: Layout
    head: bytes
    phdrs: bytes
    count: int
    loads: tuple[tuple[int, int, int], ...]
    """Offset, size and physical address of each segment."""
    notes: tuple[tuple[int, int], ...]


def parse_elf_dump(read: ReadAt) -> ElfHead | None:
    """Parse the head of an ELF dump; None if the file is not one."""
    head = read(0, HEADER_MAX)
    header = parse_header(head)
    if header is None or header.type != _ET_CORE or header.phoff > _OFFSET_MAX:
        return None
    layout, entry = header.layout, PHDR_SIZE[header.layout.bits]
    if header.phentsize != entry or not 0 < header.phnum <= _LOADS_MAX:
        return None
    raw = read(header.phoff, min(entry * header.phnum, _PHDRS_BYTES_MAX))
    loads: list[tuple[int, int, int]] = []
    notes: list[tuple[int, int]] = []
    for kind, _, offset, _, address, size, _, _ in parse_phdrs(raw, layout):
        if offset > _OFFSET_MAX or size > _OFFSET_MAX:
            continue
        if kind == PT_LOAD and size:
            loads.append((offset, size, address))
        elif kind == PT_NOTE:
            notes.append((offset, size))
    return ElfHead(layout, head, raw, header.phnum, tuple(loads), tuple(notes))


def has_note(read: ReadAt, dump: ElfHead) -> bool:
    """Return whether there is a VMCOREINFO note, as in a kernel's own dump."""
    return any(_NAME in read(offset, min(size, 1 << 20)) for offset, size in dump.notes[:16])


def find_vmcoreinfo(read: ReadAt, dump: ElfHead) -> tuple[bytes, ...]:
    """Return the texts in memory that could be VMCOREINFO, each once, in the file's order."""
    found: dict[bytes, None] = {}
    for offset, size, address in dump.loads:
        for text in _search(read, offset, size, address):
            found.setdefault(text)
            if len(found) >= FOUND_MAX:
                return tuple(found)
    return tuple(found)


def _search(read: ReadAt, offset: int, size: int, address: int) -> Iterator[bytes]:
    for at in range(0, size, _CHUNK):
        chunk = read(offset + at, min(_CHUNK, size - at))
        place = chunk.find(_START)
        while place >= 0:
            if (address + at + place) % PAGE == 0:
                page = read(offset + at + place, min(PAGE, size - at - place))
                if text := _TEXT.fullmatch(page.partition(b"\0")[0]):
                    yield text[0]
            place = chunk.find(_START, place + 1)
        if len(chunk) < min(_CHUNK, size - at):
            return  # the file is cut


def find_in_pages(pages: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the texts of pages that could be VMCOREINFO, each once."""
    found: set[bytes] = set()
    for page in pages:
        if not page.startswith(_START) or len(found) >= FOUND_MAX:
            continue
        text = _TEXT.fullmatch(page.partition(b"\0")[0])
        if text and text[0] not in found:
            found.add(text[0])
            yield text[0]


def build_id_in(text: bytes) -> str | None:
    """Return the vmlinux's build-id in a VMCOREINFO; kernels before 5.9 have none."""
    found = _BUILD_ID.search(text)
    return found[1].decode("ascii") if found else None


def release_in(text: bytes) -> str:
    """Return the release in a VMCOREINFO."""
    return text[len(_START) :].partition(b"\n")[0].decode("ascii", "replace")


def add_note(dump: ElfHead, size: int, text: bytes) -> tuple[bytes, bytes]:
    """Build the parts that add a VMCOREINFO note to a copy of an ELF dump of `size` bytes: its new
    head, and the bytes to write after its end. Segments stay where they are.

    Raises:
        FormatError: it has too many program headers to add one.

    """
    if dump.count >= 0xFFFE or len(dump.phdrs) < dump.count:
        raise FormatError("no program header can be added to the dump")
    layout = dump.layout
    note = layout.struct("III").pack(len(_NAME), len(text), 0) + _NAME.ljust(12, b"\0")
    note += text + bytes(-len(text) % 4)
    at = -(-size // PAGE) * PAGE
    phdr = build_phdrs(layout, [(PT_NOTE, 0, at, 0, 0, len(note), len(note), 4)])
    tail = bytes(at - size) + note + bytes(-len(note) % 8)
    head = bytearray(dump.head[: HEADER_SIZE[layout.bits]])
    word, place = ("Q", 32) if layout.bits == 64 else ("I", 28)
    order = "<" if layout.byteorder == "little" else ">"
    struct.pack_into(order + word, head, place, size + len(tail))  # e_phoff
    struct.pack_into(order + "H", head, 56 if layout.bits == 64 else 44, dump.count + 1)  # e_phnum
    return bytes(head), tail + phdr + dump.phdrs
