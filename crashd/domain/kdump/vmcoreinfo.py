"""VMCOREINFO found in memory: QEMU's and virsh's dumps have no such note.

The kernel keeps the text in a page of its own (kernel/crash_core.c), which begins with OSRELEASE=.
Any process can make a page that begins so, therefore all pages are found that could be it, and a
build-id chooses among them.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from crashd.domain.elf.elfnotes import Bits, ByteOrder, Layout
from crashd.errors import FormatError

FOUND_MAX: Final = 16
PAGE: Final = 4096
_CHUNK = 4 << 20
_LOADS_MAX = 4096
_PHDRS_BYTES_MAX = 1 << 20
_PT_LOAD, _PT_NOTE = 1, 4
_ET_CORE = 4
_START = b"OSRELEASE="
_TEXT = re.compile(
    rb"OSRELEASE=[\x21-\x7e]{1,65}\n(?:[A-Za-z_][\x21-\x7e]{0,200}=[\x20-\x7e]{0,100}\n)+"
)
_BUILD_ID = re.compile(rb"^BUILD-ID=([0-9a-f]{8,128})$", re.MULTILINE)
_NAME = b"VMCOREINFO\0"
_OFFSET_MAX = 1 << 62

ReadAt = Callable[[int, int], bytes]
"""From offset and size in the file; short at its end."""


@dataclass(frozen=True, slots=True)
class ElfHead:
    """Where the program headers of an ELF dump are, and the memory that they place."""

    bits: Bits
    byteorder: ByteOrder
    head: bytes
    phdrs: bytes
    count: int
    loads: tuple[tuple[int, int, int], ...]
    """Offset, size and physical address of each."""
    notes: tuple[tuple[int, int], ...]

    @property
    def layout(self) -> Layout:
        """How numbers are laid out."""
        return Layout(int.from_bytes(self.head[18:20], self.byteorder), self.bits, self.byteorder)


def parse_elf_dump(read: ReadAt) -> ElfHead | None:
    """Parse the head of an ELF dump; None where the file is another."""
    head = read(0, 64)
    if len(head) < 64 or head[:4] != b"\x7fELF" or head[4] not in (1, 2) or head[5] not in (1, 2):
        return None
    bits: Bits = 64 if head[4] == 2 else 32
    byteorder: ByteOrder = "little" if head[5] == 1 else "big"
    layout = Layout(0, bits, byteorder)
    values = layout.struct("16sHHILLLIHHHHHH").unpack_from(head)
    kind, phoff, entry, count = values[1], values[5], values[9], values[10]
    phdr = layout.struct("IIQQQQQQ" if bits == 64 else "IIIIIIII")
    if kind != _ET_CORE or entry != phdr.size or not 0 < count <= _LOADS_MAX:
        return None
    if phoff > _OFFSET_MAX:
        return None
    raw = read(phoff, min(entry * count, _PHDRS_BYTES_MAX))
    loads: list[tuple[int, int, int]] = []
    notes: list[tuple[int, int]] = []
    for fields in phdr.iter_unpack(raw[: len(raw) - len(raw) % entry]):
        if bits == 64:
            offset, address, size = fields[2], fields[4], fields[5]
        else:
            offset, address, size = fields[1], fields[3], fields[4]
        if offset > _OFFSET_MAX or size > _OFFSET_MAX:
            continue
        if fields[0] == _PT_LOAD and size:
            loads.append((offset, size, address))
        elif fields[0] == _PT_NOTE:
            notes.append((offset, size))
    return ElfHead(bits, byteorder, head, raw, count, tuple(loads), tuple(notes))


def has_note(read: ReadAt, dump: ElfHead) -> bool:
    """Return whether there is a VMCOREINFO note, as a kernel's own dump has."""
    return any(_NAME in read(offset, min(size, 1 << 20)) for offset, size in dump.notes[:16])


def find_vmcoreinfo(read: ReadAt, dump: ElfHead) -> tuple[bytes, ...]:
    """Find the texts in memory that could be VMCOREINFO, each once, in the order of the file."""
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


def build_id_in(text: bytes) -> str | None:
    """Return the build-id of the vmlinux that a VMCOREINFO has; kernels before 5.9 have none."""
    found = _BUILD_ID.search(text)
    return found[1].decode("ascii") if found else None


def release_in(text: bytes) -> str:
    """Return the release that a VMCOREINFO has."""
    return text[len(_START) :].partition(b"\n")[0].decode("ascii", "replace")


def add_note(dump: ElfHead, size: int, text: bytes) -> tuple[bytes, bytes]:
    """Build what makes a copy of an ELF dump of `size` bytes one with a VMCOREINFO note: its new
    head, and what is to be written behind its end. Segments stay where they are.

    Raises:
        FormatError: it has too many program headers for one more.

    """
    if dump.count >= 0xFFFE or len(dump.phdrs) < dump.count:
        raise FormatError("no program header can be added to the dump")
    layout = dump.layout
    note = layout.struct("III").pack(len(_NAME), len(text), 0) + _NAME.ljust(12, b"\0")
    note += text + bytes(-len(text) % 4)
    at = -(-size // PAGE) * PAGE
    if dump.bits == 64:
        phdr = layout.struct("IIQQQQQQ").pack(_PT_NOTE, 0, at, 0, 0, len(note), len(note), 4)
    else:
        phdr = layout.struct("IIIIIIII").pack(_PT_NOTE, at, 0, 0, len(note), len(note), 0, 4)
    tail = bytes(at - size) + note + bytes(-len(note) % 8)
    phoff = size + len(tail)
    word, place = ("Q", 32) if dump.bits == 64 else ("I", 28)
    order = "<" if dump.byteorder == "little" else ">"
    head = bytearray(dump.head)
    struct.pack_into(order + word, head, place, phoff)
    struct.pack_into(order + "H", head, 56 if dump.bits == 64 else 44, dump.count + 1)
    return bytes(head[: 64 if dump.bits == 64 else 52]), tail + phdr + dump.phdrs
