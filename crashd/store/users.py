"""Which user's share a uid's crashes take: subordinate uids count for the user who has them."""

import contextlib
import time
from pathlib import Path
from typing import Final

from crashd.corehandler import parse_subuids, user_of

LOOK_SECONDS: Final = 1.0
"""The files are checked again after this time."""
FILE_MAX: Final = 1 << 20
_KNOWN_MAX: Final = 1 << 17


class Users:
    """Knows subuid(5) and passwd(5), as far as they are files of this host: nothing here waits for
    a directory service. Any thread may use it.
    """

    def __init__(self, directory: Path = Path("/etc")) -> None:
        """Use the host's files, whatever root crashd has, because uids are the kernel's."""
        self._files = (directory / "subuid", directory / "passwd")
        self._stamps: list[tuple[int, int] | None] = []
        self._look_s = 0.0
        self._ranges: list[tuple[int, int, int]] = []
        self._known: dict[int, int] = {}

    def user_of(self, uid: int) -> int:
        """Return the user that a uid counts for."""
        if time.monotonic() >= self._look_s:
            self._look()
        known = self._known
        user = known.get(uid)  # another thread may empty the dict at any moment
        if user is None:
            if len(known) >= _KNOWN_MAX:
                known.clear()
            user = known[uid] = user_of(uid, self._ranges)
        return user

    def _look(self) -> None:
        self._look_s = time.monotonic() + LOOK_SECONDS
        stamps = [_stamp(path) for path in self._files]
        if stamps != self._stamps:
            self._ranges = parse_subuids(*(_read(path) for path in self._files))
            self._known, self._stamps = {}, stamps


def _stamp(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_ino
    return None


def _read(path: Path) -> bytes:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(FILE_MAX)
    return b""
