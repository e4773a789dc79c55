"""Watches a directory for new names, inotify(7). Only importer of pyinotify.

pyinotify 0.9.6 only sets the watch. Its reader is not used, because it decodes names as UTF-8, and
loses everything read together with a name that is not.
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
    """Parse the result of read(2) into (mask, name); the name of the directory itself is empty."""
    events = []
    position = 0
    while position + _EVENT.size <= len(raw):
        _, mask, _, size = _EVENT.unpack_from(raw, position)
        position += _EVENT.size
        events.append((mask, raw[position : position + size].rstrip(b"\0")))
        position += size
    return events


class DirectoryWatch:
    """Watches one directory; owns the inotify descriptor. With a selector: `fileno`, then `read`.

    Follows a link. For use by one thread; setting the watch takes some ms (pyinotify runs ldconfig
    to find libc).
    """

    def __init__(
        self, path: Path, on_event: Callable[[str], None], on_overflow: Callable[[], None]
    ) -> None:
        """Watch `path` from now on; the caller must then list what is already in it.

        `on_event` gets the name of each file that is created, closed after writing or moved into
        the directory, often twice for one file. A name can contain anything but `/`; bytes that are
        not UTF-8 are surrogates, as in os.listdir(). `on_overflow` means that names were lost, and
        the whole directory must be listed.

        Raises:
            UnavailableError: `path` is not a directory, or a limit of the system is reached.
        """
        self.alive = True
        """False once the directory is gone, moved or unmounted: close this and watch again."""
        self._path = path
        self._on_event = on_event
        self._on_overflow = on_overflow
        self._fd = -1
        _silence()
        name = printable(os.fsencode(path))
        try:
            # Read before the watch is set, so that a directory put there in between is not mistaken
            # for the watched one.
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
        """Return the descriptor, for a selector; -1 when closed."""
        return self._fd

    def read(self) -> None:
        """Read pending events, at most 64 KiB, and call back; never blocks.

        `on_event` is called once for each name, and `on_overflow` after that. An exception of a
        callback passes through, and the names after it are lost.
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
        """Return whether the path still names the watched directory.

        No event reports that another directory was mounted over it, or over one above it.
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
    """Return the error number; pyinotify's exceptions, and some OSErrors, have only a text."""
    if isinstance(error, UnicodeEncodeError):
        return errno.EILSEQ
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return ctypes.get_errno() or errno.ENOSYS


def _silence() -> None:
    """Disable pyinotify's logger, which gets a handler when pyinotify is imported.

    pyinotify logs only what it also raises.
    """
    logging.getLogger("pyinotify").disabled = True
