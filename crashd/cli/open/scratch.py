"""Files for a debugger or a bundle, below $TMPDIR: readable by nobody else, and gone at the end.

A core gets no name at all, so that nothing of it stays whatever ends crashctl, and no other process
can open it: the debugger gets its descriptor. What has to have names lies in a directory of root's
own, which the debugger's user reaches by a descriptor, and others do not.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from crashd.base.files import read_space
from crashd.cli.open.foreground import User
from crashd.cli.output import write_sparse
from crashd.domain.units import format_size
from crashd.errors import CrashdError, reason_of
from crashd.store.trusted import find_untrusted

KEEP_FREE_MAX = 1 << 30
"""What is left free of a file system; of a small one a twentieth."""
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _base() -> str:
    # not /tmp, which is often in memory
    base = os.environ.get("TMPDIR") or "/var/tmp"
    if why := find_untrusted(Path(base)):  # its owner could put another in its place
        raise CrashdError(f"TMPDIR: {why}: not for root's files", hint="unset TMPDIR")
    return base


@contextlib.contextmanager
def private_directory() -> Iterator[Path]:
    """Make a directory of our own, 0700, and remove it at the end."""
    directory = Path(tempfile.mkdtemp(prefix="crashctl-", dir=_base()))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def nameless_file() -> Iterator[int]:
    """Make a file without a name, 0600; yield its descriptor, which is closed at the end."""
    # in a directory of its own first: in a shared one others could give the file a second name
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
    """Write a core to a file of nameless_file(), and leave some of the disk free.

    Raises:
        CrashdError: there is no room for it.

    """
    try:
        write_sparse(fd, leaving_room(fd, chunks))
    except OSError as e:
        raise CrashdError(f"cannot write to {_base()}: {reason_of(e)}") from e


def leaving_room(fd: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Pass on what still fits on the file system of `fd`.

    Raises:
        CrashdError: it would be full.

    """
    for chunk in chunks:
        space = read_space(fd)
        keep = min(KEEP_FREE_MAX, space.total_bytes // 20)
        if space.free_bytes - len(chunk) < keep:
            raise CrashdError(
                f"{_base()} has no room: {format_size(keep)} stay free",
                hint="TMPDIR names another directory",
            )
        yield chunk


def give(fd: int, user: User | None) -> Path:
    """Let the debugger's user open a file without a name; return its path there."""
    if user is not None:
        os.fchown(fd, user.uid, user.gid)
    return descriptor_path(fd)


def descriptor_path(fd: int) -> Path:
    """Return the path by which the process that gets `fd` opens it."""
    return Path(f"/proc/self/fd/{fd}")
