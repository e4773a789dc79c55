"""Opens the files that a core names, without being misled by the names.

The crashed process chose the names in its core, and they may have meant other files there: users
can mount anything in their own namespaces. So each part of a path is opened below the one before
it. The crash's own credentials must permit searching each directory and reading the file
(path_resolution(7)). Only regular files are opened for reading, never a FIFO, a device or a socket.
And the file must be the image that was mapped, by its build-id or its first page.

Links are followed only in directories of build-ids, which consist of them.

Over 400 lines, because it is one decision: which file may be opened for a name of the core.
"""

import errno
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from crashd.domain.crash.access import READ, SEARCH, Credentials, is_permitted
from crashd.domain.crash.filesearch import FileSearch
from crashd.domain.elf.elfcore import IMAGE_MAX, parse_build_id
from crashd.domain.elf.executables import kept_name
from crashd.domain.elf.headers import (
    BUILD_ID_MAX,
    HEADER_MAX,
    PHDR_SIZE,
    PT_LOAD,
    SHDR_SIZE,
    Layout,
    Shdr,
    find_build_id,
    parse_header,
    parse_phdrs,
    parse_shdrs,
)
from crashd.domain.elf.modules import (
    Module,
    alternate_names,
    build_id_names,
    debug_file_names,
    path_parts,
    same_image,
)
from crashd.errors import reason_of

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_ROOT = Credentials(0, overrides=True)
GONE = "file is gone"
"""The problem of a module for which no path leads to a file."""
_LINKS_MAX = 40  # MAXSYMLINKS of the kernel
_PARTS_MAX = 2048
_SECTIONS_MAX = 4096
_SEGMENTS_MAX = 256
_SHT_PROGBITS, _SHT_DYNAMIC, _SHT_NOTE, _SHT_X86_64_UNWIND = 1, 6, 7, 0x70000001
_DT_SONAME = 14
_LINK_MAX = 1024
_SHF_COMPRESSED, _ELFCOMPRESS_ZLIB, _CHDR = 0x800, 1, struct.Struct("<IIQQ")
_STRINGS_MAX = 64 << 20
_MOUNTS_MAX = 1 << 20
_CHECKED_BYTES_MAX = 1 << 30
"""Limit for a debug file without a build-id, which is read completely for its checksum."""


@dataclass(frozen=True, slots=True)
class ModuleFile:
    """A module and the files found for it; the holder owns the descriptors."""

    module: Module
    fd: int | None
    debug_fd: int | None
    problem: str | None
    """Why there is no file; None if there is one."""
    alternate_fd: int | None = None
    """The file with the debug information that several modules share (dwz)."""

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that there are: own file, debug file, alternate file."""
        return [fd for fd in (self.fd, self.debug_fd, self.alternate_fd) if fd is not None]


class _Place:
    """A directory to search below, with credentials and the number of links to follow; `below` is
    where the process has it mounted.
    """

    def __init__(self, fd: int, credentials: Credentials, links: int, below: bytes = b"") -> None:
        self._fd, self._credentials, self._links = fd, credentials, links
        self._below = below + b"/" if below else b""

    def open(self, path: bytes) -> tuple[int | None, str]:
        """Open a regular file for reading; else return None and the reason."""
        if path_parts(path) is None:
            return None, "name is not a plain path"
        if not path.startswith(self._below):
            return None, GONE
        path = path[len(self._below) :]
        try:
            fd = _walk(self._fd, path, self._credentials, self._links)
        except FileNotFoundError:
            return None, GONE
        except PermissionError:
            return None, "not readable for the crashed user"
        except OSError as e:
            return None, f"cannot be opened: {reason_of(e)}"
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None, "not a regular file"
            _require(fd, self._credentials, READ)
            return os.open(f"/proc/self/fd/{fd}", _READ), ""
        except PermissionError:
            return None, "not readable for the crashed user"
        except OSError as e:
            return None, f"cannot be opened: {reason_of(e)}"
        finally:
            os.close(fd)


def open_modules(modules: Iterable[Module], search: FileSearch, files_max: int) -> list[ModuleFile]:
    """Open the files of each module, at most `files_max` in all."""
    found: list[ModuleFile] = []
    with ExitStack() as stack:
        finder = _Finder(search, stack)
        for module in modules:
            fd, problem = None, "too many modules"
            if files_max > 0:
                fd, problem = finder.open_module(module)
            files_max -= fd is not None
            found.append(ModuleFile(module, fd, None, None if fd is not None else problem))
        # Debug files come after all modules' own: without those there is no stack.
        for index, file in enumerate(found):
            debug = finder.open_debug(file.module, file.fd) if files_max > 0 else None
            if debug is not None:
                files_max -= 1
                found[index] = replace(file, debug_fd=debug)
        for index, file in enumerate(found):
            alternate = finder.open_alternate(file) if files_max > 0 else None
            if alternate is not None:
                files_max -= 1
                found[index] = replace(file, alternate_fd=alternate)
    return found


class _Finder:
    """The places of one search; `stack` owns their descriptors."""

    def __init__(self, search: FileSearch, stack: ExitStack) -> None:
        credentials = search.credentials
        host = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, host)
        self._kept = [*self._open_kept(search.kept, stack)]
        self._places: list[_Place] = []
        self._by_build_id: list[_Place] = []
        self._host_ids = _Place(host, credentials, _LINKS_MAX)
        self._build_id_dirs = search.build_id_dirs
        for root in search.roots:
            with suppress(OSError):
                base = _walk(host, root.path, _ROOT if root.entered else credentials, _LINKS_MAX)
                stack.callback(os.close, base)
                self._places.append(_Place(base, credentials, 0, root.below))
                if not root.below:
                    self._by_build_id.append(_Place(base, credentials, _LINKS_MAX))

    @staticmethod
    def _open_kept(paths: Iterable[bytes], stack: ExitStack) -> Iterator[int]:
        """Open entries of crashes, whose paths are ours, as far as we may."""
        for path in paths:
            with suppress(OSError):
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                yield fd

    def open_module(self, module: Module) -> tuple[int | None, str]:
        """Open a module's own file, by path or build-id; else return None and the reason."""
        problem = GONE
        for fd, why in self._candidates(module):
            if fd is None:
                problem = why if why != GONE and problem == GONE else problem
                continue
            start = os.pread(fd, IMAGE_MAX, 0)
            same = same_image(module.image, start, module.build_id)
            if same:
                return fd, ""
            os.close(fd)
            if same is None:
                problem = "the core does not identify the file"
            else:
                problem = f"file has been replaced, {_id_text(start)}"
        return None, problem

    def _candidates(self, module: Module) -> Iterator[tuple[int | None, str]]:
        name = kept_name(module.build_id, module.image) if self._kept else None
        for entry in self._kept if name is not None else ():
            # what the crashed user may read was decided when it was kept
            with suppress(OSError):
                yield os.open(str(name), _READ | os.O_NOFOLLOW, dir_fd=entry), ""
        for place in self._places:
            yield place.open(module.name)
        yield from self._named(module.build_id, b"")

    def _named(self, build_id: str | None, suffix: bytes) -> Iterator[tuple[int, str]]:
        """Open the files of a build-id in the directories of build-ids; skip missing ones."""
        places = [(place, name) for place in self._by_build_id for name in build_id_names(build_id)]
        places += [
            (self._host_ids, name)
            for directory in self._build_id_dirs
            for name in build_id_names(build_id, directory)
        ]
        for place, name in places:
            fd, _ = place.open(name + suffix)
            if fd is not None:
                yield fd, ""

    def open_debug(self, module: Module, fd: int | None) -> int | None:
        """Open a module's separate debug file; `fd` is the module's own file."""
        link = read_debuglink(fd) if fd is not None else None
        for debug in self._debug_candidates(module, None if link is None else link[0]):
            if _is_debug_of(debug, module, link):
                return debug
            os.close(debug)
        return None

    def open_alternate(self, file: ModuleFile) -> int | None:
        """Open the file that a module's debug information refers to (.gnu_debugaltlink)."""
        named = file.debug_fd if file.debug_fd is not None else file.fd
        link = read_alternate_link(named) if named is not None else None
        if link is None:
            return None
        name, build_id = link
        found = [fd for fd, _ in self._named(build_id, b".debug")]
        for path in alternate_names(name):
            found += [fd for place in self._places if (fd := place.open(path)[0]) is not None]
        right = next((fd for fd in found if read_section_build_id(fd) == build_id), None)
        for fd in found:
            if fd != right:
                os.close(fd)
        return right

    def _debug_candidates(self, module: Module, link: bytes | None) -> Iterator[int]:
        for fd, _ in self._named(module.build_id, b".debug"):
            yield fd
        for name in debug_file_names(module.name, link):
            for place in self._places:
                debug, _ = place.open(name)
                if debug is not None:
                    yield debug


def _id_text(start: bytes) -> str:
    if not start.startswith(b"\x7fELF"):
        return "not an ELF image"
    build_id = parse_build_id(start)
    return "with no build-id" if build_id is None else f"with build-id {build_id}"


def _is_debug_of(fd: int, module: Module, link: tuple[bytes, int] | None) -> bool:
    """Return whether a debug file belongs to a module: by build-id, else by the link's checksum."""
    start = os.pread(fd, IMAGE_MAX, 0)
    if not start.startswith(b"\x7fELF"):
        return False
    if module.build_id is not None:
        return module.build_id in (read_section_build_id(fd), parse_build_id(start))
    return link is not None and _checksum(fd) == link[1]


def _checksum(fd: int) -> int | None:
    if os.fstat(fd).st_size > _CHECKED_BYTES_MAX:
        return None
    crc = at = 0
    while chunk := os.pread(fd, 1 << 20, at):
        crc = zlib.crc32(chunk, crc)
        at += len(chunk)
    return crc


# -- paths -----------------------------------------------------------------------------------------


def read_own_mounts() -> bytes:
    """Read our own mountinfo; empty if the kernel does not show it."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return file.read(_MOUNTS_MAX)
    except OSError:
        return b""


def may_read(fd: int, credentials: Credentials) -> bool:
    """Return whether these credentials permit reading an open file, which may be O_PATH."""
    try:
        _require(fd, credentials, READ)
    except OSError:
        return False
    return True


def open_as(path: bytes, credentials: Credentials) -> int | None:
    """Open a regular file of the host for reading if these credentials permit it, else None."""
    host = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _Place(host, credentials, 0).open(path)[0]
    finally:
        os.close(host)


def _walk(base: int, path: bytes, who: Credentials, links: int) -> int:
    """Open a path below `base` as O_PATH; `who` must be permitted to search each directory.

    At most `links` symbolic links are followed; neither they nor `..` lead out of `base`.
    """
    stack = [os.dup(base)]
    try:
        left = path.split(b"/")[::-1]
        while left:
            part = left.pop()
            if part in (b"", b"."):
                continue
            _require(stack[-1], who, SEARCH)
            if part == b"..":
                if len(stack) > 1:
                    os.close(stack.pop())
                continue
            stack.append(os.open(part, _PATH, dir_fd=stack[-1]))
            if links and stat.S_ISLNK(os.fstat(stack[-1]).st_mode):
                links -= 1
                target = os.readlink(b"", dir_fd=stack[-1])
                keep = 1 if target.startswith(b"/") else len(stack) - 1
                while len(stack) > keep:
                    os.close(stack.pop())
                left += target.split(b"/")[::-1]
            if len(left) > _PARTS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return os.dup(stack[-1])
    finally:
        for fd in stack:
            os.close(fd)


def _require(fd: int, who: Credentials, wanted: int) -> None:
    """Raise PermissionError unless `who` has the permission `wanted` on an open file."""
    if who.overrides:
        return
    status = os.fstat(fd)
    acl = _read_acl(fd)
    if not is_permitted(who, status.st_mode, status.st_uid, status.st_gid, acl, wanted):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _read_acl(fd: int) -> bytes | None:
    try:
        # by its link in /proc, because fgetxattr(2) refuses O_PATH descriptors
        return os.getxattr(f"/proc/self/fd/{fd}", "system.posix_acl_access")
    except OSError as e:
        if e.errno in (errno.ENODATA, errno.ENOTSUP):
            return None
        raise


# -- sections --------------------------------------------------------------------------------------


def read_debuglink(fd: int) -> tuple[bytes, int] | None:
    """Read name and checksum in .gnu_debuglink of a 64-bit little-endian ELF file."""
    row = _named_sections(fd).get(b".gnu_debuglink")
    if row is None:
        return None
    raw = _section(fd, row, _LINK_MAX)
    name = raw.split(b"\0", 1)[0]
    return (name, int.from_bytes(raw[-4:], "little")) if name and len(raw) > 4 else None


def read_alternate_link(fd: int) -> tuple[bytes, str] | None:
    """Read name and build-id in .gnu_debugaltlink of a 64-bit little-endian ELF file."""
    row = _named_sections(fd).get(b".gnu_debugaltlink")
    if row is None:
        return None
    name, _, build_id = _section(fd, row, _LINK_MAX).partition(b"\0")
    return (name, build_id.hex()) if name and 2 < len(build_id) <= BUILD_ID_MAX else None


def read_soname(fd: int) -> bytes | None:
    """Read the soname of a 64-bit little-endian library."""
    rows, _ = _section_table(fd)
    for row in rows:
        if row.type != _SHT_DYNAMIC or row.link >= len(rows):
            continue
        raw = _section(fd, row, 1 << 16)
        for tag, value in struct.iter_unpack("<QQ", raw[: len(raw) - len(raw) % 16]):
            at = rows[row.link].offset + value
            if tag == _DT_SONAME and at < 1 << 62:
                return os.pread(fd, _LINK_MAX, at).split(b"\0", 1)[0] or None
    return None


def find_sections(fd: int, wanted: Iterable[bytes]) -> dict[bytes, int]:
    """Return the addresses of sections of a 64-bit little-endian file, by name."""
    found = _named_sections(fd)
    return {name: found[name].addr for name in wanted if name in found}


def read_debug_strings(fd: int) -> bytes:
    """Return the strings of a file's debug information; empty if there are none, or too many."""
    row = _named_sections(fd).get(b".debug_str")
    if row is None or row.size > _STRINGS_MAX:
        return b""
    raw = _section(fd, row, _STRINGS_MAX)
    if not row.flags & _SHF_COMPRESSED:
        return raw
    kind, _, size, _ = _CHDR.unpack(raw[: _CHDR.size].ljust(_CHDR.size, b"\0"))
    if kind != _ELFCOMPRESS_ZLIB or size > _STRINGS_MAX:
        return b""
    try:
        return zlib.decompressobj().decompress(raw[_CHDR.size :], _STRINGS_MAX)
    except zlib.error:
        return b""


def link_start(fd: int) -> int:
    """Return the lowest page of a 64-bit little-endian file's segments; 0 without segments."""
    header = parse_header(os.pread(fd, HEADER_MAX, 0))
    if header is None or header.layout[1:] != (64, "little") or header.phoff >= 1 << 62:
        return 0
    raw = os.pread(fd, PHDR_SIZE[64] * min(header.phnum, _SEGMENTS_MAX), header.phoff)
    starts = [phdr[3] for phdr in parse_phdrs(raw, header.layout) if phdr[0] == PT_LOAD]
    return min(starts, default=0) & ~0xFFF


def read_section_build_id(fd: int) -> str | None:
    """Read the build-id of a 64-bit little-endian debug file, which has no usable segments."""
    for row in _section_table(fd)[0]:
        if row.type != _SHT_NOTE:
            continue
        raw = _section(fd, row, _LINK_MAX)
        if found := find_build_id(raw, Layout(0, 64, "little")):
            return found
    return None


def _section_table(fd: int) -> tuple[list[Shdr], int]:
    """Read the section headers, and the index of the one with their names; empty if none."""
    header = parse_header(os.pread(fd, HEADER_MAX, 0))
    if header is None or header.layout[1:] != (64, "little"):
        return [], 0
    count, names = header.shnum, header.shstrndx
    if count == 0 or count > _SECTIONS_MAX or names >= count or header.shoff >= 1 << 62:
        return [], 0
    table = os.pread(fd, count * SHDR_SIZE[64], header.shoff)
    return list(parse_shdrs(table, header.layout)), names


def _named_sections(fd: int) -> dict[bytes, Shdr]:
    """Read the section headers by name; the first counts, if several have one name."""
    rows, names = _section_table(fd)
    if names >= len(rows):
        return {}
    strings = _section(fd, rows[names], 1 << 16)
    found: dict[bytes, Shdr] = {}
    for row in rows:
        found.setdefault(strings[row.name : strings.find(b"\0", row.name)], row)
    return found


def _section(fd: int, row: Shdr, limit: int) -> bytes:
    return os.pread(fd, min(row.size, limit), row.offset) if row.offset < 1 << 62 else b""


def foreign_unwind_size(fd: int) -> int | None:
    """Return the size of a file that has a section of type SHT_X86_64_UNWIND; None for others."""
    if any(row.type == _SHT_X86_64_UNWIND for row in _section_table(fd)[0]):
        return os.fstat(fd).st_size
    return None


def copy_with_unwind(fd: int) -> int:
    """Copy a file into memory, with sections of type SHT_X86_64_UNWIND as SHT_PROGBITS.

    lld gives .eh_frame that type, as the x86-64 psABI has it; libdw and drgn look for the other.
    """
    copy = os.memfd_create("module", os.MFD_CLOEXEC)
    size, at = os.fstat(fd).st_size, 0
    while at < size and (done := os.sendfile(copy, fd, at, size - at)):
        at += done
    (shoff,) = struct.unpack("<Q", os.pread(copy, 8, 40))
    for index, row in enumerate(_section_table(copy)[0]):
        if row.type == _SHT_X86_64_UNWIND:
            where = shoff + index * SHDR_SIZE[64] + 4
            os.pwrite(copy, struct.pack("<I", _SHT_PROGBITS), where)
    return copy
