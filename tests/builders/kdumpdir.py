"""Make kernel dumps byte by byte, and directories of them as each maker leaves them."""

import bz2
import gzip
import lzma
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from stat import S_IFDIR, S_IFREG
from struct import pack
from typing import Literal

from crashd.domain.kdump.directory import DumpFile
from tests.builders.elfcore import CoreFormat

BLOCK = 4096
VMCOREINFO = (
    b"OSRELEASE=6.1.0-test\nBUILD-ID=00112233445566778899aabbccddeeff00112233\nPAGESIZE=4096\n"
    b"SYMBOL(init_uts_ns)=ffffffff8c9f9b60\nKERNELOFFSET=8600000\nCRASHTIME=1700000000\n"
)
UTSNAME = (b"Linux", b"host1", b"6.1.0-test", b"#1 SMP test", b"x86_64", b"(none)")

Alignment = Literal["64", "32-packed", "32-padded"]
# Written out, not taken from the parser: offsets of the sub-header's fields in
# makedumpfile's diskdump_mod.h as each compiler lays them out.
SUB_OFFSETS: Mapping[Alignment, tuple[int, ...]] = {
    "64": (0, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96),
    "32-packed": (0, 4, 8, 12, 16, 20, 28, 32, 40, 44, 52, 56, 64, 72),
    "32-padded": (0, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88),
}
SUB_SINCE = (0, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 6)
"""Header version from which on each field is written."""


@dataclass(frozen=True, slots=True)
class KdumpFormat:
    """What a kdump-compressed dump is built with."""

    version: int = 6
    alignment: Alignment = "64"
    byteorder: Literal["little", "big"] = "little"
    utsname: tuple[bytes, ...] = UTSNAME
    time_s: int = 1_700_000_009
    status: int = 1
    dump_level: int = 31
    split: tuple[int, int] | None = None
    vmcoreinfo: bytes = VMCOREINFO
    info_in_notes: bool = False
    max_mapnr: int = 4096
    pages: Sequence[bytes] = (b"page" * 100, b"last" * 50)

    def build(self) -> bytes:
        """Build the whole dump."""
        bitmaps = self._bitmap(0, self.max_mapnr) + self._bitmap(0, len(self.pages))
        head = self._header(len(bitmaps) // BLOCK) + self._sub_header() + bitmaps
        at = len(head) + 24 * len(self.pages)
        table = b""
        for page in self.pages:
            table += self._pack("QIIQ", at, len(page), self.status & 0x27, 0)
            at += len(page)
        return head + table + b"".join(self.pages)

    def _pack(self, codes: str, *values: int | bytes) -> bytes:
        return pack(("<" if self.byteorder == "little" else ">") + codes, *values)

    def _header(self, bitmap_blocks: int) -> bytes:
        head = b"KDUMP   " + self._pack("i", self.version)
        head += b"".join(name.ljust(65, b"\0") for name in self.utsname)
        head += bytes(6 if self.alignment == "64" else 2)
        head += self._pack("qq" if self.alignment == "64" else "ii", self.time_s, 123_456)
        counts = (self.status, BLOCK, 2, bitmap_blocks, self.max_mapnr, 0, 0, 0, 0, 2)
        return (head + self._pack("IiiIIIIIIi", *counts)).ljust(BLOCK, b"\0")

    def _sub_header(self) -> bytes:
        wide = self.alignment == "64"
        block = bytearray(2 * BLOCK)
        info = (BLOCK + 200, len(self.vmcoreinfo))
        note = b""
        if self.info_in_notes:
            info, form = (0, 0), CoreFormat(bits=64 if wide else 32, byteorder=self.byteorder)
            note = form.note(0, self.vmcoreinfo, b"VMCOREINFO\0")
        start, end = self.split or (0, 0)
        word = "Q" if wide else "I"
        fields = (word, "i", "i", word, word, "Q", word, "Q", word, "Q", word, "Q", "Q", "Q")
        values: tuple[int, ...] = (
            0x1000000,
            self.dump_level,
            self.split is not None,
            start,
            end,
            *info,
        )
        values += (BLOCK + 200 if note else 0, len(note), 0, 0, start, end, self.max_mapnr)
        for at, code, value, since in zip(
            SUB_OFFSETS[self.alignment], fields, values, SUB_SINCE, strict=True
        ):
            if self.version >= max(since, 1):
                packed = self._pack(code, value)
                block[at : at + len(packed)] = packed
        text = note or self.vmcoreinfo
        block[200 : 200 + len(text)] = text
        return bytes(block)

    def _bitmap(self, start: int, end: int) -> bytes:
        size = -(-self.max_mapnr // (8 * BLOCK)) * BLOCK
        return ((1 << end) - (1 << start)).to_bytes(size, "little")


def flatten(dump: bytes, chunk: int = 1000, *, end: bool = True) -> bytes:
    """Build the flattened format, the records out of order, the header first."""
    out = (b"makedumpfile".ljust(16, b"\0") + pack(">qq", 1, 1)).ljust(4096, b"\0")
    offsets = list(range(0, len(dump), chunk))
    for at in [*offsets[:1], *reversed(offsets[1:])]:
        data = dump[at : at + chunk]
        out += pack(">qq", at, len(data)) + data
    return out + (b"\xff" * 16 if end else b"")


def build_elf_vmcore(
    form: CoreFormat | None = None,
    *,
    vmcoreinfo: bytes | None = VMCOREINFO,
    memory: bytes = b"memory" * 100,
    process: bool = False,
    flags: int = 0,
) -> bytes:
    """Build an ELF dump: notes, and one segment at 1 MiB."""
    form = form or CoreFormat()
    notes = form.note(1, form.prstatus(1))
    if process:
        notes += form.note(3, form.prpsinfo(b"comm", b"args"))
    if vmcoreinfo is not None:
        notes += form.note(0, vmcoreinfo, b"VMCOREINFO\0")
    ehdr = bytearray(form.ehdr(2))
    flags_at = 48 if form.bits == 64 else 36
    ehdr[flags_at : flags_at + 4] = form.pack("I", flags)
    at = len(ehdr) + 2 * form.phdr_size
    size = len(memory)
    if form.bits == 64:
        load = form.pack("IIQQQQQQ", 1, 7, at + len(notes), 0, 2**20, size, size, 0)
    else:
        load = form.pack("IIIIIIII", 1, at + len(notes), 0, 2**20, size, size, 7, 0)
    return bytes(ehdr) + form.phdr(4, at, len(notes)) + load + notes + memory


def lz4_frame(data: bytes, *, end: bool = True) -> bytes:
    """Build an lz4 frame as the command makes it, with stored blocks: there is no lz4 at hand.

    Its content checksum is zeros: nothing here reads it.
    """
    out = b"\x04\x22\x4d\x18\x64\x70\x00"
    for at in range(0, len(data), 65536):
        block = data[at : at + 65536]
        out += pack("<I", 0x80000000 | len(block)) + block
    return out + (bytes(8) if end else b"")


WRAPPERS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "xz": lambda data: lzma.compress(data),
    "bzip2": lambda data: bz2.compress(data),
    "lz4": lambda data: lz4_frame(data),
}


def directory(name: bytes, mode: int = 0o755, **more: int) -> DumpFile:
    """Make the entry of a directory."""
    return DumpFile(name, S_IFDIR | mode, **more)


def file(name: bytes, size_bytes: int = 1000, mode: int = 0o600, **more: int) -> DumpFile:
    """Make the entry of a regular file."""
    return DumpFile(name, S_IFREG | mode, size_bytes=size_bytes, **more)
