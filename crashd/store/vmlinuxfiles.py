"""vmlinux files on disk: found for a kernel, and opened only if they are that kernel's.

A kernel dump's contents only choose among places that root alone may write to; nothing in the dump
can name a path.
"""

import contextlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from crashd.domain.elf.vmlinux import Vmlinux, find_release, parse_vmlinux, vmlinux_places
from crashd.domain.text import printable
from crashd.errors import FormatError, NotFoundError, reason_of
from crashd.store.trusted import find_untrusted

_CHUNK = 4 << 20
_OVERLAP = 256
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

Stamp = tuple[int, int, int, int]
"""Device, inode, size and modification time: shows whether a file is still the one used."""


@dataclass(frozen=True, slots=True)
class VmlinuxSearch:
    """What a search for a kernel's vmlinux found."""

    path: Path | None = None
    stamp: Stamp | None = None
    refused: tuple[str, ...] = ()
    """Files that lie where it could be, and why each is not used; a line each."""


def find_vmlinux(
    root: Path, release: str | None, build_id: str, directories: Iterable[str] = ()
) -> VmlinuxSearch:
    """Find the vmlinux with a build-id and with debug information; as root, only one that nobody
    else can change. Raises nothing.
    """
    refused: list[str] = []
    for place in vmlinux_places(release, build_id, directories):
        path = root / place
        name = printable(os.fsencode(path))
        try:
            if not os.path.isfile(path):  # False also for a name that is too long
                continue
            why = find_untrusted(path)
            if why is None:
                found, stamp = _read(path)
                why = _judge(found, build_id)
                if why is None:
                    return VmlinuxSearch(path, stamp, tuple(refused))
        except (FormatError, NotFoundError, OSError) as e:
            why = reason_of(e).removeprefix(f"{name} ")
        refused.append(f"{name}: {why}")
    return VmlinuxSearch(refused=tuple(refused))


def open_vmlinux(path: Path, build_id: str) -> int:
    """Open a vmlinux that was found, and check that it is still the same; the caller owns the
    descriptor.

    Raises:
        FormatError: it is another file now.
        NotFoundError: it cannot be read.

    """
    fd = _open(path)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        if why := _judge(_parse(path, fd), build_id):
            raise FormatError(f"{printable(os.fsencode(path))}: {why}")
        stack.pop_all()
    return fd


def read_vmlinux(path: Path, *, with_release: bool) -> tuple[Vmlinux, str | None]:
    """Read which kernel a vmlinux belongs to and, if wanted, the release in its banner, for which
    everything that it loads is searched.
    Raises:
        NotFoundError: it cannot be read.
        FormatError: it is not a vmlinux.

    """
    fd = _open(path)
    try:
        found = _parse(path, fd)
        return found, _release(fd, found) if with_release else None
    except OSError as e:
        raise NotFoundError(f"{printable(os.fsencode(path))}: {reason_of(e)}") from e
    finally:
        os.close(fd)


def _judge(found: Vmlinux, build_id: str) -> str | None:
    """Return why a vmlinux does not suit a kernel; None if it is that kernel's."""
    if found.build_id != build_id:
        own = f"its build-id is {found.build_id}" if found.build_id else "it has no build-id"
        return f"is of another kernel: {own}"
    return None if found.has_debug_info else "has no debug information"


def _read(path: Path) -> tuple[Vmlinux, Stamp]:
    fd = _open(path)
    try:
        status = os.fstat(fd)
        stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return _parse(path, fd), stamp
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    name = printable(os.fsencode(path))
    with contextlib.ExitStack() as stack:
        try:
            fd = os.open(path, _OPEN)
        except OSError as e:
            raise NotFoundError(f"{name}: {reason_of(e)}") from e
        stack.callback(os.close, fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FormatError(f"{name} is not a regular file")
        stack.pop_all()
        return fd


def _parse(path: Path, fd: int) -> Vmlinux:
    try:
        return parse_vmlinux(lambda offset, size: os.pread(fd, size, offset))
    except FormatError as e:
        raise FormatError(f"{printable(os.fsencode(path))} {e}") from e
    except OSError as e:
        raise NotFoundError(f"{printable(os.fsencode(path))}: {reason_of(e)}") from e


def _release(fd: int, found: Vmlinux) -> str | None:
    before = b""
    for offset, size in found.loaded:
        for at in range(offset, offset + size, _CHUNK):
            chunk = os.pread(fd, min(_CHUNK, offset + size - at), at)
            release = find_release(before + chunk)
            if release is not None:
                return release
            if not chunk:
                break
            before = chunk[-_OVERLAP:]
    return None
