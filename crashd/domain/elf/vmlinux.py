"""Which kernel a vmlinux is, by its ELF headers and its notes, of either word size and byte order;
where one may lie; and which package brings it.

The notes lie far behind the first bytes, in the read-only data; so do the section names, which show
whether the file has debug information. So the file is read piece by piece.
"""

import re
from collections.abc import Callable, Iterable
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
_SHT_NOTE, _SHT_NOBITS = 7, 8
_NOTE_SECTIONS_MAX = 16
_NT_GNU_BUILD_ID = 3
_OFFSET_MAX = 2**62
_LOADED_MAX = 2**28

ReadAt = Callable[[int, int], bytes]
"""From offset and size in the file; short at its end."""

_RELEASE = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.+~@:-]{0,64}")
_BUILD_ID = re.compile(r"(?:[0-9a-f]{2}){2,64}")
PLACES: Final = (
    "usr/lib/debug/boot/vmlinux-{release}",
    "usr/lib/debug/boot/vmlinux-{release}.debug",
    "usr/lib/debug/lib/modules/{release}/vmlinux",
    "usr/lib/debug/lib/modules/{release}/vmlinux.debug",
    "usr/lib/debug/usr/lib/modules/{release}/vmlinux",
    "usr/lib/debug/usr/lib/modules/{release}/vmlinux.debug",
    "lib/modules/{release}/build/vmlinux",
    "lib/modules/{release}/vmlinux",
    "boot/vmlinux-{release}",
)
"""Where distributions, and those who build their own kernels, put it."""
_IN_DIRECTORY: Final = (
    "vmlinux-{release}",
    "vmlinux-{release}.debug",
    "{release}/vmlinux",
    "{release}/vmlinux.debug",
)
_BY_BUILD_ID: Final = (".build-id/{head}/{tail}.debug", ".build-id/{head}/{tail}")
_DEBUG: Final = "usr/lib/debug"

_UBUNTU = re.compile(r"-\d+-(?:generic|lowlatency|aws|azure|gcp|gke|oracle|ibm|kvm|raspi|nvidia)")
_DEBIAN = re.compile(
    r"\+deb\d+|\+bpo|-\d+-(?:rt-|cloud-)?(?:amd64|arm64|686|686-pae|armmp|s390x|powerpc64le|riscv64)$"
)
_RPM = re.compile(r"\.(?:fc|el|amzn|oe|an)\d")
_SUSE = re.compile(r"-(default|preempt|azure|rt|kvmsmall|longterm|64kb)$")


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
    build_id: str | None = None
    loaded: list[tuple[int, int]] = []
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
    shdr = layout.struct("IILLLLIILL")
    rows = _rows(read, shoff, shentsize, min(shnum, SECTIONS_MAX), shdr.size)
    sections = [shdr.unpack_from(row) for row in rows]
    kept = _section_names(read, sections, names)
    debug = b".debug_info" in kept or b".zdebug_info" in kept
    if build_id is None:
        # `objcopy --only-keep-debug` keeps the notes; its program headers no longer point to them.
        notes = [(row[4], row[5]) for row in sections if row[1] == _SHT_NOTE]
        found = (
            _find_build_id(read(at, min(size, NOTES_MAX)), layout)
            for at, size in notes[:_NOTE_SECTIONS_MAX]
            if at <= _OFFSET_MAX
        )
        build_id = next((text for text in found if text is not None), None)
    return Vmlinux(build_id, debug, tuple(loaded))


def vmlinux_places(
    release: str | None, build_id: str | None, directories: Iterable[str] = ()
) -> tuple[str, ...]:
    """List where the vmlinux of a kernel may lie, as paths below the root directory.

    Release and build-id are a dump's own words: one that could lead elsewhere gives no place.
    """
    wanted = release if release is not None and _RELEASE.fullmatch(release) else None
    known = build_id if build_id is not None and _BUILD_ID.fullmatch(build_id) else None
    places: list[str] = []
    own = [directory.strip("/") for directory in directories]
    if wanted is not None:
        places += [place.format(release=wanted) for place in PLACES]
    for directory in (_DEBUG, *own):
        if known is not None:
            names = (name.format(head=known[:2], tail=known[2:]) for name in _BY_BUILD_ID)
            places += [f"{directory}/{name}" for name in names]
        if wanted is not None and directory != _DEBUG:
            places += [f"{directory}/{name.format(release=wanted)}" for name in _IN_DIRECTORY]
    return tuple(dict.fromkeys(places + [f"{directory}/vmlinux" for directory in own]))


def debug_package(release: str | None, version: str | None) -> str | None:
    """Name the package with a kernel's vmlinux, by what the kernel says of itself; None where that
    shows no distribution.
    """
    if release is None or not _RELEASE.fullmatch(release):
        return None
    version = version or ""
    if "Ubuntu" in version or _UBUNTU.search(release):
        return f"linux-image-{release}-dbgsym"
    if "Debian" in version or _DEBIAN.search(release):
        return f"linux-image-{release}-dbg"
    if _RPM.search(release):
        return f"kernel-debuginfo-{release}"
    if found := _SUSE.search(release):
        return f"kernel-{found[1]}-debuginfo"
    return None


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


def _section_names(read: ReadAt, sections: list[tuple[int, ...]], names: int) -> frozenset[bytes]:
    """Return the names of the sections whose bytes are in the file."""
    if names >= len(sections) or sections[names][4] > _OFFSET_MAX:
        return frozenset()
    strings = read(sections[names][4], min(sections[names][5], NAMES_MAX))
    starts = [row[0] for row in sections if row[1] != _SHT_NOBITS]
    ends = ((start, strings.find(b"\0", start)) for start in starts)
    return frozenset(strings[start:end] for start, end in ends if end > start)
