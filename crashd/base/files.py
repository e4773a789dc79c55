"""Files that others may have made, or may break: one way each to open, read and replace them.

A name that a user can choose may be a link, a FIFO that blocks for ever, a device, or a file larger
than memory. So only regular files are read, opened without waiting and read up to a limit. A write
can be short, and a disk can fill up in the middle of it. So a file is staged beside its final name,
and renamed when it is whole.

Names may be relative to a directory's descriptor, or paths. OSError passes as the kernel raises it;
callers find the words for the operator.
"""

from __future__ import annotations

import errno
import os
import stat

from crashd.records import NamedTuple

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from pathlib import Path

StrPath = str | bytes | os.PathLike[str]

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""open(2)'s flags for a directory that must not be a link."""
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class NotRegularError(OSError):
    """What was opened is not a regular file."""


# -- reading ---------------------------------------------------------------------------------------


def open_regular(name: StrPath, *, dir_fd: int | None = None, follow: bool = False) -> int:
    """Open a regular file for reading, without waiting; the caller owns the descriptor.

    With `follow` the name may be a link: use it only if nobody but root chose the name.

    Raises:
        NotRegularError: it is not a regular file; errno is EISDIR for a directory.
        OSError: it cannot be opened.

    """
    # O_NONBLOCK: a FIFO without a writer would block for ever; a regular file ignores the flag.
    fd = os.open(name, _READ if follow else _READ | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise NotRegularError(number, "is not a regular file", name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_file(
    name: StrPath, max_bytes: int, *, dir_fd: int | None = None, follow: bool = False
) -> bytes:
    """Read the first `max_bytes` of a regular file; see `open_regular`."""
    fd = open_regular(name, dir_fd=dir_fd, follow=follow)
    try:
        return read_all(fd, max_bytes)
    finally:
        os.close(fd)


def read_all(fd: int, max_bytes: int) -> bytes:
    """Read from the descriptor's position to the end, at most `max_bytes`."""
    parts = []
    while max_bytes > 0:
        part = os.read(fd, min(max_bytes, 1 << 20))
        if not part:
            break
        parts.append(part)
        max_bytes -= len(part)
    return b"".join(parts)


def read_at(fd: int, size: int, offset: int) -> bytes:
    """Read up to `size` bytes at an offset; short only at the end of the file."""
    parts = []
    while size > 0:
        part = os.pread(fd, size, offset)
        if not part:
            break
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return b"".join(parts)


# -- writing ---------------------------------------------------------------------------------------


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data`, because write(2) can be short."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace_file(
    name: str | Path,
    data: bytes,
    *,
    staged: str | Path,
    dir_fd: int | None = None,
    mode: int = 0o600,
    exclusive: bool = False,
    sync: bool = False,
    sync_directory: bool = False,
) -> None:
    """Replace a file with `data`, whole or not at all: readers see the old one until it is
    complete.

    The data is written as `staged`, which is in the same directory and is removed if the disk
    refuses the data. With `exclusive`, no other process can be writing the staged file: its name is
    ours alone. With `sync` the data is on disk before the name is; with `sync_directory` the name
    is on disk on return.

    Raises:
        OSError: the disk is full, read-only or broken; the old file is unchanged.

    """
    fd = os.open(staged, _CREATE | (os.O_EXCL if exclusive else os.O_TRUNC), 0o600, dir_fd=dir_fd)
    try:
        try:
            write_all(fd, data)
            if mode != 0o600:
                os.fchmod(fd, mode)  # whatever the umask says
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(staged, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        try:  # noqa: SIM105 - crashctl loads this at each call, and contextlib takes long
            os.unlink(staged, dir_fd=dir_fd)
        except OSError:
            pass  # the first error says more
        raise
    if sync_directory:
        if dir_fd is not None:
            os.fsync(dir_fd)
        else:
            fsync_directory(os.path.dirname(name) or ".")


def fsync_directory(path: str | Path) -> None:
    """Sync the names in a directory to disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# -- space -----------------------------------------------------------------------------------------


class Space(NamedTuple):
    """The size of a file system, and its free space."""

    total_bytes: int
    free_bytes: int
    """Without the blocks reserved for root; `keep_free` refers to this."""
    root_free_bytes: int
    """With the blocks reserved for root."""
    total_inodes: int
    """0 if the file system makes inodes as it needs them (btrfs)."""
    free_inodes: int


def read_space(where: int | Path) -> Space:
    """Return how full the file system of a path, or of an open file, is (statvfs(3)).

    Raises:
        OSError: the file system cannot be examined.

    """
    found = os.fstatvfs(where) if isinstance(where, int) else os.statvfs(where)
    return Space(
        total_bytes=found.f_blocks * found.f_frsize,
        free_bytes=found.f_bavail * found.f_frsize,
        root_free_bytes=found.f_bfree * found.f_frsize,
        total_inodes=found.f_files,
        free_inodes=found.f_favail,
    )
