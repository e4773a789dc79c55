"""The headers and raw notes of any ELF file, of either class and byte order: cores, kernel dumps,
executables, vmlinux. Pure.

The modules that read one kind of file interpret them. Every byte may be hostile: nothing here
raises, nothing is read past the bytes given, and work is linear in them.

Source: elf(5), include/uapi/linux/elf.h.
"""

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final, Literal, NamedTuple

MAGIC: Final = b"\x7fELF"
ET_EXEC: Final = 2
ET_DYN: Final = 3
ET_CORE: Final = 4
PT_LOAD: Final = 1
PT_DYNAMIC: Final = 2
PT_NOTE: Final = 4
PT_PHDR: Final = 6
PN_XNUM: Final = 0xFFFF
NT_GNU_BUILD_ID: Final = 3
BUILD_ID_MAX: Final = 64
"""Bytes."""

Bits = Literal[32, 64]
ByteOrder = Literal["little", "big"]

HEADER_SIZE: Final = {64: 64, 32: 52}
PHDR_SIZE: Final = {64: 56, 32: 32}
SHDR_SIZE: Final = {64: 64, 32: 40}
HEADER_MAX: Final = 64
"""Bytes that are enough to parse the header of either class."""
FILE_END_MAX: Final = 2**63 - 1
"""loff_t."""
_NAME_BYTES = 32

_HEADER = "16sHHILLLIHHHHHH"
_SHDR = "IILLLLIILL"
_PHDR: Final = {64: "IIQQQQQQ", 32: "IIIIIIII"}


class Layout(NamedTuple):
    """The properties of all structures in the file, from the ELF header."""

    machine: int
    """EM_* of include/uapi/linux/elf-em.h."""
    bits: Bits
    byteorder: ByteOrder

    def struct(self, codes: str) -> Struct:
        """Build a Struct of this byte order, unpadded; `L` becomes the word of this class."""
        codes = codes.replace("L", "Q" if self.bits == 64 else "I")
        return Struct(("<" if self.byteorder == "little" else ">") + codes)


class Header(NamedTuple):
    """An ELF header as read; only class and byte order have been checked."""

    layout: Layout
    type: int
    flags: int
    ehsize: int
    phoff: int
    phentsize: int
    phnum: int
    shoff: int
    shentsize: int
    shnum: int
    shstrndx: int

    @property
    def sections_end(self) -> int:
        """Where the table of section headers ends in the file."""
        return self.shoff + self.shentsize * self.shnum


Phdr = tuple[int, int, int, int, int, int, int, int]
"""p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align: the order of the 64-bit
class. A plain tuple, not a class, because there may be 65,000 and the crashed process waits.
"""


class Shdr(NamedTuple):
    """A section header's fields."""

    name: int
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    addralign: int
    entsize: int


# -- the ELF header --------------------------------------------------------------------------------


def parse_header(image: bytes) -> Header | None:
    """Parse the ELF header in a file's first bytes; None if it is not ELF, or is cut."""
    if image[:4] != MAGIC or image[4:6] not in (b"\1\1", b"\1\2", b"\2\1", b"\2\2"):
        return None
    bits: Bits = 64 if image[4] == 2 else 32
    byteorder: ByteOrder = "little" if image[5] == 1 else "big"
    if len(image) < HEADER_SIZE[bits]:
        return None
    # The machine has the same offset in both classes.
    layout = Layout(int.from_bytes(image[18:20], byteorder), bits, byteorder)
    values = layout.struct(_HEADER).unpack_from(image)
    _, kind, _, _, _, phoff, shoff, flags, ehsize, phentsize, phnum, *sections = values
    return Header(layout, kind, flags, ehsize, phoff, phentsize, phnum, shoff, *sections)


def build_header(original: bytes, layout: Layout, phnum: int) -> bytes:
    """Build a copy of the ELF header `original` that has `phnum` program headers right after it,
    and no sections.
    """
    struct = layout.struct(_HEADER)
    fields = list(struct.unpack_from(original))
    fields[5], fields[6] = struct.size, 0  # e_phoff, e_shoff
    fields[10] = phnum
    fields[12] = fields[13] = 0  # e_shnum, e_shstrndx
    return struct.pack(*fields)


# -- program and section headers -------------------------------------------------------------------


def parse_phdrs(table: bytes, layout: Layout) -> Iterator[Phdr]:
    """Parse the program headers that `table` holds completely."""
    size = PHDR_SIZE[layout.bits]
    rows = layout.struct(_PHDR[layout.bits]).iter_unpack(table[: len(table) - len(table) % size])
    if layout.bits == 64:
        yield from rows
    else:
        for kind, offset, vaddr, paddr, filesz, memsz, flags, align in rows:
            yield kind, flags, offset, vaddr, paddr, filesz, memsz, align


def find_phdrs(image: bytes, header: Header, count: int) -> Iterator[Phdr]:
    """Parse up to `count` program headers of a file that `image` holds completely."""
    size = PHDR_SIZE[header.layout.bits]
    there = max(0, min(count, (len(image) - header.phoff) // size))
    return parse_phdrs(image[header.phoff : header.phoff + there * size], header.layout)


def build_phdrs(layout: Layout, phdrs: Iterable[Phdr]) -> bytes:
    """Build a table of program headers."""
    pack = layout.struct(_PHDR[layout.bits]).pack
    if layout.bits == 64:
        return b"".join([pack(*phdr) for phdr in phdrs])
    return b"".join(
        [
            pack(kind, offset, vaddr, paddr, filesz, memsz, flags, align)
            for kind, flags, offset, vaddr, paddr, filesz, memsz, align in phdrs
        ]
    )


def parse_shdrs(table: bytes, layout: Layout) -> Iterator[Shdr]:
    """Parse the section headers that `table` holds completely."""
    struct = layout.struct(_SHDR)
    return map(Shdr._make, struct.iter_unpack(table[: len(table) - len(table) % struct.size]))


def build_shdr(layout: Layout, shdr: Shdr) -> bytes:
    """Build a section header."""
    return layout.struct(_SHDR).pack(*shdr)


# -- notes -----------------------------------------------------------------------------------------


def split_notes(
    blob: bytes, layout: Layout, align: int = 4
) -> Iterator[tuple[bytes, int, bytes, bool]]:
    """Split a PT_NOTE segment into name, type, descriptor, and whether this one is complete."""
    head = layout.struct("III")
    at = 0
    while at + head.size <= len(blob):
        namesz, descsz, kind = head.unpack_from(blob, at)
        name = blob[at + head.size : at + head.size + min(namesz, _NAME_BYTES)].rstrip(b"\0")
        start = _align(at + head.size + namesz, align)
        desc = blob[start : start + descsz]
        yield name, kind, desc, len(desc) == descsz
        at = _align(start + descsz, align)


def _align(value: int, align: int) -> int:
    return (value + align - 1) & -align


def find_build_id(notes: bytes, layout: Layout, align: int = 4) -> str | None:
    """Find the GNU build-id among notes, as hex."""
    for name, kind, desc, whole in split_notes(notes, layout, align):
        if name == b"GNU" and kind == NT_GNU_BUILD_ID and whole and len(desc) <= BUILD_ID_MAX:
            return desc.hex() or None
    return None
