"""Names that appear in a directory, inotify(7). Only importer of pyinotify.

pyinotify 0.9.6 sets the watch; its own reader is not used, for it decodes names as UTF-8 and loses
all that was read with one that is not.
"""

import ctypes
import errno
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pyinotify

from crashd.domain.text import printable
from crashd.errors import UnavailableError

_APPEARED = pyinotify.IN_MOVED_TO | pyinotify.IN_CREATE | pyinotify.IN_CLOSE_WRITE
_ASKED_GONE = pyinotify.IN_DELETE_SELF | pyinotify.IN_MOVE_SELF
_GONE = _ASKED_GONE | pyinotify.IN_UNMOUNT | pyinotify.IN_IGNORED
_EVENT = struct.Struct("iIII")  # struct inotify_event: wd, mask, cookie, len; then the name
_READ_BYTES = 1 << 16
_PYINOTIFY_ERRORS = (pyinotify.PyinotifyError, pyinotify.WatchManagerError)  # no common base
_HINTS = {
    errno.EMFILE: "raise the sysctl fs.inotify.max_user_instances, or LimitNOFILE=",
    errno.ENOSPC: "raise the sysctl fs.inotify.max_user_watches",
}


def parse_events(raw: bytes) -> list[tuple[int, bytes]]:
    """Parse what read(2) gave: (mask, name) in order, the name empty for the directory's own."""
    events = []
    position = 0
    while position + _EVENT.size <= len(raw):
        _, mask, _, size = _EVENT.unpack_from(raw, position)
        position += _EVENT.size
        events.append((mask, raw[position : position + size].rstrip(b"\0")))
        position += size
    return events


class DirectoryWatch:
    """Watches one directory; owns the inotify descriptor. For a selector: `fileno`, then `read`.

    A link is followed. For one thread; arming takes some ms (pyinotify asks ldconfig for libc).
    """

    def __init__(
        self, path: Path, on_event: Callable[[str], None], on_overflow: Callable[[], None]
    ) -> None:
        """Watch `path` from now on; what is in it already is the caller's to look for, afterwards.

        `on_event` gets the name of what was created, closed after writing or moved into it: often
        twice for one file, and a name can be anything but `/`; bytes that are not UTF-8 are
        surrogates, as in os.listdir(). `on_overflow`: names were lost, look at all of them.

        Raises:
            UnavailableError: not a directory, or a limit of the system is reached.

        """
        self.alive = True
        """False once the directory is gone, moved or unmounted: close, and watch anew."""
        self._path = path
        self._on_event = on_event
        self._on_overflow = on_overflow
        self._fd = -1
        _silence()
        name = printable(os.fsencode(path))
        try:
            # Before the watch: a directory put there in between is then not taken for the watched.
            self._identity = _identity(path)
            manager = pyinotify.WatchManager()
            self._fd = manager.get_fd()
            os.set_inheritable(self._fd, False)
            os.set_blocking(self._fd, False)
            mask = _APPEARED | _ASKED_GONE | pyinotify.IN_ONLYDIR
            manager.add_watch(os.fspath(path), mask, quiet=False)
        except (OSError, UnicodeEncodeError, *_PYINOTIFY_ERRORS) as e:
            self.close()
            code = _errno_of(e)
            raise UnavailableError(
                f"cannot watch {name}: {os.strerror(code)}", hint=_HINTS.get(code)
            ) from e

    def fileno(self) -> int:
        """Tell the descriptor, for a selector; -1 when closed."""
        return self._fd

    def read(self) -> None:
        """Take what has come, at most 64 KiB of it, and call back; never blocks.

        `on_event` is called once for each name, and `on_overflow` after that. What a callback
        raises passes through, and the names behind it are lost.
        """
        try:
            events = parse_events(os.read(self._fd, _READ_BYTES))
        except BlockingIOError:
            return
        if any(mask & _GONE for mask, _ in events):
            self.alive = False
        for name in dict.fromkeys(name for mask, name in events if mask & _APPEARED and name):
            self._on_event(os.fsdecode(name))
        if any(mask & pyinotify.IN_Q_OVERFLOW for mask, _ in events):
            self._on_overflow()

    def is_current(self) -> bool:
        """Tell whether the path still names the watched directory.

        Only asking shows that another was mounted over it or over one above it: no event does.
        """
        try:
            return self.alive and _identity(self._path) == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """Stop watching; may be called twice."""
        fd, self._fd = self._fd, -1
        self.alive = False
        if fd >= 0:
            os.close(fd)


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _errno_of(error: Exception) -> int:
    """Find the error number; pyinotify's own exceptions and its OSErrors have it in words only."""
    if isinstance(error, UnicodeEncodeError):
        return errno.EILSEQ
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return ctypes.get_errno() or errno.ENOSYS


def _silence() -> None:
    """Turn off the logger to which pyinotify gives a handler of its own when it is imported.

    It logs only what it raises as well.
    """
    logging.getLogger("pyinotify").disabled = True
