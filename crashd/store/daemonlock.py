"""The lock of a root: one daemon holds it as long as it lives; nothing else ever takes it."""

import fcntl
import os

from crashd.base.files import open_regular
from crashd.errors import BusyError, UnavailableError, reason_of
from crashd.store.entry import prepare
from crashd.store.paths import Paths


def lock_root(paths: Paths) -> int:
    """Take the root for this daemon; the caller owns the descriptor, and with it the lock.

    Raises:
        BusyError: another daemon has it.
        UnavailableError: the root cannot be used.

    """
    try:
        paths.runtime_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        prepare(paths)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(paths.daemon_lock, flags, 0o600)
    except OSError as e:
        raise UnavailableError(
            f"cannot use the root {paths.root}: {e.filename}: {reason_of(e)}"
        ) from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        owner = os.read(fd, 16).decode("ascii", "replace").strip()
        os.close(fd)
        raise BusyError(f"another crashd (pid {owner}) runs on the root {paths.root}") from e
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except OSError as e:
        os.close(fd)
        raise UnavailableError(f"cannot write {paths.daemon_lock}: {reason_of(e)}") from e
    return fd


def is_daemon_live(paths: Paths) -> bool:
    """Return whether a daemon holds this root. Never takes the lock, because a daemon that starts
    at that very moment would give up. Source: proc_locks(5).
    """
    try:
        fd = open_regular(paths.daemon_lock)
    except OSError:
        return False
    try:
        status, owner = os.fstat(fd), os.read(fd, 16).strip()
        with open("/proc/locks", "rb") as file:
            lines = [line.split() for line in file]
    except OSError:
        return False
    finally:
        os.close(fd)
    device = b"%02x:%02x" % (os.major(status.st_dev), os.minor(status.st_dev))
    # Another file system may have a locked file with the same inode number. On btrfs, stat(2)
    # reports devices of its own, so there the pid in the file decides.
    return any(
        len(line) > 5
        and line[1] == b"FLOCK"
        and line[5].rpartition(b":")[2] == b"%d" % status.st_ino
        and (line[5].startswith(device + b":") or line[4] == owner)
        for line in lines
    )
