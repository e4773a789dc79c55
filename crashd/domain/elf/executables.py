"""The files with code that a process had mapped, from /proc/PID/maps, and the name under which a
crash's entry keeps such a file.
"""

import re
from typing import Final, NamedTuple

from crashd.domain.elf.elfcore import parse_build_id

EXECUTABLES_MAX: Final = 256
"""Files of one process; those without a name come first."""
PAGE_BYTES: Final = 4096
"""The page that a core has of each mapped file: it identifies a file without a build-id."""
KEPT_PREFIX: Final = "file-"
_KEPT = re.compile(r"file-(?:page-[0-9a-f]{40}|[0-9a-f]{4,128})")
_LINE = re.compile(
    rb"([0-9a-f]{1,16})-([0-9a-f]{1,16}) [-r][-w]x[-sp] [0-9a-f]{1,16} "
    rb"([0-9a-f]+:[0-9a-f]+) ([1-9]\d{0,19}) +(/.{0,4095})",
    re.DOTALL,
)
_LINES_MAX: Final = 1 << 17
DELETED: Final = b" (deleted)"
"""The kernel's mark of a file without a name."""


class Executable(NamedTuple):
    """A file whose code was mapped."""

    place: str
    """One of its mappings: the name in /proc/PID/map_files."""
    name: bytes
    """As in /proc/PID/maps, without the kernel's " (deleted)"."""
    is_nameless: bool
    """Whether the file had no name any more, or never had one (memfd)."""


def find_executables(maps: bytes) -> list[Executable]:
    """Return the files that have an executable mapping, each once; EXECUTABLES_MAX at most."""
    found: dict[tuple[bytes, bytes], Executable] = {}
    for line in maps.split(b"\n", _LINES_MAX)[:_LINES_MAX]:
        row = _LINE.fullmatch(line)
        if row is not None:
            name, place = row[5], f"{int(row[1], 16):x}-{int(row[2], 16):x}"
            deleted = name.endswith(DELETED)
            file = Executable(place, name.removesuffix(DELETED), deleted)
            found.setdefault((row[3], row[4]), file)
    return sorted(found.values(), key=lambda file: not file.is_nameless)[:EXECUTABLES_MAX]


def find_place(maps: bytes, address: int) -> str:
    """Return device, inode and offset of the code at an address, which are the same for all
    processes that run it; else the offset within the page.
    """
    for line in maps.split(b"\n", _LINES_MAX)[:_LINES_MAX]:
        row = _LINE.fullmatch(line)
        if row is not None and int(row[1], 16) <= address < int(row[2], 16):
            return f"{row[3].decode()} {row[4].decode()} {address - int(row[1], 16):#x}"
    return f"? {address & (PAGE_BYTES - 1):#x}"


def kept_name(build_id: str | None, image: bytes) -> str | None:
    """Return the name under which an entry keeps a file: by build-id, else by the first page of its
    image. None if neither identifies it. Nothing of it comes from a path.
    """
    if build_id is not None:
        name = KEPT_PREFIX + build_id
    elif len(image) >= PAGE_BYTES:
        import hashlib  # loads OpenSSL, and hardly a file is without a build-id

        name = f"{KEPT_PREFIX}page-{hashlib.sha256(image[:PAGE_BYTES]).hexdigest()[:40]}"
    else:
        return None
    return name if is_kept_name(name) else None


def kept_name_of(start: bytes) -> str | None:
    """Return the same for the first bytes of a file; None if it is not an ELF image."""
    if not start.startswith(b"\x7fELF"):
        return None
    return kept_name(parse_build_id(start), start)


def is_kept_name(name: str) -> bool:
    """Return whether a file in an entry is one of those."""
    return _KEPT.fullmatch(name) is not None
