"""Opening the files that a core names, without being led anywhere by them.

A name in a core is its process's own word. Every part of the path is opened below the one before
it, links are not followed, nothing but a regular file is opened for reading (a FIFO, a device, a
socket never), and what is read must be the image that was mapped, and a file that the crashed
user may read.
"""

import os
import stat
import struct
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from crashd.domain.elfcore import IMAGE_MAX
from crashd.domain.modules import Module, debug_file_names, path_parts, same_image
from crashd.errors import reason_of

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_SECTIONS_MAX = 4096
_SECTION_BYTES = 64
_LINK_MAX = 1024


@dataclass(frozen=True, slots=True)
class ModuleFile:
    """A module and the files found for it; the descriptors are its holder's."""

    module: Module
    fd: int | None
    debug_fd: int | None
    problem: str | None
    """Why there is no file; None where there is one."""


def open_modules(
    modules: Iterable[Module], roots: list[bytes], uid: int | None, files_max: int
) -> list[ModuleFile]:
    """Open what can be of each module, `files_max` files at most."""
    found: list[ModuleFile] = []
    with ExitStack() as stack:
        bases = [(root, fd) for root in roots if (fd := _open_base(root, stack)) is not None]
        for module in modules:
            fd, problem = None, "too many modules"
            if files_max > 0:
                fd, problem = _open_module(module, bases, uid)
            debug = None
            if files_max > 1:
                debug = _open_debug(module, fd, bases, uid)
            files_max -= (fd is not None) + (debug is not None)
            found.append(ModuleFile(module, fd, debug, None if fd is not None else problem))
    return found


def _open_base(root: bytes, stack: ExitStack) -> int | None:
    try:
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    stack.callback(os.close, fd)
    return fd


def _open_module(
    module: Module, bases: list[tuple[bytes, int]], uid: int | None
) -> tuple[int | None, str]:
    problem = "file is gone"
    for _, base in bases:
        fd, why = _open_regular(base, module.name, uid)
        if fd is None:
            problem = why if why != "file is gone" else problem
            continue
        same = same_image(module.image, os.pread(fd, IMAGE_MAX, 0), module.build_id)
        if same or (same is None and not module.deleted):
            return fd, ""
        os.close(fd)
        problem = "file is another one now"
    return None, problem


def _open_debug(
    module: Module, fd: int | None, bases: list[tuple[bytes, int]], uid: int | None
) -> int | None:
    link = read_debuglink(fd) if fd is not None else None
    for name in debug_file_names(module.name, module.build_id, link):
        for _, base in bases:
            debug, _ = _open_regular(base, name, uid)
            if debug is None:
                continue
            if os.pread(debug, 4, 0) == b"\x7fELF":
                return debug
            os.close(debug)
    return None


def _open_regular(base: int, path: bytes, uid: int | None) -> tuple[int | None, str]:
    """Open a regular file below `base` for reading, or say why not."""
    parts = path_parts(path)
    if parts is None:
        return None, "name is not a plain path"
    directory, opened = base, -1
    try:
        for part in parts:
            following = os.open(part, _PATH, dir_fd=directory)
            if directory != base:
                os.close(directory)
            directory = opened = following
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode):
            return None, "not a regular file"
        if not status.st_mode & stat.S_IROTH and status.st_uid != uid and uid != 0:
            return None, "not readable for the crashed user"
        return os.open(f"/proc/self/fd/{opened}", _READ), ""
    except FileNotFoundError:
        return None, "file is gone"
    except OSError as e:
        return None, f"cannot be opened: {reason_of(e)}"
    finally:
        if directory != base:
            os.close(directory)


def read_debuglink(fd: int) -> bytes | None:
    """Read the name in .gnu_debuglink of a 64-bit little-endian ELF file; None without one."""
    head = os.pread(fd, 64, 0)
    if len(head) < 64 or head[:6] != b"\x7fELF\2\1":
        return None
    shoff, count, names = struct.unpack_from("<40xQ12xHH", head)[0:3]
    if count == 0 or count > _SECTIONS_MAX or names >= count or shoff >= 1 << 62:
        return None
    table = os.pread(fd, count * _SECTION_BYTES, shoff)
    rows = list(struct.iter_unpack("<IIQQQQIIQQ", table[: len(table) - len(table) % 64]))
    if names >= len(rows):
        return None
    strings = _section(fd, rows[names], 1 << 16)
    for row in rows:
        end = strings.find(b"\0", row[0])
        if strings[row[0] : end] == b".gnu_debuglink":
            return _section(fd, row, _LINK_MAX).split(b"\0", 1)[0] or None
    return None


def _section(fd: int, row: tuple[int, ...], limit: int) -> bytes:
    offset, size = row[4], row[5]
    return os.pread(fd, min(size, limit), offset) if offset < 1 << 62 else b""
