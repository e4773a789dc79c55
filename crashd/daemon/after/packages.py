"""Which package a crashed executable is from: by the host's package manager, else by the note in
the executable itself. Asked after the analysis, never while a process is held.
"""

import logging
import os
import stat
import threading
import time
from pathlib import Path

from crashd.domain.cause.analysis import PackageNote
from crashd.domain.crash.model import Crash
from crashd.domain.crash.package import Package, mapped_inodes, path_text
from crashd.domain.elf.elfcore import IMAGE_MAX, parse_build_id
from crashd.domain.elf.packagenote import is_package
from crashd.edge.host.packages import database_stamp, find_package
from crashd.errors import UnavailableError
from crashd.store.trusted import find_untrusted

KNOWN_MAX = 256
"""Executables whose package is remembered."""
SILENT_SECONDS = 60.0
"""A package manager that did not answer is not asked again for so long."""
log = logging.getLogger("crashd.packages")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Packages:
    """Answers from any thread; an executable is looked up again only if packages have changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Package | None] = {}
        self._lock = threading.Lock()
        self._silent_until_s = 0.0
        """On time.monotonic(): nobody is asked before, because nobody answered."""

    def find(self, crash: Crash, note: PackageNote | None) -> Package | None:
        """Return the package of a crash's executable; `note` is what the executable itself says.
        Blocks for ten seconds at most, once a minute.
        """
        found = self._of_host(crash)
        if found is None and note is not None and is_package(note.name, note.version):
            found = Package(note.name, note.version, "note")
        return found

    def _of_host(self, crash: Crash) -> Package | None:
        path = path_text(crash.exe)
        if path is None or crash.root != b"/":  # no root: nothing was read from /proc
            return None
        status = _same_file(path, crash)
        if status is None:
            return None
        key = path, status.st_dev, status.st_ino, status.st_ctime_ns, database_stamp()
        with self._lock:  # crashes come in storms: one asks, the others wait for its answer
            if key not in self._known and not self._ask(path, key):
                return None
            return self._known[key]

    def _ask(self, path: str, key: tuple[object, ...]) -> bool:
        """Ask whose a file is, and remember the answer; return whether there was one."""
        if time.monotonic() < self._silent_until_s:
            return False
        try:
            found = find_package(path)
        except UnavailableError as e:
            log.warning("whose crashed programs are is unknown for a minute: %s", e)
            self._silent_until_s = time.monotonic() + SILENT_SECONDS
            return False
        while len(self._known) >= KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known[key] = found
        return True


def _same_file(path: str, crash: Crash) -> os.stat_result | None:
    """Return the status of the host's file at a path if it is the executable that crashed.

    Only root can have put a file there: so nobody else chooses what a package manager is asked, and
    no file system of a user is read, which might never answer.
    """
    try:
        if find_untrusted(Path(path), always=True, sticky=False) is not None:
            return None
        fd = os.open(path, _READ)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        inode = os.major(status.st_dev), os.minor(status.st_dev), status.st_ino
        same = mapped_inodes(crash.maps or b"", crash.exe) == {inode}
        if crash.mount_ns is not None and not same:
            return None  # it is the file of a container
        if crash.build_id is not None:
            return status if parse_build_id(os.pread(fd, IMAGE_MAX, 0)) == crash.build_id else None
        return status if same and status.st_ctime_ns < crash.time_ns else None
    except OSError:
        return None
    finally:
        os.close(fd)
