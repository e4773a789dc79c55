"""Small files of state in the state directory: replaced whole, and worth nothing when damaged."""

import errno
import json
import os
from pathlib import Path
from typing import Any

from crashd.domain.crash.model import encode
from crashd.store.entry import write_all

STATE_MAX = 16 << 20
"""Bytes of a file that are read."""


def read_state(path: Path) -> Any:
    """Read a file's JSON; None when there is none, or it is not whole."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            return json.loads(file.read(STATE_MAX))
    except (OSError, ValueError, RecursionError):
        return None


def write_state(path: Path, document: Any) -> None:
    """Replace a file by `document` as JSON; not synced: the newest is not worth a wait.

    Raises:
        OSError: the disk refuses it, or nobody could read so much again.

    """
    raw = encode(document)
    if len(raw) > STATE_MAX:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
    staged = path.with_name(path.name + ".new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(staged, flags, 0o600)
    try:
        write_all(fd, raw)
    except OSError:
        staged.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    os.rename(staged, path)
