"""Reading files that decide what root does."""

import os
import stat
from pathlib import Path

from crashd.domain.text import printable
from crashd.errors import ConfigError, reason_of


def read_trusted(path: Path, max_bytes: int) -> bytes:
    """Read a regular file; as root, only one that nobody else can change. Never blocks.

    Links are followed, for configuration management uses them: what counts is where they end, and
    the directory that the path names.

    Raises:
        ConfigError: it cannot be read, is something else or too large, or others can change it.

    """
    name = printable(os.fsencode(path))
    try:
        # O_NONBLOCK: a FIFO must not hold the daemon.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{name}: is not a regular file")
            _refuse(name, status)
            _refuse(printable(os.fsencode(path.parent)), os.stat(path.parent))
            with open(fd, "rb", closefd=False) as file:
                raw = file.read(max_bytes + 1)
        finally:
            os.close(fd)
    except OSError as e:
        raise ConfigError(f"{name}: cannot be read: {reason_of(e)}") from e
    if len(raw) > max_bytes:
        raise ConfigError(f"{name}: is larger than {max_bytes} bytes")
    return raw


def _refuse(name: str, status: os.stat_result) -> None:
    if why := distrust(status.st_uid, status.st_mode, os.geteuid()):
        raise ConfigError(
            f"{name}: {why}",
            hint="it decides what root does: make it root's (chown root), "
            "and writable by nobody else (chmod go-w)",
        )


def distrust(owner: int, mode: int, euid: int) -> str | None:
    """Say why root must not trust a file or directory; None where it may, or `euid` is not root."""
    if euid != 0:
        return None
    if owner != 0:
        return f"belongs to uid {owner} and not to root"
    # In a sticky directory nobody else can replace what is root's.
    sticky = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        return "can be written by others than root"
    return None
