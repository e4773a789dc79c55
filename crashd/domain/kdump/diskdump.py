"""The header of a kdump-compressed dump (`KDUMP   `), as makedumpfile, QEMU and crash write it.

    block 0   struct disk_dump_header       utsname, time, status, sizes of what follows
    block 1…  struct kdump_sub_header       dump level, split, where VMCOREINFO and the notes are
              VMCOREINFO, notes, erase info
    …         bitmap of the pages there were, bitmap of the pages dumped
    …         a struct page_desc for each page dumped (24 bytes), then the pages

Both structs have the crashed machine's own word size, alignment and byte order, and nothing in them
says which: they are found by what makes sense, as in libkdumpfile.

Source: makedumpfile diskdump_mod.h and IMPLEMENTATION, libkdumpfile src/kdumpfile/diskdump.c.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final, Literal, NamedTuple

from crashd.domain.elf.headers import Bits, ByteOrder, Layout
from crashd.errors import FormatError

SIGNATURE: Final = b"KDUMP   "
VERSION_KNOWN: Final = 6
VERSION_MAX: Final = 15
"""A later version means wrong byte order or damage."""
VMCOREINFO_MAX: Final = 64 * 1024
"""Bytes; the kernel has one page for it, of at most this size."""
NOTES_MAX_BYTES: Final = 4 * 2**20

DUMP_DH_COMPRESSED_ZLIB: Final = 0x1
DUMP_DH_COMPRESSED_LZO: Final = 0x2
DUMP_DH_COMPRESSED_SNAPPY: Final = 0x4
DUMP_DH_COMPRESSED_INCOMPLETE: Final = 0x8
DUMP_DH_EXCLUDED_VMEMMAP: Final = 0x10
DUMP_DH_COMPRESSED_ZSTD: Final = 0x20

_COMPRESSIONS = (
    (DUMP_DH_COMPRESSED_ZLIB, "zlib"),
    (DUMP_DH_COMPRESSED_LZO, "lzo"),
    (DUMP_DH_COMPRESSED_SNAPPY, "snappy"),
    (DUMP_DH_COMPRESSED_ZSTD, "zstd"),
)
_UTSNAME_AT = 12
_UTSNAME_FIELD = 65  # __NEW_UTS_LEN + 1
_BLOCK_MIN, _BLOCK_MAX = 4096, 2**20
_SUB_HEADER_BLOCKS_MAX = 2**16
_PAGE_DESC = {"little": Struct("<QIIQ"), "big": Struct(">QIIQ")}
DESC_SIZE: Final = 24
_DESCRIPTORS_READ = 16_384
_PIECE = 2**20
_FILE_END_MAX = 2**63 - 1  # loff_t
_MACHINE_32 = re.compile(rb"i[3-6]86|arm(v\w+)?|ppc|mips|parisc|s390|sh\w*|riscv32|m68k")

# Offset of `timestamp`, and the code of its two words: struct timeval follows utsname (402 bytes)
# at its own alignment. The first is that of 64-bit machines, and of 32-bit ones with a 64-bit
# time_t.
_HEADERS: tuple[tuple[int, str], ...] = ((408, "qq"), (404, "ii"))
HEADER_SIZE: Final = 464
"""Size in bytes of the larger of the two forms of struct disk_dump_header."""

Read = Callable[[int, int], bytes]
"""Returns the bytes at an offset: as many as asked for, or fewer if the file ends."""
Alignment = Literal["64", "32-packed", "32-padded"]
# phys_base, dump_level, split, start_pfn, end_pfn, offset and size of vmcoreinfo, of note and of
# eraseinfo, start_pfn_64, end_pfn_64, max_mapnr_64. 32-bit x86 aligns off_t to 4 bytes, ARM to 8.
_SUB_HEADERS: dict[Alignment, str] = {
    "64": "QiiQQQQQQQQQQQ",
    "32-packed": "IiiIIQIQIQIQQQ",
    "32-padded": "IiiII4xQI4xQI4xQI4xQQQ",
}


@dataclass(frozen=True, slots=True)
class DiskDump:
    """The contents of the two headers."""

    header_version: int
    bits: Bits
    byteorder: ByteOrder
    utsname: tuple[bytes, ...]
    """sysname, nodename, release, version, machine, domainname."""
    time_s: int
    """When the dump was made, by the capture kernel's clock: seconds since the epoch."""
    status: int
    block_size_bytes: int
    sub_header_blocks: int
    bitmap_blocks: int
    max_mapnr: int
    """Page frames of the machine, including holes."""
    dump_level: int | None = None
    split: tuple[int, int] | None = None
    """First page frame of this part, and the first one after it; None: not split."""
    vmcoreinfo: tuple[int, int] = (0, 0)
    """Offset and size; 0, 0: there is none."""
    notes: tuple[int, int] = (0, 0)
    problems: tuple[str, ...] = ()

    @property
    def layout(self) -> Layout:
        """The layout of its notes."""
        return Layout(0, self.bits, self.byteorder)

    @property
    def incomplete(self) -> bool:
        """Whether makedumpfile noted that it could not write everything (a full disk)."""
        return bool(self.status & DUMP_DH_COMPRESSED_INCOMPLETE)

    @property
    def compression(self) -> str | None:
        """How pages are compressed; None: not at all."""
        return next((name for flag, name in _COMPRESSIONS if self.status & flag), None)

    @property
    def descriptors_at(self) -> int:
        """Offset of the first page descriptor."""
        return (1 + self.sub_header_blocks + self.bitmap_blocks) * self.block_size_bytes


def parse_diskdump(data: bytes) -> DiskDump:
    """Parse the headers at the start of a kdump-compressed dump.

    If the sub-header is cut or absurd, its values are missing and `problems` says so.

    Raises:
        FormatError: it is not such a dump, is cut inside its first header, or absurd.

    """
    if not data.startswith(SIGNATURE):
        raise FormatError("dump does not begin with the signature of kdump")
    if len(data) < HEADER_SIZE:
        raise FormatError(f"dump is cut inside its header, at {len(data)} bytes")
    main = _find_header(data)
    if main is None:
        raise FormatError("dump has an absurd header: neither byte order nor word size makes sense")
    byteorder, wide, version, values = main
    time_s, _, status, block, sub_blocks, bitmap_blocks, mapnr = values
    names = tuple(
        data[at : at + _UTSNAME_FIELD].split(b"\0", 1)[0]
        for at in range(_UTSNAME_AT, _UTSNAME_AT + 6 * _UTSNAME_FIELD, _UTSNAME_FIELD)
    )
    bits: Bits = 64 if wide and not _MACHINE_32.fullmatch(names[4]) else 32
    dump = DiskDump(
        header_version=version,
        bits=bits,
        byteorder=byteorder,
        utsname=names,
        time_s=time_s,
        status=status,
        block_size_bytes=block,
        sub_header_blocks=sub_blocks,
        bitmap_blocks=bitmap_blocks,
        max_mapnr=mapnr,
    )
    problems = []
    if version > VERSION_KNOWN:
        problems.append(f"header version {version} is newer than {VERSION_KNOWN}")
    sub = _parse_sub_header(data, dump)
    if sub is not None:
        dump = _add_sub_header(dump, sub)
    elif version > 0:
        problems.append("the sub-header is cut")
    if dump.max_mapnr * block > _FILE_END_MAX:
        problems.append("the number of page frames is absurd")
        dump = replace(dump, max_mapnr=0)
    return replace(dump, problems=tuple(problems))


def _add_sub_header(dump: DiskDump, sub: tuple[int, ...]) -> DiskDump:
    """Add the fields that the sub-header has in its version."""
    version = dump.header_version
    _, level, split, start, end, info_at, info_size, note_at, note_size, *_ = sub
    if version >= 6:
        start, end = sub[11:13]
    return replace(
        dump,
        max_mapnr=sub[13] if version >= 6 and sub[13] else dump.max_mapnr,
        dump_level=level,
        split=(start, end) if version >= 2 and split else None,
        vmcoreinfo=(info_at, info_size) if version >= 3 else (0, 0),
        notes=(note_at, note_size) if version >= 4 else (0, 0),
    )


def _find_header(data: bytes) -> tuple[ByteOrder, bool, int, tuple[int, ...]] | None:
    """Find the byte order and word size that make sense of the header."""
    orders: tuple[ByteOrder, ...] = ("little", "big")
    for byteorder in orders:
        version = int.from_bytes(data[8:12], byteorder)
        if version > VERSION_MAX:
            continue
        for at, words in _HEADERS:
            # timestamp, status, block_size, sub_hdr_size, bitmap_blocks, max_mapnr
            codes = ("<" if byteorder == "little" else ">") + words + "IiiII"
            values = Struct(codes).unpack_from(data, at)
            if _makes_sense(values, version):
                return byteorder, words == "qq", version, values
    return None


def _makes_sense(values: tuple[int, ...], version: int) -> bool:
    _, usec, _, block, sub_blocks, bitmap_blocks, mapnr = values
    return (
        0 <= usec < 10**6
        and _BLOCK_MIN <= block <= _BLOCK_MAX
        and not block & (block - 1)
        and (1 if version else 0) <= sub_blocks <= _SUB_HEADER_BLOCKS_MAX
        and bitmap_blocks > 0
        and 8 * bitmap_blocks * block >= mapnr
    )


def _parse_sub_header(data: bytes, dump: DiskDump) -> tuple[int, ...] | None:
    """Parse the sub-header; None if it is cut, or the version has none."""
    alignments: tuple[Alignment, ...] = ("64",) if dump.bits == 64 else ("32-packed", "32-padded")
    block, version = dump.block_size_bytes, dump.header_version
    found: tuple[int, ...] | None = None
    for alignment in alignments:
        struct = Struct(("<" if dump.byteorder == "little" else ">") + _SUB_HEADERS[alignment])
        if version < 1 or len(data) < block + struct.size:
            break
        found = struct.unpack_from(data, block)
        offset, size = found[5:7]
        # Up to version 2 the two forms do not differ.
        inside = block < offset and offset + size <= block * (1 + dump.sub_header_blocks)
        if version < 3 or not (offset or size) or inside:
            break
    return found


def size_at_least(read: Read, dump: DiskDump) -> tuple[int, str, bool]:
    """Return the least size of the dump in bytes, what lies before that end, in words, and whether
    the bitmap and the last descriptors, which determine it, could be read.
    """
    at = dump.descriptors_at
    count = count_dumped(read, dump)
    if count is None:
        return at, "bitmaps", False
    size, what = at + DESC_SIZE * count, "page descriptors"
    told, first = True, at + DESC_SIZE * count
    while first > at:
        end, first = first, max(at, first - DESC_SIZE * _DESCRIPTORS_READ)
        table = read(first, end - first)
        told = told and len(table) == end - first
        pages = list(_descriptors(table, dump))
        for offset, length in pages:
            if offset + length > size:
                size, what = offset + length, "pages"
        # All zero pages share one page's data; after it, the data follow the descriptors' order.
        if len(set(pages)) > 1:
            break
    return size, what, told


def count_dumped(read: Read, dump: DiskDump) -> int | None:
    """Count the pages dumped; None if their bitmap is missing."""
    bitmap = find_bitmap(dump)
    if bitmap is None:
        return None
    count = 0
    for piece in range(bitmap.at, bitmap.end, _PIECE):
        size = min(_PIECE, bitmap.end - piece)
        data = read(piece, size)
        if len(data) < size:
            return None
        count += bitmap.count_pages(piece, data)
    return count


class BitmapRange(NamedTuple):
    """The place of the bits that say which pages this file has."""

    at: int
    """Offset of the first byte."""
    end: int
    """Offset after the last byte."""
    first_bit: int
    """The first bit that counts in the first byte."""
    last_bits: int
    """How many bits of the last byte count; 0: all."""

    def count_pages(self, at: int, data: bytes) -> int:
        """Count the pages in a piece of the bitmap that begins at this offset."""
        return int.from_bytes(self.own_bits(at, data), "little").bit_count()

    def own_bits(self, at: int, data: bytes) -> bytes:
        """Return a piece of the bitmap that begins at this offset, without the bits that do not
        count.
        """
        bits = bytearray(data)
        if bits and at == self.at:
            bits[0] &= 0xFF << self.first_bit & 0xFF
        if bits and at + len(bits) == self.end and self.last_bits:
            bits[-1] &= (1 << self.last_bits) - 1
        return bytes(bits)


def find_bitmap(dump: DiskDump) -> BitmapRange | None:
    """Find the bits of the pages dumped, in the second of two bitmaps; None if there are none."""
    block = dump.block_size_bytes
    needed = (dump.max_mapnr + 8 * block - 1) // (8 * block)
    if not needed or dump.bitmap_blocks < 2 * needed:
        return None
    size = dump.bitmap_blocks // 2 * block
    start, end = dump.split or (0, 8 * size)
    if not 0 <= start <= end <= 8 * size:
        return None
    first = dump.descriptors_at - size
    return BitmapRange(first + start // 8, first + (end + 7) // 8, start % 8, end % 8)


def find_pages_end(table: bytes, dump: DiskDump) -> int:
    """Return where these descriptors' farthest page data ends; 0 if they have none."""
    return max((offset + size for offset, size in _descriptors(table, dump)), default=0)


def _descriptors(table: bytes, dump: DiskDump) -> Iterator[tuple[int, int]]:
    """Yield offset and size of each page's data, if they make sense."""
    struct = _PAGE_DESC[dump.byteorder]
    whole = len(table) // struct.size * struct.size
    for offset, size, _, _ in struct.iter_unpack(table[:whole]):
        # A compressor never makes a page larger: makedumpfile then stores it uncompressed.
        if dump.descriptors_at < offset <= _FILE_END_MAX and size <= dump.block_size_bytes:
            yield offset, size
