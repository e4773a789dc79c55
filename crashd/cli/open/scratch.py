"""Temporary files for a debugger or a bundle, below $TMPDIR: private, and removed at the end.

A core gets no name at all. So nothing of it stays, however crashctl ends, and no other process can
open it: the debugger gets its descriptor. Files that need names lie in a directory that only root
can enter; the debugger's user reaches it through a descriptor.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from crashd.base.files import read_space
from crashd.cli.open.session import User
from crashd.cli.output import write_sparse
from crashd.domain.units import format_size
from crashd.errors import CrashdError, reason_of
from crashd.store.trusted import find_untrusted

KEEP_FREE_MAX = 1 << 30
"""Space left free on the file system: at most this, and at most a twentieth of it."""
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _base() -> str:
    # not /tmp, which is often a tmpfs
    base = os.environ.get("TMPDIR") or "/var/tmp"
    if why := find_untrusted(Path(base)):  # its owner could replace it
        raise CrashdError(f"TMPDIR is not safe for root's files: {why}", hint="unset TMPDIR")
    return base


@contextlib.contextmanager
def private_directory() -> Iterator[Path]:
    """Create a private directory (0700), and remove it at the end."""
    directory = Path(tempfile.mkdtemp(prefix="crashctl-", dir=_base()))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def nameless_file() -> Iterator[int]:
    """Create an unnamed file (0600); yield its descriptor, and close it at the end."""
    # created in a private directory: in a shared one others could link it under a second name
    with private_directory() as directory:
        path = directory / "core"
        fd = os.open(path, _CREATE, 0o600)
        path.unlink()
    try:
        os.fchmod(fd, 0o600)  # whatever the umask is
        yield fd
    finally:
        os.close(fd)


def write_core(fd: int, chunks: Iterable[bytes]) -> None:
    """Write a core to an unnamed file, and leave some space free on the disk.

    Raises:
        CrashdError: there is not enough room.

    """
    try:
        write_sparse(fd, leaving_room(fd, chunks))
    except OSError as e:
        raise CrashdError(f"cannot write to {_base()}: {reason_of(e)}") from e


def leaving_room(fd: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Pass on `chunks` while the file system of `fd` has room.

    Raises:
        CrashdError: the next chunk would leave less free than KEEP_FREE_MAX allows.
    """
    for chunk in chunks:
        space = read_space(fd)
        keep = min(KEEP_FREE_MAX, space.total_bytes // 20)
        if space.free_bytes - len(chunk) < keep:
            raise CrashdError(
                f"{_base()} has no room: {format_size(keep)} must stay free",
                hint="set TMPDIR to a directory with enough room",
            )
        yield chunk


def give(fd: int, user: User | None) -> Path:
    """Let the debugger's user open an unnamed file; return the path that the debugger uses."""
    if user is not None:
        os.fchown(fd, user.uid, user.gid)
    return descriptor_path(fd)


def descriptor_path(fd: int) -> Path:
    """Return the path by which the process that gets `fd` opens it."""
    return Path(f"/proc/self/fd/{fd}")
