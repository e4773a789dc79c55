"""Which kernel a vmlinux belongs to, by its ELF headers and notes, of either word size and byte
order; where one may lie; and which package contains it.

The notes lie far into the file, in the read-only data. So do the section names, which show whether
the file has debug information. So the file is read piece by piece.
"""

import re
from collections.abc import Callable, Iterable
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
    Shdr,
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
"""linux_banner of init/version.c; the group is the output of uname -r."""

_SHT_NOTE, _SHT_NOBITS = 7, 8
_NOTE_SECTIONS_MAX = 16
_OFFSET_MAX = 2**62
_LOADED_MAX = 2**28

ReadAt = Callable[[int, int], bytes]
"""Takes offset and size in the file; returns fewer bytes at its end."""


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
"""Where distributions, and people who build their own kernels, put it."""
_IN_DIRECTORY: Final = (
    "vmlinux-{release}",
    "vmlinux-{release}.debug",
    "{release}/vmlinux",
    "{release}/vmlinux.debug",
)
_MODULE_PLACES: Final = (
    "usr/lib/debug/lib/modules/{release}",
    "usr/lib/debug/usr/lib/modules/{release}",
)
_MODULE_FILE = re.compile(r"([A-Za-z0-9_-]{1,64})\.ko(?:\.debug)?")
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
    """What a vmlinux says about itself."""

    build_id: str | None
    """Hex."""
    has_debug_info: bool
    loaded: tuple[tuple[int, int], ...]
    """Offset and size of the parts that are loaded into memory; the banner is in one of them."""


def parse_vmlinux(read: ReadAt) -> Vmlinux:
    """Parse a vmlinux.

    Raises:
        FormatError: it is not an executable ELF file.

    """
    head = read(0, HEADER_MAX)
    if len(head) < HEADER_MAX or not head.startswith(MAGIC):
        raise FormatError("is not an ELF file: neither vmlinux nor its debug information")
    header = parse_header(head)
    if header is None:
        raise FormatError("has an absurd ELF header")
    layout = header.layout
    if header.type not in (ET_EXEC, ET_DYN) or max(header.phoff, header.shoff) > _OFFSET_MAX:
        raise FormatError("is not a program, so not a vmlinux")
    build_id: str | None = None
    loaded: list[tuple[int, int]] = []
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
    sections = _sections(read, header)
    names = _section_names(read, header, sections)
    debug = b".debug_info" in names or b".zdebug_info" in names
    if build_id is None:
        # `objcopy --only-keep-debug` keeps the notes; its program headers no longer point to them.
        notes = [s for s in sections if s.type == _SHT_NOTE and s.offset <= _OFFSET_MAX]
        found = (
            find_build_id(read(section.offset, min(section.size, NOTES_MAX)), layout)
            for section in notes[:_NOTE_SECTIONS_MAX]
        )
        build_id = next((text for text in found if text is not None), None)
    return Vmlinux(build_id, debug, tuple(loaded))


def vmlinux_places(
    release: str | None, build_id: str | None, directories: Iterable[str] = ()
) -> tuple[str, ...]:
    """List where the vmlinux of a kernel may lie, as paths below the root directory.

    Release and build-id come from the dump itself, so a value that could lead elsewhere is ignored.
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


def module_places(release: str | None, directories: Iterable[str] = ()) -> tuple[str, ...]:
    """List the directories in which the modules of a kernel may lie, with debug information in the
    first ones, as paths below the root directory.
    """
    if release is None or not _RELEASE.fullmatch(release):
        return ()
    own = [directory.strip("/") for directory in directories]
    named = [place.format(release=release) for place in _MODULE_PLACES]
    named += [f"{directory}/{release}" for directory in own]
    named += [f"{directory}/lib/modules/{release}" for directory in own]
    return (*named, f"lib/modules/{release}")


def module_name(file: str) -> str | None:
    """Return the name of the module that a file contains, as the kernel has it; None if its name
    is not that of a module, or it is compressed.
    """
    found = _MODULE_FILE.fullmatch(file)
    return found[1].replace("-", "_") if found else None


def debug_package(release: str | None, version: str | None) -> str | None:
    """Return the name of the package with a kernel's vmlinux, by the kernel's release and version;
    None if they do not show a known distribution.
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
    """Find the output of uname -r in the loaded part of a vmlinux; None without a banner."""
    found = BANNER.search(image)
    return printable(found[1]) if found else None


def _rows(read: ReadAt, offset: int, size: int, count: int, least: int) -> bytes:
    """Read a table of rows of `size` bytes; return the first `least` bytes of each."""
    if size < least or not count:
        return b""
    table = read(offset, size * count)
    return b"".join(table[at : at + least] for at in range(0, len(table) - size + 1, size))


def _sections(read: ReadAt, header: Header) -> list[Shdr]:
    layout, count = header.layout, min(header.shnum, SECTIONS_MAX)
    table = _rows(read, header.shoff, header.shentsize, count, SHDR_SIZE[layout.bits])
    return list(parse_shdrs(table, layout))


def _section_names(read: ReadAt, header: Header, sections: list[Shdr]) -> frozenset[bytes]:
    """Return the names of the sections whose bytes are in the file."""
    if header.shstrndx >= len(sections) or sections[header.shstrndx].offset > _OFFSET_MAX:
        return frozenset()
    names = sections[header.shstrndx]
    strings = read(names.offset, min(names.size, NAMES_MAX))
    starts = [section.name for section in sections if section.type != _SHT_NOBITS]
    ends = ((start, strings.find(b"\0", start)) for start in starts)
    return frozenset(strings[start:end] for start, end in ends if end > start)
